"""Images that get no mask: all of them are named before the first mask is made, or left out and counted."""

import hashlib
from pathlib import Path

import pytest
from PIL import Image

from maskreid_dist.segmentation import pose_weights
from maskreid_shards import open_shards
from program import run
from test_segmentation_pose import crops
from tflite_files import plain_pose


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Weights that take what is bright for the person, and are then the right ones."""
    data, path = plain_pose(), tmp_path / "own.tflite"
    path.write_bytes(data)
    monkeypatch.setattr(pose_weights, "SHA256", hashlib.sha256(data).hexdigest())
    return path


def test_all_bad_images_are_named_before_the_first_mask(own: Path, tmp_path: Path) -> None:
    """Three cut JPEGs, one that is missing and one that is none; then they get no mask."""
    src = crops(tmp_path / "crops")
    for number in range(6):
        Image.open(src / "0001/0.png").save(src / f"0001/c{number}.jpg")
    bad = [src / f"0001/c{number}.jpg" for number in range(5)]
    for path in bad[:3]:
        path.write_bytes(path.read_bytes()[:-40])  # only decoding finds it
    bad[3].unlink()
    bad[3].symlink_to("gone.jpg")
    bad[4].write_text("no picture")
    to_convert = ("--segment", "pose", "--segment-weights", own, "--segment-device", "cpu")
    for masks, call in (
        ("out-masks", ("convert", "folder", src, tmp_path / "out", *to_convert)),
        ("masks", ("segment", "folder", src, tmp_path / "masks", "--weights", own, "--device", "cpu")),
    ):
        status, output = run(*call)
        assert status == 2 and output.count("\n") == 1, output
        assert "5 images cannot be used" in output and "--on-bad-image skip" in output
        assert all(f"0001/{path.name}" in output for path in bad)
        assert not (tmp_path / masks).exists() and not (tmp_path / "out").exists()
        status, output = run(*call, "--on-bad-image", "skip")
        assert status == 0 and "masks: 5 made, 0 kept" in output, output
        assert "5 images cannot be read" in output
        made = sorted(path.name for path in (tmp_path / masks).rglob("*.png"))
        assert made == ["0.png", "0.png", "1.png", "1.png", "c5.png"]
        if masks == "out-masks":
            assert len(open_shards(tmp_path / "out").split("train")) == 5
            (tmp_path / "out").rename(tmp_path / "converted")


def test_two_images_that_a_table_names_and_nobody_has(own: Path, tmp_path: Path) -> None:
    Image.new("RGB", (16, 32)).save(tmp_path / "a.png")
    rows = "".join(f"{name}.png,1,{camera},train\n" for camera, name in enumerate("abc"))
    (tmp_path / "crops.csv").write_text(f"path,pid,camid,split\n{rows}")
    flags = ("--segment", "pose", "--segment-weights", own, "--segment-device", "cpu")
    status, output = run("convert", "csv", tmp_path / "crops.csv", tmp_path / "out", *flags)
    assert status == 2 and output.count("\n") == 1
    assert "2 images cannot be used: b.png, c.png (cannot be read" in output, output
    assert "--on-bad-image skip" in output and not (tmp_path / "out-masks").exists()


def test_one_bad_image_is_named_with_what_can_be_done(own: Path, tmp_path: Path) -> None:
    src = crops(tmp_path / "crops")
    (src / "0001/0.png").write_bytes((src / "0001/0.png").read_bytes()[:60])
    status, output = run("segment", "folder", src, tmp_path / "masks", "--weights", own, "--device", "cpu")
    assert status == 2 and "0001/0.png" in output and "(--on-bad-image skip)" in output
    assert not (tmp_path / "masks").exists()
