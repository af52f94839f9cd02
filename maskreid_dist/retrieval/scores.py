"""From ranks to scores: CMC, both average precisions and INP (no features here).

r_i is the 1-based rank of a query's i-th good image among its listed
(non-junk) gallery images, R their number.
"""

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
Scores = NDArray[np.float64]


def average_precisions(ranks: list[IntArray], listed_Q: IntArray) -> tuple[Scores, Scores, Scores]:
    """Of every query by its ascending ranks: AP by hits, AP by trapezoid, INP; (Q,) each, nan without a rank.

    hits: (1/R) sum_i i / r_i (Torchreid, FastReID, MaskReID Eq. 1). trapezoid:
    (1/R) sum_i ((i-1)/(r_i - 1) + i/r_i) / 2, the first fraction 1 at r_i = 1 (Market-1501's MATLAB code).
    INP: R / r_R, the share of good images in the list up to the last of them.

    The terms of AP by hits are summed at their places in a list of `listed` entries, zeros between: NumPy
    adds pairwise, so the last bit depends on the places, and so it equals that of an implementation that
    holds the whole list.
    """
    number_Q = np.array([len(rank_R) for rank_R in ranks], dtype=np.int64)
    stop_Q = np.cumsum(number_Q)
    rank_P = np.concatenate(ranks)
    hit_P = np.arange(1, len(rank_P) + 1) - np.repeat(stop_Q - number_Q, number_Q)
    precision_P = hit_P / rank_P
    before_P = np.ones(len(rank_P))
    np.divide(hit_P - 1, rank_P - 1, out=before_P, where=rank_P > 1)
    trapezoid_P = (before_P + precision_P) / 2
    hits_Q, trapezoid_Q, inp_Q = np.full((3, len(ranks)), np.nan)
    whole_list = np.zeros(int(listed_Q.max()))
    for q, (stop, number) in enumerate(zip(stop_Q.tolist(), number_Q.tolist(), strict=True)):
        if number:
            mine = slice(stop - number, stop)
            at = rank_P[mine] - 1
            whole_list[at] = precision_P[mine]
            hits_Q[q] = whole_list[: listed_Q[q]].sum() / number
            whole_list[at] = 0.0
            trapezoid_Q[q] = trapezoid_P[mine].sum() / number
            inp_Q[q] = number / rank_P[stop - 1]
    return hits_Q, trapezoid_Q, inp_Q


def cmc_curve(first_ranks: IntArray, max_rank: int) -> NDArray[np.float32]:
    """Share of the queries whose first hit is at rank <= k, for k = 1..max_rank:
    float32 sum / number of queries."""
    hits = np.bincount(first_ranks[first_ranks <= max_rank] - 1, minlength=max_rank).cumsum()
    return hits.astype(np.float32) / np.float32(len(first_ranks))
