"""How far two rows of a study differ: an interval over other queries and other seeds, and what follows."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from maskreid_dist.study.result import RowResult

LEVEL = 0.95
RESAMPLES = 2000
# Student's t at 0.975 by degrees of freedom, from any table; beyond them the last.
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145)
NORMAL = NormalDist().inv_cdf(0.5 + LEVEL / 2)
Verdict = Literal["holds", "does not hold", "undecided"]


@dataclass(frozen=True)
class Interval:
    """A difference as a fraction, and its 95 % interval. seeds: trainings on each side."""

    value: float
    low: float
    high: float
    seeds: int

    @property
    def verdict(self) -> Verdict:
        """Of "the second is better": it holds where the whole interval is above 0, does not where the whole
        interval is below 0, and is undecided otherwise, and with less than two seeds."""
        if self.seeds < 2 or self.low <= 0 <= self.high:
            return "undecided"
        return "holds" if self.low > 0 else "does not hold"


def seed_paired_interval(
    change_SQ: NDArray[np.float64], *, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Of the mean of (S, Q) changes, of Q queries with each of S seeds, the same seed on both sides.

    A hierarchical bootstrap: queries and seeds are both drawn with replacement, the queries once for all
    seeds. What drawn seeds add to the mean over all seeds is stretched by sqrt(S / (S - 1)) t / z, Student's
    quantile over the normal one: drawing from two or three seeds as they are covers the truth far less often
    than 95 % of the time. With one seed the interval is over queries alone.
    """
    seeds, queries = change_SQ.shape
    rng = np.random.default_rng(seed)
    stretch = 0.0
    if seeds > 1:
        stretch = (seeds / (seeds - 1)) ** 0.5 * STUDENT[min(seeds - 1, len(STUDENT)) - 1] / NORMAL
    means = np.empty(resamples)
    for number in range(resamples):
        times_Q = np.bincount(rng.integers(0, queries, queries), minlength=queries)
        of_seed_S = change_SQ @ times_Q / queries
        drawn = of_seed_S[rng.integers(0, seeds, seeds)].mean()
        means[number] = of_seed_S.mean() + stretch * (drawn - of_seed_S.mean())
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(change_SQ.mean()), float(low), float(high), seeds)


def row_difference(
    first: Mapping[int, RowResult], second: Mapping[int, RowResult]
) -> dict[str, Interval] | None:
    """second - first by figure ("mAP", "rank1"), over the seeds that both have; None where they have none, or
    were ranked on other queries or galleries."""
    seeds = sorted(first.keys() & second.keys())
    sides = [[results[seed] for seed in seeds] for results in (first, second)]
    if not seeds or len({one.queries_of for side in sides for one in side}) > 1:
        return None
    valid = sides[0][0].first_rank() > 0
    changes = {
        "mAP": [
            b.average_precision()[valid] - a.average_precision()[valid] for a, b in zip(*sides, strict=True)
        ],
        "rank1": [
            (b.first_rank()[valid] == 1).astype(np.float64) - (a.first_rank()[valid] == 1)
            for a, b in zip(*sides, strict=True)
        ],
    }
    return {name: seed_paired_interval(np.stack(rows)) for name, rows in changes.items()}
