"""What a data set calls its persons and cameras, where the shards number them otherwise."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class SourceNames:
    """Texts for people. persons, cameras: the source's name of each number, of a manifest's `numbering`."""

    persons: Mapping[int, str] = field(default_factory=dict)
    cameras: Mapping[int, str] = field(default_factory=dict)

    @classmethod
    def of(cls, numbering: Mapping[str, Mapping[str, int]]) -> "SourceNames":
        persons, cameras = (
            {number: name for name, number in numbering.get(what, {}).items()} for what in ("pid", "camid")
        )
        return cls(persons, cameras)

    def person(self, pid: int) -> str:
        """ "person 5"; "person anna (5)" where the source calls it anna; "distractor" (0), "junk" (-1)."""
        if pid in (0, -1):
            return "junk" if pid else "distractor"
        return f"person {self.pid(pid)}"

    def pid(self, pid: int) -> str:
        """ "5", or "anna (5)"."""
        return _both(self.persons, pid)

    def camera(self, camid: int) -> str:
        """ "2", or "entrance (2)"."""
        return _both(self.cameras, camid)


def _both(names: Mapping[int, str], number: int) -> str:
    return f"{names[number]} ({number})" if number in names else str(number)
