"""Landmarks of persons beside their masks, as `maskreid segment --landmarks` leaves them: `a.landmarks.json`
beside `a.png`, a list of [x, y, visibility], pixels of the image and a probability."""

import json
from pathlib import Path

from ..errors import ShardError
from ..opening import MANIFEST_BYTES, read_file
from ..samples import Source

Landmarks = list[list[float]]


def landmarks_file(mask: Path) -> Path:
    return mask.with_suffix(".landmarks.json")


def read_landmarks(source: Source) -> Landmarks:
    """Those of the source's image. Raises ShardError: no such file, or another content."""
    again = "make them with `maskreid segment --landmarks`"
    if source.mask_path is None:
        raise ShardError(f"{source.name}: landmarks are beside its mask, and it has none; {again}")
    file = landmarks_file(source.mask_path)
    try:
        found = json.loads(read_file(file, MANIFEST_BYTES))
    except OSError as error:
        raise ShardError(
            f"{file}: landmarks of {source.name}: cannot be read ({error.strerror}); {again}"
        ) from None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, list) or not all(_is_point(point) for point in found):
        raise ShardError(f"{file}: not landmarks of an image; remove it, and {again}")
    return found


def _is_point(point: object) -> bool:
    return isinstance(point, list) and len(point) == 3 and all(type(value) in (int, float) for value in point)
