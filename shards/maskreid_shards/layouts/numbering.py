"""Identities and cameras by any names: numbered as shards need them, with the mapping kept."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..samples import JUNK_PID

_INTEGER = re.compile(r"([+-]?\d+)(\.0*)?", re.ASCII)


@dataclass(frozen=True)
class Numbers:
    """`of` has the number of each text; `anew` says that they are not the numbers that the texts are."""

    of: dict[str, int]
    anew: bool = False

    def note(self, what: str) -> list[str]:
        """The report for people: empty where the texts are the numbers."""
        if not self.anew:
            return []
        shown = [f"{text} is {number}" for text, number in list(self.of.items())[:3]]
        more = ", ..." if len(self.of) > 3 else ""
        return [
            f"{len(self.of)} {what} are numbered from 1 ({', '.join(shown)}{more}); the manifest has the "
            "mapping"
        ]


def integer(text: str) -> int | None:
    """The integer that a text is, 3.0 too (as spreadsheets and pandas write it); None for any other text."""
    match = _INTEGER.fullmatch(text)
    return int(match[1]) if match else None


def pid_numbers(train: Iterable[str], others: Iterable[str]) -> Numbers:
    """Integers stay as they are, unless train counts from 0, where 0 can be no distractor: then all but junk
    (-1) are numbered from 1, in order, and so they are where one of them is no integer; train before the
    others."""
    train, others = set(train), set(others)
    values = {text: integer(text) for text in train | others}
    whole = {text: value for text, value in values.items() if value is not None}
    counts_from_0 = any(values[text] == 0 for text in train)
    if len(whole) == len(values) and not (counts_from_0 and min(whole.values()) >= JUNK_PID):
        return Numbers(whole)
    people = [_in_order(train, values), _in_order(others - train, values)]
    return Numbers(_ranked((text for part in people for text in part), values), True)


def camera_numbers(texts: Iterable[str]) -> Numbers:
    """Integers from 1 stay as they are; those that count from 0, and names, are numbered from 1 in order."""
    values = {text: integer(text) for text in texts}
    whole = {text: value for text, value in values.items() if value is not None}
    if len(whole) == len(values) and min(whole.values(), default=1) != 0:
        return Numbers(whole)
    return Numbers(_ranked(_in_order(values, values), {}), True)


def as_mapping(numbers: Mapping[str, Numbers]) -> dict[str, dict[str, int]]:
    """What the manifest keeps: the numbers that are new."""
    return {what: found.of for what, found in numbers.items() if found.anew}


def _in_order(texts: Iterable[str], values: Mapping[str, int | None]) -> list[str]:
    """Integers by value, before names, whose digits count as numbers: b2 comes before b10."""
    return sorted(texts, key=lambda text: (values[text] is None, values[text] or 0, natural(text)))


def natural(text: str) -> list[tuple[int, str]]:
    """A sorting key by which b2 comes before b10."""
    parts = re.split(r"(\d+)", text, flags=re.ASCII)
    return [(int(part), part) if number % 2 else (-1, part) for number, part in enumerate(parts)]


def _ranked(texts: Iterable[str], values: Mapping[str, int | None]) -> dict[str, int]:
    """Each text's number from 1; texts of one value (1 and 01) share it, and junk stays junk."""
    numbers: dict[str, int] = {}
    of_value: dict[int | str, int] = {JUNK_PID: JUNK_PID}
    for text in texts:
        value = values.get(text)
        same: int | str = text if value is None else value
        numbers[text] = of_value.setdefault(same, len(of_value))
    return numbers
