"""Who made the masks in a folder: the note that `maskreid segment` leaves beside them."""

import json
from pathlib import Path

from ..errors import ShardError
from ..opening import MANIFEST_BYTES, read_file

NOTE = "segmentation.json"
FIELDS = ("model", "weights_sha256", "input_height", "licence")


def read_maker(location: str | None) -> dict[str, str]:
    """Of the folder `location`: the network, its weights' sha256, their licence; empty without a note.

    Raises ShardError: a note that is none.
    """
    note = Path(location, NOTE) if location is not None and "{" not in location else None
    if note is None or not note.is_file():
        return {}
    try:
        content = json.loads(read_file(note, MANIFEST_BYTES))
        return {name: str(content[name]) for name in FIELDS if name in content}
    except (OSError, ValueError, TypeError, RecursionError):
        raise ShardError(
            f"{note}: not a note of how masks were made; remove it, or make them again"
        ) from None
