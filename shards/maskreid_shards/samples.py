"""What a converter hands to the writer: a flat list of sources, whatever layout they came from."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

JUNK_PID = -1
DISTRACTOR_PID = 0


@dataclass(frozen=True, slots=True)
class Source:
    """One image-mask pair on disk.

    `key` names it in the shard (no dots); `name` is its path relative to the data set's folder, kept in the
    sample's json. pid > 0 is an identity, 0 a distractor, -1 junk; camid counts from 1. `mask_path` may not
    exist: the mask policy decides then. `array` names an image inside `path`, where that is a file of many;
    `dataset` replaces the conversion's name of the data set, where several are merged. `identity` is the pid
    as it stands in the data set, where that is another text than the number.
    """

    path: Path
    mask_path: Path | None
    pid: int
    camid: int
    split: str
    key: str
    name: str
    array: str | None = None
    dataset: str | None = None
    identity: str = ""


@dataclass(frozen=True)
class Layout:
    """A scanned data set: the sources of each split by its name, and the names of the ignored files.

    `published` are the counts this data set is known to have, for the names of `counts()`; empty where the
    folder does not say which data set it is. `more_counts` are those that splits do not show (tracklets);
    `notes` what the user should know, such as how a split was drawn. `root` is the folder that the names of a
    list's images are relative to, where the list did not say; `searched` are the folders below which every
    image is converted, a mask, or counted in the report. `numbering` says what became of pids and cameras
    that are numbered here: {"pid" or "camid": {as it stands in the source: as it is here}}. `home` is the
    folder that a relative pattern of masks may start from, the data set's; `warnings` end the report.
    """

    name: str
    splits: dict[str, tuple[Source, ...]]
    strays: tuple[str, ...] = ()
    published: dict[str, int] = field(default_factory=dict)
    more_counts: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    root: Path | None = None
    searched: tuple[Path, ...] = ()
    numbering: dict[str, dict[str, int]] = field(default_factory=dict)
    home: Path | None = None
    warnings: tuple[str, ...] = ()

    def sources(self) -> list[Source]:
        """Those of all splits."""
        return [source for part in self.splits.values() for source in part]

    def counts(self) -> dict[str, int]:
        """Found: `<split> images, identities, junk, distractors`, and `more_counts`. Junk counts as
        images."""
        found = {}
        for split, sources in self.splits.items():
            images = Counter(source.pid for source in sources)
            found[f"{split} images"] = len(sources)
            found[f"{split} identities"] = sum(pid > DISTRACTOR_PID for pid in images)
            found[f"{split} junk"] = images[JUNK_PID]
            found[f"{split} distractors"] = images[DISTRACTOR_PID]
        return {**found, **self.more_counts}

    def differences(self) -> tuple[str, ...]:
        """Every count that is not the published one, as text; a split that is not there counts 0."""
        found = self.counts()
        return tuple(
            f"{name}: published {count}, found {found.get(name, 0)}"
            for name, count in self.published.items()
            if found.get(name, 0) != count
        )


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
