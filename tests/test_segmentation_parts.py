"""Masks made inside the numbered parts of a conversion: each part makes its own, and together they give one
run's bytes."""

import hashlib
import json
import random
from pathlib import Path

import pytest
import torch
from PIL import Image

from maskreid_dist.segmentation import pose_weights
from maskreid_dist.segmentation.masks import SegmentationSettings, is_new_folder
from maskreid_dist.segmentation.pose import CHUNK, PoseSegmenter
from maskreid_dist.segmentation.tflite import read_graph
from maskreid_shards import open_shards, verify
from program import run
from test_shards_convert import tree
from tflite_files import plain_pose, pose_like

PARTS = 3


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Those of an own network, which are then the right ones."""
    data = plain_pose()
    monkeypatch.setattr(pose_weights, "SHA256", hashlib.sha256(data).hexdigest())
    (tmp_path / "w.tflite").write_bytes(data)
    return tmp_path / "w.tflite"


def crops(folder: Path, identities: int = 9) -> Path:
    """Two images of each identity, of sizes and contents of their own."""
    draw = torch.Generator().manual_seed(1)
    for pid in range(1, identities + 1):
        (folder / f"{pid:04d}").mkdir(parents=True)
        for number in range(2):
            pixels = torch.randint(0, 256, (8 + pid, 4 + pid, 3), generator=draw, dtype=torch.uint8)
            large = pixels.repeat_interleave(4, 0).repeat_interleave(4, 1)
            Image.fromarray(large.numpy()).save(folder / f"{pid:04d}" / f"{number}_c1.png")
    return folder


@pytest.mark.parametrize("more", [(), ("--landmarks",)], ids=["masks", "landmarks"])
def test_parts_that_make_their_masks_give_one_runs_bytes(
    weights: Path, tmp_path: Path, more: tuple[str, ...]
) -> None:
    src = crops(tmp_path / "crops")
    flags = ("--segment", "pose", "--segment-weights", weights, "--segment-device", "cpu", *more)
    sizes = ("--shard-size", 25_000, "--workers", 1, "--dataset", "x")
    one, out = tmp_path / "one", tmp_path / "out"
    status, output = run("convert", "folder", src, one, *flags, *sizes)
    assert status == 0 and "masks: 18 made, 0 kept" in output, output
    assert len(open_shards(one).split("train").urls()) > PARTS
    numbers = list(range(1, PARTS + 1))
    random.Random(2).shuffle(numbers)
    made = 0
    for number in numbers:
        status, output = run("convert", "folder", src, out, *flags, *sizes, "--part", f"{number}/{PARTS}")
        assert status == 0 and f"part {number} of {PARTS} is finished" in output, output
        mine = int(output.split("masks: ")[1].split()[0])
        assert 0 < mine < 18 and "0 kept" in output, output  # its own alone
        made += mine
    assert made == 18
    weights.unlink()  # nothing is made any more
    status, output = run("convert", "folder", src, out, *flags, *sizes, "--finish")
    assert status == 0 and "made by model pose" in output, output
    assert tree(out) == tree(one) and not verify(out)
    assert tree(tmp_path / "out-masks") == tree(tmp_path / "one-masks")
    assert json.loads((out / "manifest.json").read_text())["masks"]["maker"]["model"] == "pose"


def test_a_part_of_other_shards_than_the_masks_were_made_for(weights: Path, tmp_path: Path) -> None:
    """Masks that are there are used, whatever they were made for; others are missed by name."""
    src = crops(tmp_path / "crops", 4)
    flags = ("--segment", "pose", "--segment-weights", weights, "--segment-device", "cpu")
    masks = ("--masks", tmp_path / "masks", "--workers", 1, "--shard-size", 10_000)
    assert run("convert", "folder", src, tmp_path / "out", *flags, *masks, "--part", "1/2")[0] == 0
    status, output = run("convert", "folder", src, tmp_path / "out", *flags, *masks, "--finish")
    assert status == 2 and "1 of 2 parts are not finished: 2" in output, output
    status, output = run("convert", "folder", src, tmp_path / "other", *masks)
    assert status == 2 and "no mask file" in output and not (tmp_path / "other").exists(), output


def test_a_mask_does_not_depend_on_what_is_in_its_batch() -> None:
    segmenter = PoseSegmenter(read_graph(pose_like()[0], "own"), torch.device("cpu"), "own")
    images = [
        torch.randint(0, 256, (3, 40 + 8 * n, 24 + n), dtype=torch.uint8, generator=torch.Generator())
        for n in range(CHUNK + 3)
    ]
    together = segmenter(images)
    for count in range(1, len(images)):
        for mask, alone in zip(together[:count], segmenter(images[:count]), strict=True):
            assert torch.equal(mask, alone)
    for mask, alone in zip(together[::-1], segmenter(images[::-1]), strict=True):
        assert torch.equal(mask, alone)


def test_a_note_that_another_part_is_writing(tmp_path: Path) -> None:
    settings = SegmentationSettings("pose", "ab" * 32)
    (tmp_path / ".maskreid-0123456789abcdef.partial").write_bytes(b"{")
    assert is_new_folder(tmp_path, settings)
