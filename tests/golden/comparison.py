"""What two sets of results have in common: a section (such as "losses") holds values by name."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

Results = Mapping[str, Mapping[str, str]]
SHOWN = 12  # differences named in the table, of each section


@dataclass(frozen=True)
class Difference:
    """A value that the commit compared with has, and the working tree has not, or has otherwise."""

    section: str
    name: str
    before: str
    after: str | None


def compare(before: Results, after: Results) -> list[Difference]:
    """Every value of `before` that `after` lacks or has otherwise. What only `after` has is new, not
    different."""
    return [
        Difference(section, name, value, after.get(section, {}).get(name))
        for section, values in before.items()
        for name, value in values.items()
        if after.get(section, {}).get(name) != value
    ]


def table(before: Results, after: Results, differences: list[Difference], base: str) -> Iterator[str]:
    """Lines that say how much of each section is equal, and what is not."""
    yield f"{'':30} {'equal':>7} {'differ':>7} {'new':>5}"
    for section, values in before.items():
        differing = sum(difference.section == section for difference in differences)
        new = len(after.get(section, {}).keys() - values.keys())
        yield f"{section:30} {len(values) - differing:7} {differing:7} {new:5}"
    for section in before:
        mine = [difference for difference in differences if difference.section == section]
        for difference in mine[:SHOWN]:
            now = "is missing" if difference.after is None else f"is {difference.after[:24]}"
            yield f"{section}: {difference.name}: was {difference.before[:24]}, {now}"
        if len(mine) > SHOWN:
            yield f"{section}: and {len(mine) - SHOWN} more; all by kind: {by_kind(mine)}"
    yield f"{base} and the working tree " + ("DIFFER" if differences else "are equal, bit for bit")


def by_kind(differences: list[Difference]) -> str:
    """How many there are of each kind: the first two words of a name, such as a loss and its backend."""
    counts = Counter(" ".join(difference.name.split(", ")[:2]) for difference in differences)
    return ", ".join(f"{kind} {count}" for kind, count in counts.items())
