"""The journal of a gallery: a line an event, crc32 of the rest and then JSON."""

import json
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from maskreid_dist.errors import UserError
from maskreid_shards.opening import parse_json, read_file


class GalleryError(UserError):
    """A gallery that is missing, damaged, or of another network."""


ROWS_BYTES = 8 << 30


@dataclass
class JournalRows:
    """What the journal says of every row; `alive`: not taken out. `finished`: bytes of the journal's whole
    lines."""

    keys: list[str] = field(default_factory=list)
    pids: list[int] = field(default_factory=list)
    camids: list[int] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    alive: list[bool] = field(default_factory=list)
    checks: list[tuple[int, int, int]] = field(default_factory=list)  # first row, rows, crc32 of their bytes
    finished: int = 0


def read_journal(path: Path) -> JournalRows:
    """Whole lines only: a last one without its end was not finished. Raises GalleryError for a damaged
    one."""
    rows = JournalRows()
    try:
        lines = read_file(path, ROWS_BYTES).split(b"\n")
    except OSError as error:
        raise GalleryError(f"{path}: {error.strerror}; the gallery is damaged: make it again") from None
    for number, line in enumerate(lines[:-1], 1):
        try:
            if int(line[:8], 16) != zlib.crc32(line[9:]):
                raise ValueError("checksum")
            apply_event(rows, parse_json(line[9:]))
        except (ValueError, KeyError, TypeError, IndexError):
            raise GalleryError(f"{path}: line {number} is damaged; make the gallery again") from None
        rows.finished += len(line) + 1
    return rows


def event_line(event: dict[str, Any]) -> bytes:
    """As it stands in the file."""
    text = json.dumps(event, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def apply_event(rows: JournalRows, event: dict[str, Any]) -> None:
    """Add what an event says. Raises ValueError, KeyError, TypeError or IndexError for one that says nothing
    sensible."""
    if "add" in event:
        keys: list[str] = event["add"]
        rows.checks.append((len(rows.keys), len(keys), event["crc32"]))
        rows.keys += keys
        rows.pids += event["pids"]
        rows.camids += event["camids"]
        rows.sources += event["sources"] or [""] * len(keys)
        rows.alive += [True] * len(keys)
        if not len(rows.keys) == len(rows.pids) == len(rows.camids) == len(rows.sources):
            raise ValueError("as many of each")
        return
    for row in event["forget"]:
        rows.alive[row] = False
