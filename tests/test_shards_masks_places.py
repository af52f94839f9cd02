"""Where masks are looked for, and what is said where they are not."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from market import jpeg, png, write_market
from mask_pictures import SIZE, SOFT
from maskreid_shards import (
    MaskOptions,
    ShardError,
    convert,
    convert_market1501,
    open_shards,
    place_masks,
    scan_csv,
    scan_market1501,
)
from program import run
from test_shards_convert import tree

OTHER_NAMES = ("a.PNG", "a.jpg", "a.JPEG", "a.bmp", "a.tif", "a.npy", "a.jpg.png", "a.jpg.npy", "a_mask.png")


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("name", OTHER_NAMES)
def test_masks_under_other_names(tmp_path: Path, name: str, given: bool) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "a.jpg").write_bytes(jpeg(1, SIZE))
    folder = tmp_path / ("masks/x" if given else "x_seg")
    folder.mkdir(parents=True)
    values = np.where(SOFT > 99, 255, 0).astype(np.uint8)
    if name.endswith(".npy"):
        np.save(folder / name, values)
    else:
        Image.fromarray(values).save(folder / name)
    (folder / "b.png").write_bytes(b"of another")
    (tmp_path / "list.csv").write_text("path,pid,camid,split\nx/a.jpg,1,1,train\n")
    options = MaskOptions(str(tmp_path / "masks")) if given else MaskOptions()
    report = convert(scan_csv(tmp_path / "list.csv"), tmp_path / "out", dataset="x", mask_options=options)
    assert report.manifest.masks.bad == 0
    assert f"masks: 1 found under another name or suffix: {name} of x/a.jpg" in report.lines()
    stored = open_shards(tmp_path / "out").split("train").read(0).mask
    assert np.abs(np.asarray(Image.open(io.BytesIO(stored))).astype(int) - values).max() < 128


def test_an_image_is_not_found_as_its_own_mask(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(1, SIZE))
    (tmp_path / "list.csv").write_text("path,pid,camid,split\na.jpg,1,1,train\n")
    layout = place_masks(scan_csv(tmp_path / "list.csv"), MaskOptions(str(tmp_path)))
    assert layout.splits["train"][0].mask_path == tmp_path / "a.png"


@pytest.mark.parametrize(
    ("there", "said"),
    [
        ("train_seg/0001/c1-person.png", "found c1-person.png: --masks '"),
        ("train_seg/0001/other.png", "0001 holds other.png and the like"),
        ("masks/0001/c1.png", "there is no folder 0001"),
    ],
)
def test_a_missing_mask_says_what_lies_there(tmp_path: Path, there: str, said: str) -> None:
    image = tmp_path / "own/train/0001/c1.jpg"
    image.parent.mkdir(parents=True)
    image.write_bytes(jpeg(1))
    mask = tmp_path / "own" / there
    mask.parent.mkdir(parents=True)
    mask.write_bytes(png(1))
    status, output = run("convert", "folder", tmp_path / "own", tmp_path / "out", "--workers", 1)
    assert status == 2 and said in output and len(output.splitlines()) == 1, output
    pattern = there.replace("train", "{split}").replace("0001", "{pid}").replace("c1", "{stem}")
    if "other" not in there:
        options = ("--masks", pattern, "--workers", 1)
        status, output = run("convert", "folder", tmp_path / "own", tmp_path / "out", *options)
        assert status == 0 and "1 checked, 0 bad" in output, output


@pytest.fixture
def src(tmp_path: Path) -> Path:
    return write_market(tmp_path / "market", identities=2, images=2)


def test_locations_give_the_same_shards(src: Path, tmp_path: Path) -> None:
    convert_market1501(src, tmp_path / "sibling")
    expected = tree(tmp_path / "sibling")
    for split, folder in (
        ("train", "bounding_box_train"),
        ("query", "query"),
        ("gallery", "bounding_box_test"),
    ):
        here = src / f"{folder}_seg"
        (tmp_path / "mirror" / folder).mkdir(parents=True)
        (tmp_path / "flat" / split).mkdir(parents=True)
        for mask in sorted(here.iterdir()):
            (tmp_path / "mirror" / folder / mask.name).write_bytes(mask.read_bytes())
            (tmp_path / "flat" / split / f"{mask.stem}.jpg.mask").write_bytes(mask.read_bytes())
        here.rename(tmp_path / f"moved_{folder}")
    for number, location in enumerate(("mirror", "moved_{folder}/{stem}.png", "flat/{split}/{name}.mask")):
        out = tmp_path / f"out{number}"
        convert_market1501(src, out, mask_options=MaskOptions(str(tmp_path / location)))
        assert tree(out) == expected
    with pytest.raises(ShardError, match="no such folder of masks"):
        convert_market1501(src, tmp_path / "out", mask_options=MaskOptions(str(tmp_path / "nowhere")))
    with pytest.raises(ShardError, match=r"no mask file"):
        convert_market1501(src, tmp_path / "out", mask_options=MaskOptions(str(tmp_path / "flat")))


def test_two_images_with_one_mask(src: Path, tmp_path: Path) -> None:
    layout = scan_market1501(src)
    first = layout.splits["train"][0]
    twin = replace(first, name=first.name[:-4] + ".png")
    layout = replace(layout, splits={"train": (first, twin)})
    with pytest.raises(ShardError, match="both have the mask"):
        place_masks(layout, MaskOptions(str(tmp_path)))
    placed = place_masks(layout, MaskOptions("m/{folder}/{name}.png")).splits["train"]
    assert [str(source.mask_path) for source in placed] == [f"m/{first.name}.png", f"m/{twin.name}.png"]
