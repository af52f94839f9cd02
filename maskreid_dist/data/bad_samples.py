"""Samples that cannot be read or decoded: replaced within a budget, named, counted."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from maskreid_dist.errors import SampleError
from maskreid_shards import Split


class Replaced(NamedTuple):
    """A bad sample of a batch, the one in its place, and what is wrong with it."""

    sample: int
    by: int
    problem: str


def stand_ins(split: Split, sample: int, drawn: set[int]) -> NDArray[np.int64]:
    """The other images of the sample's identity: from the next one on, those that the batch draws last.

    Depends on the identity's own draws alone, which one rank holds together: the same for every world size.
    """
    images = split.images_of(int(split.pids[sample]))
    others = np.roll(images, -(sample - int(images[0])))[1:]
    return others[np.argsort([number in drawn for number in others.tolist()], kind="stable")]


class BadSamples:
    """The bad samples of a run, on every rank the same: `add` gets those of all
    ranks. A resumed run counts anew."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.problems: dict[int, str] = {}
        self.replacements = 0

    def add(self, replaced: Iterable[Replaced]) -> list[str]:
        """Count them; returns a line for each bad sample not met before. Raises
        SampleError over the budget."""
        lines = []
        for sample, by, problem in sorted(replaced):
            self.replacements += 1
            if sample not in self.problems:
                self.problems[sample] = problem
                lines.append(f"bad sample {sample}, sample {by} of its identity stands in: {problem}")
        if len(self.problems) > self.budget:
            raise SampleError(
                f"{len(self.problems)} bad samples, data.bad_samples allows {self.budget}; the last: "
                f"{problem}"
            )
        return lines

    def lines(self) -> list[str]:
        if not self.budget:
            return []
        return [
            f"bad samples: {len(self.problems)} of at most {self.budget}, {self.replacements} replacements"
        ]
