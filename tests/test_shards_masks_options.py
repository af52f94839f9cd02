"""What the options about masks mean, together, in a conversion and its manifest."""

import io
import json
import pickle
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from market import write_market
from mask_pictures import by_pixel
from maskreid_shards import MaskOptions, ShardError, convert_market1501, open_shards, scan_market1501
from maskreid_shards.masks.policy import full_mask
from program import run


def test_options_are_plain_values() -> None:
    options = MaskOptions("masks/{stem}.png", "label", (15, 2), True)
    assert pickle.loads(pickle.dumps(options)) == options
    assert json.loads(json.dumps(asdict(options)))["person_labels"] == [15, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "colour"}, "use one of soft, label, parsing"),
        ({"kind": "label"}, "at least one person label"),
        ({"person_labels": (15,)}, "none with the other kinds"),
        ({"kind": "label", "person_labels": (-1,)}, "0 to 65535"),
        (
            {"location": "m/{view}/{stem}.png"},
            "unknown field {view}; there are {folder}, {name}, {stem}, {split}, {pid}, {camid}",
        ),
        ({"location": "m/{stem.parent}.png"}, "unknown field"),
        ({"location": "m/{folder}.png"}, "neither {stem} nor {name}"),
        ({"location": "m/{stem.png"}, "braces"),
    ],
)
def test_wrong_options(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ShardError) as caught:
        MaskOptions(**arguments)  # type: ignore[arg-type]
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.fixture
def src(tmp_path: Path) -> Path:
    return write_market(tmp_path / "market", identities=2, images=2)


def test_a_conversion_reads_counts_and_records_the_form(src: Path, tmp_path: Path) -> None:
    masks = [source.mask_path for sources in scan_market1501(src).splits.values() for source in sources]
    for number, mask in enumerate(masks):
        assert mask is not None
        person = np.asarray(Image.open(mask)) > 0
        labels = Image.fromarray(np.where(person, 15, 3).astype(np.uint8))
        if number == 0:
            labels = labels.resize((32, 64), Image.Resampling.NEAREST)
        if number == 1:
            labels = labels.convert("RGB")
        if number == 2:
            labels = Image.new("L", labels.size, 3)
        labels.save(mask)
    options = MaskOptions(kind="label", person_labels=(15,))
    report = convert_market1501(src, tmp_path / "out", on_bad_mask="full", mask_options=options)
    counts = {kind: count for kind, count in report.manifest.masks.counts.items() if count}
    assert counts == {"resized": 1, "grey": 1, "empty": 1} and report.manifest.masks.bad == 1
    assert report.manifest.masks.form == "label 15"
    assert "masks: 1 resized" in report.lines()
    shards = open_shards(tmp_path / "out")
    assert shards.manifest == report.manifest
    again = convert_market1501(src, tmp_path / "again", on_bad_mask="full", mask_options=options)
    assert again.manifest.fingerprint == report.manifest.fingerprint
    train = shards.split("train")
    stored = {pair.key: pair.mask for pair in train.read_many(range(len(train)))}
    assert full_mask((16, 32)) in stored.values()
    for source in scan_market1501(src).splits["train"][3:]:
        assert source.mask_path is not None
        expected = by_pixel(np.asarray(Image.open(source.mask_path)), options)
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(stored[source.key]))), expected)


def test_the_options_of_convert(src: Path, tmp_path: Path) -> None:
    for mask in src.rglob("*_seg/*.png"):
        person = np.asarray(Image.open(mask)) > 0
        Image.fromarray(np.where(person, 15, 3).astype(np.uint8)).save(mask)
    pattern = ("--masks", src / "{folder}_seg" / "{stem}.png")
    status, output = run("convert", "market1501", src, tmp_path / "labels", *pattern, "--person-label", 15)
    assert status == 0 and "0 bad" in output
    status, output = run(
        "convert", "market1501", src, tmp_path / "inverted", "--person-label", 3, "--invert-masks"
    )
    assert status == 0
    shards = [open_shards(tmp_path / name).split("train") for name in ("labels", "inverted")]
    assert shards[0].fingerprint == shards[1].fingerprint
    status, output = run("convert", "market1501", src, tmp_path / "parsing", "--mask-kind", "parsing")
    assert status == 0 and open_shards(tmp_path / "parsing").manifest.masks.form == "parsing"
    for wrong, message in (
        (("--person-label", 15, "--mask-kind", "parsing"), "none with the other kinds"),
        (("--mask-kind", "label"), "at least one person label"),
        (("--masks", "m/{view}.png"), "unknown field"),
        (("--masks", tmp_path / "nowhere"), "no such folder of masks"),
        ((), "needs its person labels"),
    ):
        status, output = run("convert", "market1501", src, tmp_path / "no", *wrong)
        assert status == 2 and message in output and output.count("\n") == 1
    assert not (tmp_path / "no").exists()
