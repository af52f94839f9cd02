"""Bytes to pictures, trusting nothing: few formats, the header's size checked before any decoding."""

import io
from typing import Protocol

from PIL import Image
from PIL.ImageFile import ImageFile

from .errors import ShardError

MAX_PIXELS = 16_000_000
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP")
MASK_FORMATS = ("PNG",)


class TooManyPixels(ShardError):
    """A picture larger than the limit, known from its header: nothing was decoded."""


class Pair(Protocol):
    """What `decode_pair` needs of a sample; `reading.RawPair` has it."""

    @property
    def shard(self) -> str: ...
    @property
    def key(self) -> str: ...
    @property
    def image(self) -> bytes: ...
    @property
    def mask(self) -> bytes: ...


def checked_size(data: bytes, *, formats: tuple[str, ...], where: str) -> tuple[int, int]:
    """(width, height) of a sound picture. Raises ShardError as `decode` does.

    All of a JPEG's coded data is read, but only an eighth of its rows and columns is computed.
    """
    picture = _open(data, formats, where, MAX_PIXELS)
    size = picture.size
    picture.draft("L", (1, 1))
    _load(picture, where)
    return size


def decode(data: bytes, *, formats: tuple[str, ...], where: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode a picture completely, in its own mode.

    Raises ShardError naming `where`: not one of `formats`, more than `max_pixels`, truncated or broken.
    """
    picture = _open(data, formats, where, max_pixels)
    _load(picture, where)
    return picture


def _open(data: bytes, formats: tuple[str, ...], where: str, max_pixels: int) -> ImageFile:
    try:
        # The format comes from the magic bytes; opening reads the header only.
        picture = Image.open(io.BytesIO(data), formats=formats)
    except Image.DecompressionBombError as error:
        raise TooManyPixels(f"{where}: {_brief(error)}; shrink it") from error
    except Exception as error:
        # A decoder fed with arbitrary bytes raises nearly anything: each becomes one line.
        raise ShardError(
            f"{where}: not a readable {' or '.join(formats)} file ({len(data)} bytes); replace it"
        ) from error
    width, height = picture.size
    if width * height > max_pixels:
        raise TooManyPixels(
            f"{where}: {width} x {height} pixels, more than the limit of {max_pixels}; shrink it"
        )
    return picture


def _load(picture: ImageFile, where: str) -> None:
    try:
        picture.load()
    except Exception as error:
        raise ShardError(
            f"{where}: truncated or broken {picture.format} data ({_brief(error)}); replace it"
        ) from error


def decode_pair(raw: Pair, *, max_pixels: int = MAX_PIXELS) -> tuple[Image.Image, Image.Image]:
    """A sample's RGB image and its 8-bit mask (mode L, 255 = person), brought to the image's size.

    Raises ShardError naming the shard and the key.
    """
    where = f"{raw.shard}: {raw.key}: image"
    image = decode(raw.image, formats=IMAGE_FORMATS, where=where, max_pixels=max_pixels).convert("RGB")
    return image, decode_mask(raw, image.size, max_pixels=max_pixels)


def decode_mask(raw: Pair, size: tuple[int, int], *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """A sample's mask alone, as `decode_pair` gives it with an image of this (width, height)."""
    where = f"{raw.shard}: {raw.key}"
    mask = decode(raw.mask, formats=MASK_FORMATS, where=f"{where}: mask", max_pixels=max_pixels)
    if mask.mode != "L":
        raise ShardError(f"{where}: mask of mode {mask.mode}, not 8-bit grey (L); convert the data set again")
    return mask if mask.size == size else mask.resize(size, Image.Resampling.NEAREST)


def image_size(raw: Pair, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """(width, height) of a sample's image by its header alone. Raises ShardError as `decode_pair` does for a
    bad one."""
    return _open(raw.image, IMAGE_FORMATS, f"{raw.shard}: {raw.key}: image", max_pixels).size


def _brief(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
