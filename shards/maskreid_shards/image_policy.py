"""Images that a shard would show wrongly as they are: what is changed in them, and the count of it."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from .decode import GREY_16_MODES, IMAGE_MODES, UPRIGHT, CheckedPicture, header_orientation
from .errors import BadImageError, ShardError
from .opening import read_head
from .samples import Source

OnOrientation = Literal["fail", "transpose", "ignore"]
ChangeKind = Literal["transposed", "lying", "grey16", "dark16"]
CHANGES: dict[ChangeKind, str] = {
    "transposed": "with an EXIF orientation, stored upright as PNG",
    "lying": "with an EXIF orientation that was ignored, stored as they lie",
    "grey16": "16-bit grey, stored as 8-bit PNG (value / 257)",
    "dark16": "16-bit grey of few bits, stored DARK as 8-bit PNG (value / 257); scale them to 65535 first",
}
# 65535 becomes 255: the same for every image, so that equal grey stays equal.
GREY_16_TO_8 = 257
DARK = 2**14  # an image all of whose values lie below comes from a sensor of 14 bits or fewer
HEADER_BYTES = 256 * 1024


@dataclass(frozen=True)
class ImageChange:
    """An image that was changed, or could have been: its kind, its name in the data set, the detail."""

    kind: ChangeKind
    where: str
    detail: str


class OrientationError(ShardError):
    """An image with an EXIF orientation under the policy "fail"."""


def check_orientation_policy(policy: str) -> None:
    """Raise ShardError unless `policy` is one of fail, transpose, ignore."""
    if policy not in get_args(OnOrientation):
        raise ShardError(f"orientation policy {policy!r}: use one of {', '.join(get_args(OnOrientation))}")


def needed_changes(
    found: CheckedPicture, source: Source, on_orientation: OnOrientation
) -> tuple[ImageChange, ...]:
    """Raises ShardError for a mode that is not in the table, OrientationError under "fail"."""
    if found.mode not in (*IMAGE_MODES, *GREY_16_MODES):
        raise BadImageError(
            f"{source.path}: mode {found.mode}, and images are {', '.join(IMAGE_MODES)}; convert it first",
            "mode",
        )
    changes = []
    if found.mode in GREY_16_MODES:
        changes.append(ImageChange("grey16", source.name, f"mode {found.mode}"))
    if found.orientation != UPRIGHT:
        if on_orientation == "fail":
            raise OrientationError(str(source.path))
        kind: ChangeKind = "transposed" if on_orientation == "transpose" else "lying"
        changes.append(ImageChange(kind, source.name, f"orientation {found.orientation}"))
    return tuple(changes)


def changed_picture(
    picture: Image.Image, changes: tuple[ImageChange, ...]
) -> tuple[Image.Image, tuple[ImageChange, ...]]:
    """The decoded picture after the changes, in a mode that PNG has, and the changes with what was found."""
    kinds = {change.kind for change in changes}
    if "grey16" in kinds:
        values, info = np.asarray(picture), picture.info
        highest = int(values.max())
        kind: ChangeKind = "grey16" if highest >= DARK else "dark16"
        changes = tuple(
            replace(change, kind=kind, detail=f"values up to {highest}")
            if change.kind == "grey16"
            else change
            for change in changes
        )
        picture = Image.fromarray(eight_bits(values))
        picture.info.update(info)
    if "transposed" in kinds:
        picture = ImageOps.exif_transpose(picture)
    picture = picture if picture.mode in ("L", "RGB") else picture.convert("RGB")
    picture.info.clear()  # Pillow would write its profile, gamma and the like into the file
    return picture, changes


def eight_bits(values: NDArray[Any]) -> NDArray[np.uint8]:
    """16-bit values, 0..65535, as the nearest of 0..255."""
    return ((values.astype(np.int64) + GREY_16_TO_8 // 2) // GREY_16_TO_8).clip(0, 255).astype(np.uint8)


def orientation_message(error: OrientationError, sources: Iterable[Source]) -> str:
    """The error for people, with the count over all `sources`, by their headers."""
    sources = [source for source in sources if source.array is None]
    count = sum(_orientation(source) != UPRIGHT for source in sources)
    return (
        f"{error}: has an EXIF orientation, as {count} of {len(sources)} images have: stored as it lies it "
        "would not fit an upright mask; choose --on-orientation transpose (store upright) or ignore (as it "
        "lies)"
    )


def _orientation(source: Source) -> int:
    try:
        return header_orientation(read_head(source.path, HEADER_BYTES)[0])
    except OSError:
        return UPRIGHT


def change_lines(changes: Iterable[ImageChange], examples: int = 3) -> list[str]:
    """The report for people: a count and a few names for each kind."""
    found: dict[ChangeKind, list[ImageChange]] = {}
    for change in changes:
        found.setdefault(change.kind, []).append(change)
    lines = []
    for kind, text in CHANGES.items():
        if kind in found:
            names = ", ".join(f"{change.where} ({change.detail})" for change in found[kind][:examples])
            lines.append(f"images: {len(found[kind])} {text}: {names}")
    return lines
