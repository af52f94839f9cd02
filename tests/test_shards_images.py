"""Images that would be shown wrongly as they are: 16-bit grey, EXIF orientations, modes that no reader
knows; and their masks."""

import io
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms import v2

from market import jpeg
from maskreid_dist.data.decoders import decode_on, decode_with_torchvision
from maskreid_shards import (
    RawPair,
    ShardError,
    convert,
    decode_pair,
    open_shards,
    scan_folder,
    verify,
)
from maskreid_shards.decode import IMAGE_MODES
from program import run

UPRIGHT = (24, 40)  # width, height
GREY = np.arange(UPRIGHT[0] * UPRIGHT[1], dtype=np.int64).reshape(UPRIGHT[::-1]) * 67 % 65536


def picture(seed: int, size: tuple[int, int] = UPRIGHT) -> Image.Image:
    return Image.open(io.BytesIO(jpeg(seed, size))).convert("RGB")


def person(size: tuple[int, int] = UPRIGHT) -> Image.Image:
    """A mask that is not alike when it is turned or mirrored."""
    values = np.zeros(size[::-1], np.uint8)
    values[size[1] // 8 :, size[0] // 4 : size[0] // 2] = 255
    return Image.fromarray(values)


def write(
    src: Path, save: Callable[[Path], object], suffix: str = ".png", mask: Image.Image | None = None
) -> Path:
    """A data set of one identity with one image."""
    for folder in ("train/0001", "train_seg/0001"):
        (src / folder).mkdir(parents=True, exist_ok=True)
    save(src / f"train/0001/a{suffix}")
    (mask or person()).save(src / "train_seg/0001/a.png")
    return src


def stored(out: Path) -> RawPair:
    assert verify(out) == []
    return open_shards(out).split("train").read(0)


def pixels(raw: RawPair) -> NDArray[np.uint8]:
    return np.asarray(decode_pair(raw)[0])


def test_grey_of_16_bits_is_scaled(tmp_path: Path) -> None:
    src = write(tmp_path / "src", Image.fromarray(GREY.astype(np.uint16)).save)
    report = convert(scan_folder(src), tmp_path / "out", dataset="x")
    raw = stored(tmp_path / "out")
    expected = np.round(GREY / 257).astype(np.uint8)
    assert np.array_equal(pixels(raw), np.stack([expected] * 3, axis=2)) and len(np.unique(expected)) > 200
    assert any(line.startswith("images: 1 16-bit grey, stored as 8-bit PNG") for line in report.lines())


def test_grey_of_a_sensor_of_12_bits_is_named(tmp_path: Path) -> None:
    src = write(tmp_path / "src", Image.fromarray((GREY // 16).astype(np.uint16)).save)
    lines = convert(scan_folder(src), tmp_path / "out", dataset="x").lines()
    assert np.array_equal(pixels(stored(tmp_path / "out"))[..., 0], np.round(GREY // 16 / 257))
    assert any("1 16-bit grey of few bits, stored DARK" in line and "up to 40" in line for line in lines)


def test_grey_of_16_bits_that_lies(tmp_path: Path) -> None:
    """Two changes of one image."""
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = Image.fromarray(np.rot90(GREY.astype(np.uint16)).copy())
    src = write(tmp_path / "src", lambda path: turned.save(path, exif=exif))
    lines = convert(scan_folder(src), tmp_path / "out", dataset="x", on_orientation="transpose").lines()
    assert np.array_equal(pixels(stored(tmp_path / "out"))[..., 0], np.round(GREY / 257))
    assert sum(line.startswith("images: 1 ") for line in lines) == 2


@pytest.mark.parametrize("mode", IMAGE_MODES)
def test_every_mode_of_the_table_is_shown_alike(tmp_path: Path, mode: str) -> None:
    suffix = ".jpg" if mode == "CMYK" else ".png"
    image = picture(3)
    image = image.quantize(8) if mode == "P" else image.convert(mode)
    src = write(tmp_path / "src", image.save, suffix)
    convert(scan_folder(src), tmp_path / "out", dataset="x")
    raw = stored(tmp_path / "out")
    assert raw.image == (src / f"train/0001/a{suffix}").read_bytes()
    expected = Image.open(io.BytesIO(raw.image)).convert("RGB")
    assert np.array_equal(pixels(raw), np.asarray(expected))
    for shown in (decode_with_torchvision(raw)[0], decode_on(torch.device("cpu"), [raw])[0][0]):
        found = v2.functional.to_image(shown).numpy().transpose(1, 2, 0)
        assert np.abs(found.astype(int) - pixels(raw)).max() <= 2


def test_an_image_of_another_mode_in_a_shard_is_refused(tmp_path: Path) -> None:
    """As shards written before the table was there may hold it."""
    buffer = io.BytesIO()
    Image.fromarray(GREY.astype(np.uint16)).save(buffer, "PNG")
    mask = io.BytesIO()
    person().save(mask, "PNG")
    raw = RawPair("k", 1, 1, buffer.getvalue(), mask.getvalue(), "s")
    for decode in (decode_pair, decode_with_torchvision):
        with pytest.raises(ShardError, match="mode I"):
            decode(raw)


TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def lying(src: Path, orientation: int, suffix: str = ".png") -> Path:
    """The upright picture, stored so that EXIF's `orientation` makes it upright again."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = picture(5).transpose(TURNS[orientation])
    return write(src, lambda path: turned.save(path, exif=exif), suffix)


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_an_exif_orientation_stops_or_is_applied(tmp_path: Path, orientation: int, suffix: str) -> None:
    src = lying(tmp_path / "src", orientation, suffix)
    with pytest.raises(ShardError, match=r"orientation, as 1 of 1 images have.*--on-orientation transpose"):
        convert(scan_folder(src), tmp_path / "out", dataset="x")
    assert not (tmp_path / "out").exists()
    report = convert(scan_folder(src), tmp_path / "out", dataset="x", on_orientation="transpose")
    raw = stored(tmp_path / "out")
    image, mask = decode_pair(raw)
    assert image.size == mask.size == UPRIGHT and np.array_equal(np.asarray(mask), np.asarray(person()))
    if suffix == ".png":
        assert np.array_equal(np.asarray(image), np.asarray(picture(5)))
    assert Image.open(io.BytesIO(raw.image)).getexif() == {}
    assert any("images: 1 with an EXIF orientation, stored upright" in line for line in report.lines())


def test_an_ignored_orientation_is_counted(tmp_path: Path) -> None:
    src = lying(tmp_path / "src", 3)
    report = convert(scan_folder(src), tmp_path / "out", dataset="x", on_orientation="ignore")
    assert stored(tmp_path / "out").image == (src / "train/0001/a.png").read_bytes()
    assert any("images: 1 with an EXIF orientation that was ignored" in line for line in report.lines())


def test_orientation_on_the_command_line(tmp_path: Path) -> None:
    src = lying(tmp_path / "src", 6, ".jpg")
    status, output = run("convert", "folder", src, tmp_path / "out", "--workers", 1)
    assert status == 2 and re.fullmatch(r"maskreid: error: .*a\.jpg: has an EXIF orientation.*\n", output)
    options = ("--workers", 1, "--on-orientation", "transpose")
    status, output = run("convert", "folder", src, tmp_path / "out", *options)
    assert status == 0 and "1 with an EXIF orientation, stored upright" in output
