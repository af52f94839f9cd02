"""The mask policy: what is wrong with a mask, what is done about it, and the count of it."""

import io
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..decode import MAX_PIXELS, decode
from ..errors import ShardError
from ..opening import PICTURE_BYTES, read_file
from .arrays import MAGIC as ARRAY_MAGIC
from .arrays import array_picture
from .maker import read_maker
from .options import LABEL_MODES, PNG_BIT_DEPTH, MaskOptions, person_mask

OnBadMask = Literal["fail", "full", "skip"]
BadKind = Literal["missing", "unreadable", "mode", "empty", "swapped", "labels"]
ChangeKind = Literal["resized", "aspect", "grey", "alpha", "format"]

PERSON_LEVEL = 128
MAX_LABELS = 16
LOOKS = 256  # pixels that are looked at before all are
EDGE = 3
# What a mask may be on disk; in a shard it is a PNG.
SOURCE_FORMATS = ("PNG", "JPEG", "BMP", "TIFF")
_LOW, _INVERTED = bytes(range(PERSON_LEVEL)), bytes(range(255, -1, -1))
KINDS: dict[str, str] = {
    "missing": "no mask file",
    "unreadable": "not a readable picture",
    "mode": "not 8-bit grey",
    "empty": f"no pixel at {PERSON_LEVEL} or above (255 = person)",
}
# Bad as well, but counted only where they occur: manifests written before these kinds stay as they were.
RARE_KINDS: dict[str, str] = {
    "swapped": "width and height swapped against the image",
    "labels": "a label map, read as soft grey",
}
# A mask that is good once it has been changed; these are counted only where they occur.
CHANGES: dict[str, str] = {
    "resized": "another size than the image, so resized",
    "aspect": "another aspect than the image, so resized and distorted",
    "grey": "grey in another mode, so stored as 8-bit grey",
    "alpha": "the transparency of a cut-out, stored as 8-bit grey",
    "format": "no PNG, so stored as one",
}


ALL_KINDS = {**KINDS, **RARE_KINDS, **CHANGES}
DEFAULT_MASKS = MaskOptions()


@dataclass(frozen=True)
class MaskProblem:
    """A bad or changed mask: its kind, the file, and the detail (the size found, the mode found, ...)."""

    kind: BadKind | ChangeKind
    where: str
    detail: str


@dataclass(frozen=True)
class MaskReport:
    """Counts of bad and changed masks by kind, and a few examples as text, in reading order.

    Every bad kind has an entry in `counts`. `form` is what the pixels meant (`MaskOptions.describe`), empty
    for 8-bit grey with 255 = person. `maker` is the network that made the masks, its weights' sha256 and
    licence (`read_maker`), empty where it is not known.
    """

    policy: OnBadMask
    checked: int
    counts: dict[str, int]
    examples: tuple[str, ...]
    form: str = ""
    maker: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        problems: Iterable[MaskProblem],
        *,
        policy: OnBadMask,
        checked: int,
        form: str = "",
        maker: dict[str, str] | None = None,
        examples: int = 5,
    ) -> "MaskReport":
        """`examples` of each kind are kept."""
        counts: Counter[str] = Counter()
        kept = []
        for problem in problems:
            counts[problem.kind] += 1
            if counts[problem.kind] <= examples:
                kept.append(f"{problem.where}: {ALL_KINDS[problem.kind]} ({problem.detail})")
        reported = {kind: counts[kind] for kind in ALL_KINDS if kind in KINDS or counts[kind]}
        return cls(policy, checked, reported, tuple(kept), form, maker or {})

    @property
    def bad(self) -> int:
        return sum(count for kind, count in self.counts.items() if kind not in CHANGES)

    def warnings(self) -> list[str]:
        """What must not be overlooked: most masks were bad."""
        if 2 * self.bad <= self.checked:
            return []
        done = "FULL ONES TOOK THEIR PLACE" if self.policy == "full" else "THEIR IMAGES WERE LEFT OUT"
        kind = max((kind for kind in self.counts if kind not in CHANGES), key=self.counts.__getitem__)
        remedy = "; --segment pose makes masks" if kind == "missing" else ""
        return [
            f"MOST MASKS WERE BAD, {self.bad} of {self.checked}, mostly {ALL_KINDS[kind]}: {done}{remedy}"
        ]


def check_policy(policy: str) -> None:
    """Raise ShardError unless `policy` is one of fail, full, skip."""
    if policy not in get_args(OnBadMask):
        raise ShardError(f"mask policy {policy!r}: use one of {', '.join(get_args(OnBadMask))}")


def read_mask(
    path: Path | None,
    size: tuple[int, int],
    *,
    where: str,
    options: MaskOptions = DEFAULT_MASKS,
    image: bytes = b"",
) -> tuple[bytes | None, tuple[MaskProblem, ...]]:
    """The PNG bytes of a valid mask for an image of `size` (width, height), and what was wrong or changed.

    The bytes are None for a bad mask. They are the file's own when it is an 8-bit grey mask of the image's
    size already; otherwise they are encoded anew, alike each time: resized bilinearly ("soft") or to the
    nearest pixel (labels). A mask with few foreground pixels is valid; one without any at PERSON_LEVEL or
    above is empty: so is a 0/1 label map read as "soft", which would otherwise train as "no person anywhere".
    """
    if path is None:
        return None, (_missing(path, where),)
    try:
        data = read_file(path, PICTURE_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return None, (_missing(path, where),)
    except OSError as error:
        return None, (MaskProblem("unreadable", where, str(error.strerror)),)
    if data and data == image:
        raise ShardError(f"{path}: mask of {where}: is the image itself; say where the masks are (--masks)")
    try:
        picture = open_mask(data)
    except ShardError as error:
        return None, (MaskProblem("unreadable", where, str(error).removeprefix("mask: ")),)
    return _valid_mask(picture, data, size, where, options)


def open_mask(data: bytes) -> Image.Image:
    """The picture in a mask's file. Raises ShardError: none, or too large a one."""
    if data.startswith(ARRAY_MAGIC):
        return array_picture(data)
    return decode(data, formats=SOURCE_FORMATS, where="mask", max_pixels=MAX_PIXELS)


def find_mask(path: Path | None, where: str) -> MaskProblem | None:
    """The problem that there is no mask file; None where there is one. Nothing is opened."""
    return None if path is not None and path.exists() else _missing(path, where)


def _missing(path: Path | None, where: str) -> MaskProblem:
    # Details go into the manifest, so they must not hold the path of the data set's folder.
    expected = "none was given" if path is None else f"expected {path.parent.name}/{path.name}"
    return MaskProblem("missing", where, expected)


def _valid_mask(
    picture: Image.Image, data: bytes, size: tuple[int, int], where: str, options: MaskOptions
) -> tuple[bytes | None, tuple[MaskProblem, ...]]:
    if options.kind != "soft" and picture.format == "JPEG":
        return None, (MaskProblem("mode", where, "a JPEG, which blurs labels; give them as PNG"),)
    mode = picture.mode
    picture, is_alpha = without_alpha(picture, options)
    mask = person_mask(picture, data, options)
    if mask is None:
        labels_help = mode in ("P", "I;16", "I")
        hint = "; of a label map, name the person's labels: --mask-kind label --person-label N"
        return None, (MaskProblem("mode", where, f"mode {mode}{hint if labels_help else ''}"),)
    labels = label_levels(mask, inverted=options.invert) if options.kind == "soft" else ()
    if labels:
        found = ", ".join(map(str, labels))
        detail = f"values {found}; name the person's: --mask-kind label --person-label N"
        return None, (MaskProblem("labels", where, detail),)
    changes = []
    if is_alpha:
        changes.append(MaskProblem("alpha", where, f"mode {mode}"))
    elif mode not in (("L",) if options.kind == "soft" else LABEL_MODES):
        changes.append(MaskProblem("grey", where, f"mode {mode}"))
    elif picture.format != "PNG":
        changes.append(MaskProblem("format", where, picture.format or "NumPy"))
    if mask.size != size:
        detail = f"{mask.size[0]} x {mask.size[1]}, the image is {size[0]} x {size[1]}"
        if not same_aspect(mask.size, size):
            if same_aspect(mask.size[::-1], size):
                return None, (MaskProblem("swapped", where, f"{detail}; turn the one or the other"),)
            changes.append(MaskProblem("aspect", where, detail))
        else:
            changes.append(MaskProblem("resized", where, detail))
        filtering = Image.Resampling.BILINEAR if options.kind == "soft" else Image.Resampling.NEAREST
        mask = mask.resize(size, filtering)
    highest = int(mask.getextrema()[1])  # type: ignore[arg-type]  # of one band: two numbers
    if highest < PERSON_LEVEL:
        return None, (MaskProblem("empty", where, f"highest value {highest}{_why_empty(highest, options)}"),)
    as_stored = mask is picture and picture.format == "PNG" and data[PNG_BIT_DEPTH] == 8
    return data if as_stored else png_bytes(mask), tuple(changes)


def _why_empty(highest: int, options: MaskOptions) -> str:
    """What an empty mask most probably is; empty where nothing is known."""
    if read_maker(options.location):
        return "; the network that made it found nobody"
    labels = highest and options.kind == "soft"
    return "; a label map needs its person labels: --mask-kind label --person-label N" if labels else ""


def without_alpha(picture: Image.Image, options: MaskOptions) -> tuple[Image.Image, bool]:
    """A picture with transparency as one without, and whether that is the transparency itself: it is the
    mask of a cut-out where it is not the same everywhere, and means nothing where it is."""
    if picture.mode not in ("RGBA", "LA"):
        return picture, False
    alpha = picture.getchannel("A")
    lowest, highest = alpha.getextrema()
    if lowest != highest:
        return (alpha, True) if options.kind == "soft" else (picture, False)
    return picture.convert(picture.mode[:-1]), False


def same_aspect(first: tuple[int, int], second: tuple[int, int]) -> bool:
    """Whether one (width, height) is the other one scaled, up to a pixel of rounding in the smaller."""
    (small_width, small_height), (width, height) = sorted((first, second))
    return (
        abs(small_height - height * small_width / width) <= 1
        or abs(small_width - width * small_height / height) <= 1
    )


def label_levels(mask: Image.Image, *, inverted: bool = False) -> tuple[int, ...]:
    """The levels of what looks like a label map read as a soft mask, empty for any other mask.

    It has few levels, a single one of them at PERSON_LEVEL or above (255, most often), and one below that
    fills a square of 3 x 3 pixels, as the soft edge of a mask does not; or several at PERSON_LEVEL or above,
    and one below that fills a square of an eighth of the smaller side, as the steps of a mask that was
    enlarged do not. `inverted`: the levels of the file were subtracted from 255.
    """
    pixels = mask.tobytes()
    if inverted:
        pixels = pixels.translate(_INVERTED)
    # Deleting bytes is much faster than a histogram, and most hard masks end here.
    between = pixels.translate(None, b"\x00\xff")
    if not between:
        return ()
    high = between.translate(None, _LOW)
    one_high = high.count(high[0]) == len(high) and 255 not in pixels if high else 255 in pixels
    if (not high and 255 not in pixels) or len(high) == len(between):
        return ()
    if len(set(between[:LOOKS])) > MAX_LABELS:  # most soft masks end here
        return ()
    levels = sorted(set(pixels))
    if len(levels) > MAX_LABELS:
        return ()
    values = np.frombuffer(pixels, np.uint8).reshape(mask.size[::-1])
    side = EDGE if one_high else max(EDGE + 1, min(mask.size) // 8)
    regions = (_fills_a_square(values == level, side) for level in levels if 0 < level < PERSON_LEVEL)
    return tuple(levels) if any(regions) else ()


def _fills_a_square(there: NDArray[np.bool_], side: int) -> bool:
    height, width = there.shape
    if height < side or width < side:
        return False
    windows = np.lib.stride_tricks.sliding_window_view(there, (side, side))
    return bool(windows.all((2, 3)).any())


def full_mask(size: tuple[int, int]) -> bytes:
    """PNG bytes of the mask that keeps the whole image of `size` (width, height)."""
    return png_bytes(Image.new("L", size, 255))


def png_bytes(mask: Image.Image) -> bytes:
    """The mask as a PNG file; alike each time with the same Pillow."""
    buffer = io.BytesIO()
    mask.save(buffer, "PNG")
    return buffer.getvalue()
