"""The mask policy: what is wrong with a mask, what is done about it, and the count of it."""

import io
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from PIL import Image

from .decode import MASK_FORMATS, MAX_PIXELS, decode
from .errors import ShardError

OnBadMask = Literal["fail", "full", "skip"]
MaskProblemKind = Literal["missing", "unreadable", "mode", "size", "empty"]

PERSON_LEVEL = 128
KINDS: dict[MaskProblemKind, str] = {
    "missing": "no mask file",
    "unreadable": "not a readable PNG",
    "mode": "not 8-bit grey",
    "size": "another size than the image",
    "empty": f"no pixel at {PERSON_LEVEL} or above (255 = person)",
}


@dataclass(frozen=True)
class MaskProblem:
    """One bad mask: its kind, the file, and the detail (the size found, the mode found, ...)."""

    kind: MaskProblemKind
    where: str
    detail: str


@dataclass(frozen=True)
class MaskReport:
    """Counts of bad masks by kind (every kind has an entry) and a few examples as text, in reading order."""

    policy: OnBadMask
    checked: int
    counts: dict[str, int]
    examples: tuple[str, ...]

    @classmethod
    def of(
        cls, problems: Iterable[MaskProblem], *, policy: OnBadMask, checked: int, examples: int = 5
    ) -> "MaskReport":
        """`examples` of each kind are kept."""
        counts: Counter[str] = Counter()
        kept = []
        for problem in problems:
            counts[problem.kind] += 1
            if counts[problem.kind] <= examples:
                kept.append(f"{problem.where}: {KINDS[problem.kind]} ({problem.detail})")
        return cls(policy, checked, {kind: counts[kind] for kind in KINDS}, tuple(kept))

    @property
    def bad(self) -> int:
        return sum(self.counts.values())


def check_policy(policy: str) -> None:
    """Raise ShardError unless `policy` is one of fail, full, skip."""
    if policy not in get_args(OnBadMask):
        raise ShardError(f"mask policy {policy!r}: use one of {', '.join(get_args(OnBadMask))}")


def read_mask(
    path: Path | None, size: tuple[int, int], *, where: str
) -> tuple[bytes, None] | tuple[None, MaskProblem]:
    """The bytes of a valid mask for an image of `size` (width, height), or what is wrong with it.

    A mask with few foreground pixels is valid; one without any at PERSON_LEVEL or above is empty: so is a 0/1
    label map, which would otherwise train as "no person anywhere".
    """
    try:
        data = path.read_bytes() if path is not None else None
    except FileNotFoundError:
        data = None
    except OSError as error:
        return None, MaskProblem("unreadable", where, str(error.strerror))
    if data is None:
        # Details go into the manifest, so they must not hold the path of the data set's folder.
        expected = "none was given" if path is None else f"expected {path.parent.name}/{path.name}"
        return None, MaskProblem("missing", where, expected)
    try:
        mask = decode(data, formats=MASK_FORMATS, where="mask", max_pixels=MAX_PIXELS)
    except ShardError as error:
        return None, MaskProblem("unreadable", where, str(error).removeprefix("mask: "))
    if mask.mode != "L":
        return None, MaskProblem("mode", where, f"mode {mask.mode}")
    if mask.size != size:
        return None, MaskProblem(
            "size", where, f"{mask.size[0]} x {mask.size[1]}, the image is {size[0]} x {size[1]}"
        )
    highest = max(level for level, count in enumerate(mask.histogram()) if count)
    if highest < PERSON_LEVEL:
        return None, MaskProblem("empty", where, f"highest value {highest}")
    return data, None


def full_mask(size: tuple[int, int]) -> bytes:
    """PNG bytes of the mask that keeps the whole image of `size` (width, height)."""
    buffer = io.BytesIO()
    Image.new("L", size, 255).save(buffer, "PNG")
    return buffer.getvalue()
