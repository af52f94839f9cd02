"""What pages say of results that are committed: a study's table, and its claims in few words.

Both come from the study's `table.md`, which `tests/test_study.py` holds against the results themselves.
"""

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

VERDICTS = {"holds": "Holds", "does not hold": "Does not hold", "undecided": "Undecided"}
CLAIM = re.compile(
    r"- \*\*\w+\*\*: (?P<text>.+?): (?P<verdict>holds|does not hold|undecided) "
    r"\(mAP (?P<value>\S+) points, 95 % interval (?P<low>\S+) to (?P<high>\S+), (?P<seeds>\d+) seeds?\)\."
)


@dataclass(frozen=True)
class Claim:
    """value, low, high: of the difference in mAP, points."""

    text: str
    verdict: str
    value: float
    low: float
    high: float
    seeds: int

    def said(self) -> str:
        """ "a masked stream beside the raw one helps (+4.4, +1.4 to +7.2)"."""
        text = self.text[0].lower() + self.text[1:]
        return f"{text} ({self.value:+.1f}, {self.low:+.1f} to {self.high:+.1f})"


def claims_of(table: str) -> list[Claim]:
    """Raises ValueError: a line of a claim that cannot be read."""
    found = []
    for line in table.splitlines():
        if not line.startswith("- **"):
            continue
        match = CLAIM.match(line)
        if match is None:
            raise ValueError(f"no claim: {line}")
        text, verdict, value, low, high, seeds = match.groups()
        found.append(Claim(text, verdict, float(value), float(low), float(high), int(seeds)))
    return found


def study_table(path: Path) -> str:
    """The whole of `table.md`, without its title and a level lower."""
    return path.read_text().partition("\n\n")[2].replace("\n## ", "\n### ")


def study_in_brief(path: Path) -> str:
    """How much is done, and the claims by verdict; those of one seed are only counted."""
    table = path.read_text()
    standing = re.search(r"(\d+ of \d+ trainings) are done", table)
    made_by = re.search(r"; on: (.+)\.$", table, re.MULTILINE)
    if standing is None or made_by is None:
        raise ValueError(f"{path}: does not say how much is done, or by what")
    claims = claims_of(table)
    text = f"{standing[1]} so far ({made_by[1]}). Difference in mAP, points, with its 95 % interval:"
    return "\n".join([*_wrapped(text), "", *_by_verdict(claims)])


def _by_verdict(claims: list[Claim]) -> Iterator[str]:
    judged = [claim for claim in claims if claim.seeds > 1]
    for verdict, title in VERDICTS.items():
        own = [claim.said() for claim in judged if claim.verdict == verdict]
        if own:
            yield from _wrapped(f"- **{title}**: {'; '.join(own)}.", indent="  ")
    if rest := len(claims) - len(judged):
        yield from _wrapped(f"- Of one seed so far, so not judged: {rest}.", indent="  ")


def _wrapped(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(text, 110, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
