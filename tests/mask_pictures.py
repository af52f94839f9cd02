"""Pictures that are masks, in every form, and what they mean by a loop over pixels; for tests."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from maskreid_shards import MaskOptions
from maskreid_shards.masks.policy import read_mask

SIZE = (6, 9)
LABELS = np.random.default_rng(3).choice([0, 1, 2, 15], (SIZE[1], SIZE[0])).astype(np.uint8)
SOFT = np.random.default_rng(4).integers(0, 256, (SIZE[1], SIZE[0])).astype(np.uint8)

# How each form of PNG holds the values of an 8-bit array.
SAVES: dict[str, Callable[[NDArray[np.uint8]], Image.Image]] = {
    "grey": Image.fromarray,
    "palette": lambda values: palette(values),
    "16 bit": lambda values: Image.fromarray(values.astype(np.uint16)),
    "rgb": lambda values: Image.fromarray(np.stack([values] * 3, axis=2)),
}


def palette(values: NDArray[np.uint8]) -> Image.Image:
    picture = Image.frombytes("P", values.shape[::-1], values.tobytes())
    picture.putpalette([channel for value in range(256) for channel in (value, 255 - value, 7)])
    return picture


def saved(path: Path, picture: Image.Image, **options: int) -> Path:
    picture.save(path, "PNG", **options)
    return path


def read(
    path: Path, options: MaskOptions, size: tuple[int, int] = SIZE
) -> tuple[NDArray[np.uint8], list[str]]:
    """The pixels read, and the kinds of what was counted."""
    data, found = read_mask(path, size, where="x", options=options)
    assert data is not None, found
    again, _ = read_mask(path, size, where="x", options=options)
    assert again == data
    picture = Image.open(io.BytesIO(data))
    assert (picture.mode, picture.format, picture.size) == ("L", "PNG", size) and data[24] == 8
    return np.asarray(picture), [problem.kind for problem in found]


def by_pixel(values: NDArray[np.uint8], options: MaskOptions) -> NDArray[np.uint8]:
    result = np.zeros_like(values)
    for row in range(values.shape[0]):
        for column in range(values.shape[1]):
            value = int(values[row, column])
            if options.kind == "soft":
                result[row, column] = 255 - value if options.invert else value
            else:
                person = value in options.person_labels if options.kind == "label" else value > 0
                result[row, column] = 255 if person != options.invert else 0
    return result


def few_bits_png(path: Path, values: NDArray[np.uint8], bits: int) -> Path:
    """A grey PNG of 1, 2 or 4 bits a pixel, after the PNG specification."""
    rows = b""
    for row in values:
        digits = "".join(f"{value:0{bits}b}" for value in row)
        digits += "0" * (-len(digits) % 8)
        rows += b"\0" + bytes(int(digits[i : i + 8], 2) for i in range(0, len(digits), 8))
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, 0, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n"
    for kind, content in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        data += (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )
    path.write_bytes(data)
    return path


def cut_out(mode: str) -> Image.Image:
    """A picture whose alpha is SOFT."""
    picture = Image.effect_noise(SIZE, 90).convert(mode)
    picture.putalpha(Image.fromarray(SOFT))
    return picture
