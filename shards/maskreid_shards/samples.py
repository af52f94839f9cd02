"""What a converter hands to the writer: a flat list of sources, whatever layout they came from."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

JUNK_PID = -1
DISTRACTOR_PID = 0


@dataclass(frozen=True)
class Source:
    """One image-mask pair on disk.

    `key` names it in the shard (no dots); `name` is its path relative to the data set's folder, kept in the
    sample's json. pid > 0 is an identity, 0 a distractor, -1 junk; camid counts from 1. `mask_path` may not
    exist: the mask policy decides then.
    """

    path: Path
    mask_path: Path | None
    pid: int
    camid: int
    split: str
    key: str
    name: str


@dataclass(frozen=True)
class Layout:
    """A scanned data set: the sources of each split by its name, and the names of the ignored files."""

    name: str
    splits: dict[str, tuple[Source, ...]]
    strays: tuple[str, ...] = ()


def sample_key(pid: int, number: int) -> str:
    """Key of an identity's `number`-th image in its split, such as `p00000002_00013` or `junk_00001`.

    Without dots, because WebDataset cuts a member's name at the first dot.
    """
    if pid == JUNK_PID:
        return f"junk_{number:05d}"
    if pid == DISTRACTOR_PID:
        return f"distractor_{number:05d}"
    return f"p{pid:08d}_{number:05d}"


def numbered(pids: Iterable[int]) -> list[str]:
    """Keys for the pids of one split, in the order given: each identity's images are numbered from 0."""
    seen: dict[int, int] = {}
    keys = []
    for pid in pids:
        number = seen.get(pid, 0)
        seen[pid] = number + 1
        keys.append(sample_key(pid, number))
    return keys
