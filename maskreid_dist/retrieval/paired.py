"""Two evaluations of the same queries, compared: what their difference would be with other queries."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from maskreid_dist.retrieval.intervals import Interval
from maskreid_dist.retrieval.result import RetrievalResult


@dataclass(frozen=True)
class Difference:
    """A figure of both, as fractions; `interval`: of second - first."""

    first: float
    second: float
    interval: Interval

    @property
    def value(self) -> float:
        return self.second - self.first

    @property
    def clear(self) -> bool:
        """Whether the interval leaves no doubt of the sign."""
        return self.interval[0] > 0 or self.interval[1] < 0


def paired_differences(
    first: RetrievalResult,
    second: RetrievalResult,
    *,
    ranks: Sequence[int] = (1, 5, 10),
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Difference]:
    """By figure ("mAP", and "rank1" for every rank) with percentile intervals over valid queries, drawn once
    with replacement for both: what makes a query hard for both takes no part.

    The results are of the same queries and gallery labels, in one order. As for `bootstrap_intervals`, they
    tell about other queries of the same people. Raises ValueError where the valid queries or the definitions
    of AP differ.
    """
    if not 0 < level < 1 or resamples < 1:
        raise ValueError(f"level must be in (0, 1) and resamples at least 1, not {level} and {resamples}")
    valid = first.first_rank > 0
    if first.ap != second.ap or not np.array_equal(valid, second.first_rank > 0):
        raise ValueError("the evaluations are of different queries or definitions of AP")
    sides = [
        np.stack(
            [result.average_precision[valid], *(result.first_rank[valid] <= k for k in ranks)], axis=1
        ).astype(np.float64)
        for result in (first, second)
    ]
    change_VC = sides[1] - sides[0]
    rng = np.random.default_rng(seed)
    count = len(change_VC)
    means = [change_VC[rng.integers(0, count, count)].mean(axis=0) for _ in range(resamples)]
    low_C, high_C = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    names = ["mAP", *(f"rank{k}" for k in ranks)]
    before_C, after_C = (side.mean(axis=0) for side in sides)
    return {
        name: Difference(float(a), float(b), (float(low), float(high)))
        for name, a, b, low, high in zip(names, before_C, after_C, low_C, high_C, strict=True)
    }
