"""Quality of masks: components against a flood fill, the figures against masks made by hand, the command."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from PIL import Image

from market import write_market
from maskreid_shards import convert_market1501, open_shards
from maskreid_shards.mask_quality import MaskQuality, component_sizes, judge_masks
from program import run


def flood_fill(person: NDArray[np.bool_]) -> list[int]:
    left = {(int(row), int(column)) for row, column in zip(*np.nonzero(person), strict=True)}
    sizes = []
    while left:
        waiting, size = [left.pop()], 0
        while waiting:
            row, column = waiting.pop()
            size += 1
            for near in [(row + down, column + right) for down in (-1, 0, 1) for right in (-1, 0, 1)]:
                if near in left:
                    left.remove(near)
                    waiting.append(near)
        sizes.append(size)
    return sorted(sizes, reverse=True)


@settings(max_examples=200, deadline=None)
@given(arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=12)))
def test_components_are_those_of_a_flood_fill(person: NDArray[np.bool_]) -> None:
    assert component_sizes(person) == flood_fill(person)


@pytest.mark.parametrize("density", [0.2, 0.4, 0.5, 0.7])
def test_components_of_large_random_masks(density: float) -> None:
    person = np.random.default_rng(int(100 * density)).random((90, 50)) < density
    assert component_sizes(person) == flood_fill(person)


def test_a_spiral_is_one_component() -> None:
    picture = ["#######", "      #", "##### #", "#   # #", "# ### #", "#     #", "#######"]
    person = np.array([[mark == "#" for mark in row] for row in picture])
    assert component_sizes(person) == [int(person.sum())] == flood_fill(person)


def blocks(*boxes: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    mask = np.zeros((32, 16), np.uint8)
    for top, left, height, width in boxes:
        mask[top : top + height, left : left + width] = 255
    return mask


def test_each_defect_by_hand() -> None:
    assert MaskQuality.of(blocks()) == MaskQuality(0.0, 0, 0.0, "empty")
    assert MaskQuality.of(blocks((0, 0, 32, 16))) == MaskQuality(1.0, 1, 0.0, "full")
    assert MaskQuality.of(blocks((4, 4, 20, 8))) == MaskQuality(160 / 512, 1, 0.0, None)
    # 90 + 10 pixels: exactly a tenth; 90 + 9: less.
    assert MaskQuality.of(blocks((0, 0, 10, 9), (20, 0, 2, 5))) == MaskQuality(
        100 / 512, 2, 0.1, "fragmented"
    )
    assert MaskQuality.of(blocks((0, 0, 10, 9), (20, 0, 3, 3))).defect is None
    # Many specks are no second person.
    assert MaskQuality.of(blocks((4, 4, 20, 8), *((row, 0, 1, 1) for row in range(0, 32, 2)))).defect is None
    # 25 of 512 pixels are under 5 per cent, 26 are over.
    assert MaskQuality.of(blocks((0, 0, 5, 5))).defect == "tiny"
    assert MaskQuality.of(blocks((0, 0, 2, 13))).defect is None
    # 127 is background, 128 is person.
    assert MaskQuality.of(np.full((4, 4), 127, np.uint8)).defect == "empty"
    assert MaskQuality.of(np.full((4, 4), 128, np.uint8)).defect == "full"


MADE = {
    "p00000001_00000": blocks((0, 0, 32, 16)),
    "p00000001_00001": blocks((0, 0, 10, 9), (20, 0, 2, 5)),
    "p00000002_00000": blocks((0, 0, 10, 9), (20, 0, 10, 8)),
    "p00000002_00001": blocks((0, 0, 1, 4)),
}


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Train: the four of MADE and 0099; every other mask covers 8 x 12..20 pixels of 512."""
    src = write_market(tmp_path / "market", identities=2, images=2)
    masks = sorted((src / "bounding_box_train_seg").glob("000[12]_*"))
    for mask, pixels in zip(masks, MADE.values(), strict=True):
        Image.fromarray(pixels).save(mask)
    (src / "query_seg" / "0200_c1s1_000001_01.png").unlink()
    convert_market1501(src, tmp_path / "shards", on_bad_mask="full")
    return tmp_path / "shards"


def test_report_of_shards(shards: Path) -> None:
    report = judge_masks(open_shards(shards))
    assert report.checked == {"train": 5, "query": 2, "gallery": 12}
    assert report.counts == {"empty": 0, "full": 2, "fragmented": 2, "tiny": 1}
    assert sum(report.histogram) == 19 and report.histogram[0] == 1 and report.histogram[-1] == 2
    found = [(mask.key, mask.quality.defect) for mask in report.defective]
    assert found == [
        ("p00000200_00000", "full"),  # query before train
        ("p00000001_00000", "full"),
        ("p00000002_00000", "fragmented"),  # 80 of 170 pixels before 10 of 100
        ("p00000001_00001", "fragmented"),
        ("p00000002_00001", "tiny"),
    ]
    assert [mask.key for mask in report.worst(3)] == [found[0][0], found[2][0], found[4][0]]
    assert report.worst(99) == list(report.defective)


def test_the_command(shards: Path, tmp_path: Path) -> None:
    status, output = run("masks", shards)
    assert status == 0 and "2 full" in output and "2 fragmented" in output
    status, output = run("masks", shards, "--json", "--output", tmp_path / "report")
    assert status == 0
    content = json.loads(output)
    assert content["counts"] == {"empty": 0, "full": 2, "fragmented": 2, "tiny": 1}
    assert content["defective"][2]["key"] == "p00000002_00000"
    assert json.loads((tmp_path / "report" / "masks.json").read_text()) == content
    for name in ("worst.png", "coverage.png"):
        with Image.open(tmp_path / "report" / name) as picture:
            assert picture.format == "PNG" and min(picture.size) > 100
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == [
        "coverage.png",
        "masks.json",
        "worst.png",
    ]


def test_the_command_on_no_shards(tmp_path: Path) -> None:
    status, output = run("masks", tmp_path)
    assert status == 2 and output.count("\n") == 1 and "not a shard folder" in output
