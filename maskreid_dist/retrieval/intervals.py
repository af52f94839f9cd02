"""Bootstrap intervals of an evaluation's figures: how much they would move with other queries."""

from collections.abc import Sequence

import numpy as np

from maskreid_dist.retrieval.result import RetrievalResult

Interval = tuple[float, float]


def bootstrap_intervals(
    result: RetrievalResult,
    *,
    ranks: Sequence[int] = (1, 5, 10),
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Interval]:
    """Percentile intervals over valid queries drawn with replacement: "mAP", and "rank1" for every rank, as
    fractions.

    They tell about other queries of the same people and cameras, not about other people: queries of one
    identity are not independent. Raises ValueError for a level outside (0, 1) or no resample.
    """
    if not 0 < level < 1 or resamples < 1:
        raise ValueError(f"level must be in (0, 1) and resamples at least 1, not {level} and {resamples}")
    valid = result.first_rank > 0
    first_V = result.first_rank[valid]
    columns = [result.average_precision[valid], *(first_V <= k for k in ranks)]
    values_VC = np.stack(columns, axis=1).astype(np.float64)
    rng = np.random.default_rng(seed)
    count = len(values_VC)
    means = [values_VC[rng.integers(0, count, count)].mean(axis=0) for _ in range(resamples)]
    low_C, high_C = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    names = ["mAP", *(f"rank{k}" for k in ranks)]
    return {name: (float(a), float(b)) for name, a, b in zip(names, low_C, high_C, strict=True)}
