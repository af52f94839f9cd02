"""Masks of every form against a reference of loops over pixels."""

import io
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from mask_pictures import LABELS, SAVES, SIZE, SOFT, by_pixel, cut_out, few_bits_png, palette, read, saved
from maskreid_shards import MaskOptions
from maskreid_shards.masks.policy import read_mask

MEANINGS = [
    MaskOptions(kind="label", person_labels=(15,)),
    MaskOptions(kind="label", person_labels=(2, 15)),
    MaskOptions(kind="label", person_labels=(15,), invert=True),
    MaskOptions(kind="parsing"),
    MaskOptions(kind="parsing", invert=True),
]


@pytest.mark.parametrize("form", SAVES)
@pytest.mark.parametrize("options", MEANINGS, ids=MaskOptions.describe)
def test_labels(tmp_path: Path, form: str, options: MaskOptions) -> None:
    path = saved(tmp_path / "m.png", SAVES[form](LABELS))
    pixels, found = read(path, options)
    assert np.array_equal(pixels, by_pixel(LABELS, options))
    assert found == (["grey"] if form == "rgb" else [])


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_labels_of_few_bits(tmp_path: Path, bits: int) -> None:
    """Pillow scales grey of 2 and 4 bits to 0..255; palettes it does not. Written by hand: Pillow writes
    neither."""
    values = LABELS % 2**bits
    for label in range(1, 2**bits):
        options = MaskOptions(kind="label", person_labels=(label,))
        if not (values == label).any():
            continue
        indexed = saved(tmp_path / "palette.png", palette(values), bits=bits)
        assert indexed.read_bytes()[24] == bits
        for path in (indexed, few_bits_png(tmp_path / "grey.png", values, bits)):
            assert np.array_equal(read(path, options)[0], by_pixel(values, options))


@pytest.mark.parametrize("invert", [False, True])
def test_soft_values_are_kept(tmp_path: Path, invert: bool) -> None:
    options = MaskOptions(invert=invert)
    grey_palette = Image.frombytes("P", SIZE, SOFT.tobytes())
    grey_palette.putpalette([value for value in range(256) for _ in range(3)])
    for form, picture in (("L", SAVES["grey"](SOFT)), ("RGB", SAVES["rgb"](SOFT)), ("P", grey_palette)):
        path = saved(tmp_path / f"{form}.png", picture)
        pixels, found = read(path, options)
        assert np.array_equal(pixels, by_pixel(SOFT, options))
        assert found == ([] if form == "L" else ["grey"])
    black_and_white = saved(tmp_path / "1.png", Image.fromarray(SOFT).convert("1", dither=Image.Dither.NONE))
    expected = np.where(SOFT >= 128, 255, 0)
    pixels, found = read(black_and_white, options)
    assert np.array_equal(pixels, 255 - expected if invert else expected) and found == ["grey"]


def test_original_bytes_unless_something_changes(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.png", Image.fromarray(SOFT), compress_level=0)
    assert read_mask(path, SIZE, where="x") == (path.read_bytes(), ())
    few = few_bits_png(tmp_path / "few.png", np.eye(9, 6, dtype=np.uint8) * 15, 4)
    data, found = read_mask(few, SIZE, where="x")
    assert data is not None and data != few.read_bytes() and not found
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), np.eye(9, 6) * 255)


def test_labels_are_resized_to_the_nearest_pixel(tmp_path: Path) -> None:
    options = MaskOptions(kind="label", person_labels=(15,))
    path = saved(tmp_path / "m.png", Image.fromarray(LABELS))
    width, height = 10, 15
    expected = np.zeros((height, width), np.uint8)
    for row in range(height):
        for column in range(width):
            source = LABELS[int((row + 0.5) * SIZE[1] / height), int((column + 0.5) * SIZE[0] / width)]
            expected[row, column] = 255 if source == 15 else 0
    pixels, found = read(path, options, (width, height))
    assert np.array_equal(pixels, expected) and found == ["resized"]


def test_soft_masks_are_resized_bilinearly(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.png", Image.fromarray(SOFT))
    width, height = 2 * SIZE[0], 2 * SIZE[1]
    padded = np.pad(SOFT.astype(float), 1, mode="edge")
    expected = np.zeros((height, width))
    for row in range(height):
        for column in range(width):
            y, x = (row + 0.5) / 2 + 0.5, (column + 0.5) / 2 + 0.5
            top, left, down, right = int(y), int(x), y % 1, x % 1
            expected[row, column] = (
                padded[top, left] * (1 - down) * (1 - right)
                + padded[top, left + 1] * (1 - down) * right
                + padded[top + 1, left] * down * (1 - right)
                + padded[top + 1, left + 1] * down * right
            )
    pixels, found = read(path, MaskOptions(), (width, height))
    assert np.abs(pixels - expected).max() <= 1 and found == ["resized"]


@pytest.mark.parametrize(
    ("picture", "expected", "change"),
    [
        (cut_out("RGB"), SOFT, "alpha"),
        (cut_out("L"), SOFT, "alpha"),
        (Image.merge("LA", [Image.fromarray(SOFT), Image.new("L", SIZE, 255)]), SOFT, "grey"),
        (Image.merge("RGBA", [Image.fromarray(SOFT)] * 3 + [Image.new("L", SIZE, 7)]), SOFT, "grey"),
        (Image.fromarray(SOFT.astype(np.uint16) * 257), SOFT, "grey"),
        (
            Image.merge("RGB", [Image.fromarray(SOFT // 2 + n) for n in (120, 121, 122)]),
            SOFT // 2 + 121,
            "grey",
        ),
    ],
)
def test_soft_masks_of_other_modes(
    tmp_path: Path, picture: Image.Image, expected: NDArray[np.uint8], change: str
) -> None:
    pixels, found = read(saved(tmp_path / "m.png", picture), MaskOptions())
    assert found == [change] and np.array_equal(pixels, expected)


@pytest.mark.parametrize("form", ["BMP", "TIFF", "JPEG"])
def test_masks_of_other_formats(tmp_path: Path, form: str) -> None:
    values = np.where(SOFT > 99, 255, 0).astype(np.uint8)
    Image.fromarray(values).save(tmp_path / "m.png", form, quality=100)
    pixels, found = read(tmp_path / "m.png", MaskOptions())
    assert found == ["format"] and np.abs(pixels.astype(int) - values).max() <= (4 if form == "JPEG" else 0)
    data, problems = read_mask(tmp_path / "m.png", SIZE, where="x", options=MaskOptions(kind="parsing"))
    assert (data is None) == (form == "JPEG") and ("blurs labels" in problems[0].detail) == (form == "JPEG")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (SOFT, SOFT),
        (SOFT > 99, np.where(SOFT > 99, 255, 0)),
        (SOFT / np.float32(255), SOFT),
        (np.asfortranarray(SOFT[None]).astype(np.int64), SOFT),
        (np.zeros((9, 6, 15)), "an array of 9 x 6 x 15"),
        (np.full((9, 6), np.nan), "from nan to nan"),
        (np.full((9, 6), 256), "from 256 to 256"),
        (np.array([[None]]), "not a readable NumPy file"),
    ],
)
def test_masks_that_are_numpy_files(
    tmp_path: Path, values: NDArray[np.generic], expected: NDArray[np.uint8] | str
) -> None:
    np.save(tmp_path / "m.npy", values, allow_pickle=True)
    data, found = read_mask(tmp_path / "m.npy", SIZE, where="x")
    if isinstance(expected, str):
        assert data is None and found[0].kind == "unreadable" and expected in found[0].detail
    else:
        assert data is not None and [problem.kind for problem in found] == ["format"]
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), expected)


def test_a_numpy_file_that_lies_about_its_size(tmp_path: Path) -> None:
    np.save(tmp_path / "m.npy", SOFT)
    data = (tmp_path / "m.npy").read_bytes().replace(b"(9, 6)", b"(9, 7)")
    for spoiled in (data, data[:-1], data[:20]):
        (tmp_path / "m.npy").write_bytes(spoiled)
        assert read_mask(tmp_path / "m.npy", SIZE, where="x")[1][0].kind == "unreadable"
