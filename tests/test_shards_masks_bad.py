"""Masks that cannot be what they are taken for: refused, changed or replaced, and counted."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from market import write_market
from mask_pictures import SIZE, cut_out, saved
from maskreid_shards import MaskOptions
from maskreid_shards.masks.maker import NOTE
from maskreid_shards.masks.policy import read_mask
from program import run


@pytest.mark.parametrize(
    ("picture", "options", "kind"),
    [
        (Image.new("RGB", SIZE, (255, 255, 0)), MaskOptions(), "mode"),
        (Image.new("RGBA", SIZE, (255, 9, 255, 255)), MaskOptions(), "mode"),
        (Image.new("I;16", SIZE, 999), MaskOptions(), "mode"),
        (Image.new("RGB", SIZE, (1, 2, 3)), MaskOptions(kind="parsing"), "mode"),
        (cut_out("L"), MaskOptions(kind="parsing"), "mode"),
        (Image.new("L", SIZE, 255), MaskOptions(invert=True), "empty"),
        (Image.new("L", SIZE, 15), MaskOptions(), "empty"),
        (Image.new("L", SIZE, 14), MaskOptions(kind="label", person_labels=(15,)), "empty"),
        (Image.new("L", SIZE, 0), MaskOptions(kind="parsing"), "empty"),
    ],
)
def test_bad_masks(tmp_path: Path, picture: Image.Image, options: MaskOptions, kind: str) -> None:
    data, found = read_mask(saved(tmp_path / "m.png", picture), SIZE, where="x", options=options)
    assert data is None and [problem.kind for problem in found] == [kind]


def label_map(*levels: int) -> Image.Image:
    """Levels in broad stripes over 0, as label maps have them."""
    values = np.zeros((24, 16), np.uint8)
    for number, level in enumerate(levels):
        values[:, 4 * number : 4 * number + 4] = level
    return Image.fromarray(values)


def edged() -> Image.Image:
    """A soft mask of few levels: an edge of one pixel below 128 round the person."""
    values = np.zeros((24, 16), np.uint8)
    values[3:21, 3:13], values[4:20, 4:12] = 100, 255
    return Image.fromarray(values)


def enlarged() -> Image.Image:
    """A soft mask of few levels, enlarged to 64 x 128 pixels: steps of four pixels."""
    values = np.zeros((32, 16), np.uint8)
    values[3:29, 3:13], values[4:28, 4:12], values[5:27, 5:11] = 85, 170, 255
    return Image.fromarray(values.repeat(4, 0).repeat(4, 1))


@pytest.mark.parametrize(
    ("picture", "kind"),
    [
        (label_map(15, 255), "labels"),
        (label_map(1, 2, 255), "labels"),
        (label_map(255), None),
        (label_map(128, 255), None),  # a trimap: 128 is person
        (label_map(60, 200, 255), "labels"),
        (label_map(200, 30, 220), "labels"),
        (enlarged(), None),
        (label_map(50, 200), "labels"),
        (edged(), None),
        (label_map(15), "empty"),
    ],
)
@pytest.mark.parametrize("inverted", [False, True])
def test_a_label_map_is_no_soft_mask(
    tmp_path: Path, picture: Image.Image, kind: str | None, inverted: bool
) -> None:
    path = saved(tmp_path / "m.png", picture)
    data, found = read_mask(path, picture.size, where="x", options=MaskOptions(invert=inverted))
    if inverted and kind == "empty":
        kind = None  # 240 in the person's place
    assert (data is None) == (kind is not None) and [problem.kind for problem in found] == [kind] * bool(kind)
    if kind:
        assert "--mask-kind label --person-label" in found[0].detail


@pytest.mark.parametrize("highest", [0, 3])
def test_an_empty_mask_of_a_network_is_no_label_map(tmp_path: Path, highest: int) -> None:
    path = saved(tmp_path / "m.png", Image.new("L", SIZE, highest))
    (tmp_path / NOTE).write_text('{"model": "pose"}')
    data, found = read_mask(path, SIZE, where="x", options=MaskOptions(str(tmp_path)))
    assert data is None and [problem.kind for problem in found] == ["empty"]
    assert "found nobody" in found[0].detail and "label" not in found[0].detail


@pytest.mark.parametrize(
    ("mask", "image", "kind"),
    [
        ((8, 16), (16, 32), "resized"),
        ((13, 31), (50, 123), "resized"),  # a quarter, rounded up or down
        ((16, 16), (16, 32), "aspect"),
        ((32, 16), (16, 32), "swapped"),
        ((48, 24), (16, 32), "swapped"),
        ((16, 32), (32, 16), "swapped"),
    ],
)
def test_a_mask_of_another_aspect(
    tmp_path: Path, mask: tuple[int, int], image: tuple[int, int], kind: str
) -> None:
    path = saved(tmp_path / "m.png", Image.new("L", mask, 255))
    data, found = read_mask(path, image, where="x")
    assert [problem.kind for problem in found] == [kind] and (data is None) == (kind == "swapped")


def test_most_masks_replaced_is_the_last_word(tmp_path: Path) -> None:
    src = write_market(tmp_path / "m")
    for mask in sorted((src / "bounding_box_train_seg").iterdir()):
        label_map(15, 255).resize((16, 32), Image.Resampling.NEAREST).save(mask)
    status, output = run("convert", "market1501", src, tmp_path / "out", "--workers", 1)
    assert status == 2 and "--mask-kind label" in output and not (tmp_path / "out").exists()
    options = ("--workers", 1, "--on-bad-mask")
    status, output = run("convert", "market1501", src, tmp_path / "out", *options, "full")
    last = output.splitlines()[-1]
    assert status == 0 and last.startswith("MOST MASKS WERE BAD, 25 of 39, mostly a label map"), output
    assert last.endswith("FULL ONES TOOK THEIR PLACE")  # masks there are, so nothing of making them
    for folder in src.glob("*_seg"):
        shutil.rmtree(folder)
    status, output = run("convert", "market1501", src, tmp_path / "without", *options, "full")
    assert status == 0 and output.splitlines()[-1].endswith(
        "mostly no mask file: FULL ONES TOOK THEIR PLACE; --segment pose makes masks"
    )
    status, output = run("convert", "market1501", src, tmp_path / "refused", "--workers", 1)
    assert status == 2 and "have missing ones made (--segment pose)" in output
