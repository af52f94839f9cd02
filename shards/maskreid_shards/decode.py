"""Bytes to pictures, trusting nothing: few formats and modes, the header's size checked before any
decoding."""

import io
import warnings
from dataclasses import dataclass
from typing import Protocol

from PIL import Image
from PIL.ImageFile import ImageFile

from .errors import ShardError

MAX_PIXELS = 16_000_000  # a stricter limit than that of Pillow, whose warnings would be second lines
warnings.simplefilter("ignore", Image.DecompressionBombWarning)
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP")
MASK_FORMATS = ("PNG",)
# The modes (Pillow's names) that an image in a shard may have, and what becomes of each as RGB. Other modes
# are refused: `convert("RGB")` would cut 16-bit grey off at 255 and so make it white.
IMAGE_MODES = {
    "RGB": "as it is",
    "L": "grey in three channels",
    "1": "black and white in three channels",
    "P": "the palette's colours, transparency left out",
    "RGBA": "alpha left out",
    "LA": "grey in three channels, alpha left out",
    "CMYK": "Pillow's conversion, without a colour profile",
}
# 16-bit grey, whose image is scaled to 8 bits while it is converted (older versions of Pillow say "I").
GREY_16_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I")
EXIF_ORIENTATION = 0x0112
UPRIGHT = 1


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


@dataclass(frozen=True)
class CheckedPicture:
    """A sound picture: `size` is (width, height) as stored, `mode` Pillow's; `orientation` is EXIF's, 1 to 8,
    where 1 is upright."""

    size: tuple[int, int]
    mode: str
    orientation: int


def checked_picture(data: bytes, *, formats: tuple[str, ...], where: str) -> CheckedPicture:
    """What a sound picture is. Raises ShardError as `decode` does.

    All of a JPEG's coded data is read, but only an eighth of its rows and columns is computed.
    """
    picture = _open(data, formats, where, MAX_PIXELS)
    size, mode = picture.size, picture.mode
    picture.draft("L", (1, 1))
    _load(picture, where)
    return CheckedPicture(size, mode, exif_orientation(picture))


def exif_orientation(picture: Image.Image) -> int:
    """EXIF's orientation, 1 to 8; 1 (upright) without one, or where it is none of these."""
    if not {"exif", "xmp", "Raw profile type exif"} & picture.info.keys():
        return UPRIGHT
    try:
        value = picture.getexif().get(EXIF_ORIENTATION, UPRIGHT)
    except Exception:  # arbitrary bytes again: whoever shows the picture cannot read them either
        return UPRIGHT
    return value if isinstance(value, int) and UPRIGHT <= value <= 8 else UPRIGHT


def header_orientation(data: bytes) -> int:
    """EXIF's orientation by the header alone; 1 for what is no picture."""
    try:
        return exif_orientation(_open(data, IMAGE_FORMATS, "", MAX_PIXELS))
    except ShardError:
        return UPRIGHT


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
    image = as_rgb(decode(raw.image, formats=IMAGE_FORMATS, where=where, max_pixels=max_pixels), where)
    return image, decode_mask(raw, image.size, max_pixels=max_pixels)


def as_rgb(image: Image.Image, where: str) -> Image.Image:
    """The image as IMAGE_MODES says. Raises ShardError for a mode that is not there."""
    if image.mode not in IMAGE_MODES:
        raise ShardError(f"{where}: mode {image.mode} is none of {', '.join(IMAGE_MODES)}; convert it again")
    return image.convert("RGB")


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
