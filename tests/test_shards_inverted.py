"""Masks whose person and background changed places are told from any that are right."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from market import SIZE, jpeg, write_market
from maskreid_shards import MaskOptions, open_shards, scan_folder, scan_market1501
from maskreid_shards.masks.inversion import border_and_middle, find_inverted, looks_inverted
from program import run

WALKERS = Path(__file__).parents[1] / "shards" / "walkers"
Values = NDArray[np.uint8]


def ellipse(width: float, height: float, *, across: float = 0.5) -> Values:
    """A person of these shares of the crop."""
    rows, columns = np.mgrid[0 : SIZE[1], 0 : SIZE[0]]
    y = (rows + 0.5) / SIZE[1] - 0.5
    x = (columns + 0.5) / SIZE[0] - across
    return np.where((x / width) ** 2 + (y / height) ** 2 <= 0.25, 255, 0).astype(np.uint8)


def write_set(src: Path, mask_of: Callable[[int], Values | None], images: int = 12) -> Path:
    for number in range(images):
        image = src / "train" / f"{number // 3 + 1:04d}" / f"c1_{number}.jpg"
        mask = src / "train_seg" / image.parent.name / f"c1_{number}.png"
        for path in (image, mask):
            path.parent.mkdir(parents=True, exist_ok=True)
        image.write_bytes(jpeg(number))
        if (values := mask_of(number)) is not None:
            Image.fromarray(values).save(mask)
    return src


def stored(shards: Path) -> list[Values]:
    train = open_shards(shards).split("train")
    return [np.asarray(Image.open(io.BytesIO(pair.mask))) for pair in train.read_many(range(len(train)))]


def test_the_border_and_the_middle_against_loops_over_pixels() -> None:
    values = np.random.default_rng(0).integers(0, 256, (48, 33)).astype(np.uint8)
    border, middle = [], []
    for row in range(48):
        for column in range(33):
            if row < 2 or row >= 46 or column < 2 or column >= 31:
                border.append(int(values[row, column]))
            if 12 <= row < 36 and 11 <= column < 22:
                middle.append(int(values[row, column]))
    expected = (np.mean(border) / 255, np.mean(middle) / 255)
    assert border_and_middle(Image.fromarray(values)) == pytest.approx(expected, abs=1e-6)


def test_the_threshold_on_the_walkers() -> None:
    shards = open_shards(WALKERS)
    found: list[tuple[bool, bool]] = []
    for split in map(shards.split, shards.splits):
        for start in range(0, len(split), 500):
            for pair in split.read_many(range(start, min(start + 500, len(split)))):
                mask = Image.open(io.BytesIO(pair.mask))
                if pair.pid > 0 and mask.getextrema()[0] < 128:  # type: ignore[operator]
                    found.append((looks_inverted(mask), looks_inverted(ImageOps.invert(mask))))
    assert len(found) > 4600
    as_they_are, inverted = np.mean(found, axis=0)
    assert as_they_are < 0.002 and inverted > 0.85


def test_inverted_masks_stop_with_the_flag_that_helps(tmp_path: Path) -> None:
    src = write_set(tmp_path / "own", lambda number: 255 - ellipse(0.5, 0.8))
    command = ("convert", "folder", src, tmp_path / "out", "--workers", 1)
    status, output = run(*command)
    assert status == 2 and len(output.splitlines()) == 1, output
    assert "12 of 12 masks" in output and "0001/c1_0.jpg; give --invert-masks" in output
    assert [path.name for path in tmp_path.iterdir()] == ["own"]
    status, output = run(*command, "--invert-masks")
    assert status == 0 and "INVERTED" not in output, output
    assert all(np.array_equal(mask, ellipse(0.5, 0.8)) for mask in stored(tmp_path / "out"))


def test_right_masks_that_are_inverted_stop_too(tmp_path: Path) -> None:
    src = write_set(tmp_path / "own", lambda number: ellipse(0.5, 0.8) // 255 + 1)
    out, label = tmp_path / "out", ("--mask-kind", "label", "--person-label")
    for options, words in (
        ((*label, 2, "--invert-masks"), "leave out --invert-masks"),
        ((*label, 1), "give --invert-masks, or another --person-label than 1"),
    ):
        status, output = run("convert", "folder", src, out, "--workers", 1, *options)
        assert status == 2 and words in output, output
    assert run("convert", "folder", src, out, "--workers", 1, *label, 2)[0] == 0
    assert all(np.array_equal(mask, ellipse(0.5, 0.8)) for mask in stored(out))


def test_another_policy_is_warned(tmp_path: Path) -> None:
    src = write_set(tmp_path / "own", lambda number: None if number == 5 else 255 - ellipse(0.5, 0.8))
    command = ("convert", "folder", src, tmp_path / "out", "--workers", 1, "--on-bad-mask", "full")
    for last in (("--part", "1/1"), ("--finish",)):
        status, output = run(*command, *last)
        assert status == 0 and output.splitlines()[-1].startswith("MOST MASKS LOOK INVERTED: 11 of 11 masks")


FULL = np.full(SIZE[::-1], 255, np.uint8)
RIGHT: dict[str, Callable[[int], Values | None]] = {
    "whole images": lambda number: FULL,
    "whole images but one odd one": lambda number: 255 - ellipse(0.5, 0.8) if number == 3 else FULL,
    "crops that the person fills": lambda number: ellipse(1.4, 1.4),
    "crops that are cut at the knees": lambda number: np.roll(ellipse(0.9, 1.6), 6, 0),
    "persons at one side": lambda number: ellipse(0.6, 0.9, across=0.2 + 0.05 * number),
    "persons at the border": lambda number: ellipse(0.6, 0.9, across=0.0),
    "half of them inverted": lambda number: ellipse(0.5, 0.8) if number % 2 else 255 - ellipse(0.5, 0.8),
    "nearly empty": lambda number: ellipse(0.1, 0.1),
    "missing": lambda number: None,
}


@pytest.mark.parametrize("kind", RIGHT)
def test_masks_that_may_be_right_pass(tmp_path: Path, kind: str) -> None:
    layout = scan_folder(write_set(tmp_path / "own", RIGHT[kind], images=40))
    assert find_inverted(layout, MaskOptions()) is None


def test_identities_of_all_splits_are_looked_at(tmp_path: Path) -> None:
    src = write_market(tmp_path / "market", identities=2)
    for path in src.glob("*_seg/*.png"):
        values = np.asarray(Image.open(path))
        if path.name.startswith(("-1", "0000")):
            Image.fromarray(255 - values).save(path)
    assert find_inverted(scan_market1501(src), MaskOptions()) is None
    found = find_inverted(scan_market1501(src), MaskOptions(invert=True))
    assert found is not None and found.judged == found.found == 9 + 2 + 6
