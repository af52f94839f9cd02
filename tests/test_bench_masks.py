"""`maskreid bench masks` on a small data set whose masks are known."""

import csv
import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from market import write_market
from maskreid_dist.bench import masks
from maskreid_dist.bench.mask_speed import MaskSpeed, measure_speed
from maskreid_dist.cli.app import app
from maskreid_dist.errors import UserError
from maskreid_dist.segmentation import pose_weights
from maskreid_shards import MaskOptions, place_masks, scan_market1501
from program import run
from tflite_files import plain_pose

PATTERN = "{folder}_gt/{stem}.png"


@pytest.fixture
def market(tmp_path: Path) -> Path:
    """The person is the bright upper half of an image; the carried masks are its upper quarter."""
    src = write_market(tmp_path / "market", identities=2, images=2)
    for image in src.rglob("*.jpg"):
        with Image.open(image) as picture:
            width, height = picture.size
        pixels = np.zeros((height, width), np.uint8)
        pixels[: height // 2] = 255
        Image.fromarray(np.stack([pixels] * 3, 2)).save(image, quality=95)
        folder = image.parent
        (folder.parent / f"{folder.name}_gt").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder.parent / f"{folder.name}_gt/{image.stem}.png")
        pixels[height // 4 :] = 0
        Image.fromarray(pixels).save(folder.parent / f"{folder.name}_seg/{image.stem}.png")
    return src


def test_iou_and_table(market: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = tmp_path / "w.tflite"
    weights.write_bytes(plain_pose())
    monkeypatch.setattr(pose_weights, "SHA256", hashlib.sha256(plain_pose()).hexdigest())
    # One image shows nobody: its exact mask is empty.
    first = sorted((market / "query_gt").iterdir())[0]
    with Image.open(first) as mask:
        Image.new("L", mask.size).save(first)
    arguments = [
        "bench", "masks", str(market), "--against", str(market / PATTERN), "--weights", str(weights),
        "--output", str(tmp_path / "masks.csv"),
    ]  # fmt: skip
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == (1 if "MISS" in result.output else 0), result.output
    crops = len(list(scan_market1501(market).sources())) - 1
    assert f" {crops} crops" in result.output and "IoU of the pose masks: identities 1.000; " in result.output
    rows = {row["name"]: row for row in csv.DictReader((tmp_path / "masks.csv").open())}
    assert list(rows) == ["no mask", "carried", "pose", "exact"]
    assert rows["no mask"]["iou"] == "" and float(rows["exact"]["iou"]) == 1
    assert float(rows["carried"]["iou"]) == pytest.approx(0.5, abs=0.02)
    assert float(rows["carried"]["iou_below_half"]) in (0, 1)
    assert float(rows["pose"]["iou"]) > 0.9 and float(rows["pose"]["crops_s"]) > 0
    assert [row for row in rows if rows[row]["crops_s"]] == ["pose"]


def test_exact_masks_that_are_missing(market: Path, tmp_path: Path) -> None:
    weights = tmp_path / "w.tflite"
    weights.write_bytes(plain_pose())
    status, output = run("bench", "masks", market, "--against", market / PATTERN, "--weights", weights)
    assert status == 2 and "sha256" in output and output.count("\n") == 1


def test_the_time_of_a_mask_and_its_parts(
    market: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "w.tflite"
    weights.write_bytes(plain_pose())
    monkeypatch.setattr(pose_weights, "SHA256", hashlib.sha256(plain_pose()).hexdigest())
    found = measure_speed(market, 4, 2, weights=weights)
    assert found.whole_ms >= found.whole_least_ms > 0 and found.network_ms >= found.network_least_ms > 0
    assert found.gflop is not None and found.gflop > 0 and found.product_gflops > 0
    made = MaskSpeed(64, 5, 12.5, 11.0, 10.0, 9.0, 0.3, 60.0, 80.0)
    assert made.promise().value == pytest.approx(80) and not made.promise().kept
    assert "12.50 ms of a core (11.00 at the least), of them the network 10.00 (9.00)" in made.lines()[0]
    assert "0.300 GFLOP, 30 GFLOP/s; a product of matrices: 60" in made.lines()[1]
    assert "would take 5.00 ms" in made.lines()[1]
    status, output = run("bench", "masks", market, "--speed", 4000, "--weights", weights)
    assert status == 2 and "images; measure at most so many" in output and output.count("\n") == 1
    status, output = run("bench", "masks", market)
    assert status == 2 and "--against" in output and output.count("\n") == 1


def test_a_pair_of_masks(market: Path) -> None:
    layout = scan_market1501(market)
    truth = place_masks(layout, MaskOptions(str(market / PATTERN)))
    found = masks._overlaps(layout, truth)
    assert set(found) == {*layout.splits, "junk", "distractors"} and {
        round(x, 1) for x in found["train"]
    } == {0.5}
    gone = truth.splits["train"][0].mask_path
    assert gone is not None
    gone.unlink()
    with pytest.raises(UserError, match="no exact mask of"):
        masks._overlaps(layout, truth)
