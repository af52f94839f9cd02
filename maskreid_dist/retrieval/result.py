"""What an evaluation returns."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

ApName = Literal["hits", "trapezoid"]
AP_NAMES: tuple[str, ...] = ("hits", "trapezoid")


@dataclass(frozen=True, eq=False)
class RetrievalResult:
    """Scores over the valid queries, as fractions in [0, 1].

    cmc: (max_rank,) float32, cmc[k - 1] is the share of valid queries with a hit
    among the first k listed images.
    mAP: the mean of average_precision over valid queries; `ap` names the
    definition, and both are kept beside it.
    mINP: mean of R / r_R, r_R the rank of a query's last good image (Ye et al., TPAMI 2021).
    average_precision: (Q,) float64 by the definition in `ap`, nan for a skipped query.
    first_rank: (Q,) int64, the rank of a query's first good image, 0 for a skipped query.
    skipped_queries: queries without a good image, excluded from every mean.
    reaches_end: whether the curve goes to the gallery's last image, so that a later rank has its last value.
    """

    cmc: NDArray[np.float32]
    mAP: float
    mINP: float
    valid_queries: int
    skipped_queries: int
    ap: ApName
    mAP_hits: float
    mAP_trapezoid: float
    average_precision: NDArray[np.float64]
    reaches_end: bool
    first_rank: NDArray[np.int64]

    def rank(self, k: int) -> float:
        """CMC at rank k (1-based); a gallery shorter than k answers with its last rank.

        Raises ValueError for a rank below 1, or one that the curve was cut before.
        """
        if k < 1:
            raise ValueError(f"rank {k}: ranks start at 1")
        if k > len(self.cmc) and not self.reaches_end:
            raise ValueError(f"rank {k}: the curve ends at rank {len(self.cmc)}; evaluate with max_rank={k}")
        return float(self.cmc[min(k, len(self.cmc)) - 1])

    def metrics(self) -> dict[str, float]:
        """The project's six figures, as fractions: both mAPs, mINP and Rank-1, -5, -10 (a curve of 10 ranks
        or more)."""
        return {
            "mAP_hits": self.mAP_hits,
            "mAP_trapezoid": self.mAP_trapezoid,
            "mINP": self.mINP,
            "rank1": self.rank(1),
            "rank5": self.rank(5),
            "rank10": self.rank(10),
        }
