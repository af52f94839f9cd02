"""From ranks to scores: CMC, both average precisions and INP (no features here).

r_i is the 1-based rank of a query's i-th good image among its listed
(non-junk) gallery images, R their number.
"""

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]


def average_precision_hits(rank_R: IntArray, listed: int, scratch: NDArray[np.float64]) -> float:
    """AP = (1/R) sum_i i / r_i (Torchreid, FastReID, MaskReID Eq. 1).

    The terms are summed at their places in a list of `listed` entries, zeros between: NumPy adds pairwise, so
    the last bit depends on the places, and so it equals that of an implementation that holds the whole list.
    `scratch` is an all-zero buffer of at least that length, left all-zero.
    """
    scratch[rank_R - 1] = np.arange(1, len(rank_R) + 1) / rank_R
    total = scratch[:listed].sum()
    scratch[rank_R - 1] = 0.0
    return float(total / len(rank_R))


def average_precision_trapezoid(rank_R: IntArray) -> float:
    """AP = (1/R) sum_i ((i-1)/(r_i - 1) + i/r_i) / 2, the first fraction 1 at r_i =
    1 (Market-1501's MATLAB code)."""
    hits_R = np.arange(1, len(rank_R) + 1)
    before_R = np.ones(len(rank_R))
    np.divide(hits_R - 1, rank_R - 1, out=before_R, where=rank_R > 1)
    return float(((before_R + hits_R / rank_R) / 2).sum() / len(rank_R))


def inverse_negative_penalty(rank_R: IntArray) -> float:
    """INP = R / r_R: the share of good images in the list up to the last of them."""
    return float(len(rank_R) / rank_R[-1])


def cmc_curve(first_ranks: IntArray, max_rank: int) -> NDArray[np.float32]:
    """Share of the queries whose first hit is at rank <= k, for k = 1..max_rank:
    float32 sum / number of queries."""
    hits = np.bincount(first_ranks[first_ranks <= max_rank] - 1, minlength=max_rank).cumsum()
    return hits.astype(np.float32) / np.float32(len(first_ranks))
