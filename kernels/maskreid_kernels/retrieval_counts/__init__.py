"""How many gallery rows come certainly before each of a query's good images, and which pairs are too near to
tell: exact evaluation's count in one pass over the products, without a Q x G matrix.

Shapes: Q queries, G gallery rows, D columns, R thresholds of a query at most, I undecided pairs.

Every pair of a query q and a gallery row g of another label has a measure, an increasing function of its
distance within the query's list:

    t = q.g * slope[g] + offset[g]          cosine: slope = -1 / |g|, offset = 0, so t = -|q| cos(q, g)
                                            Euclidean: slope = -2, offset = |g|^2, so t = |q - g|^2 - |q|^2

`error_bound` bounds what a computed t may be wrong by. Whoever knows the exact measure of a good image puts a
threshold below it and one above it by at least that much: a row with t < low comes before the image, one with
t >= high after it, and a pair in between is handed back to be decided exactly. So the counts are right
whatever the products round, and integers: the same in any order.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from . import reference
from .bounds import UNIT_SPAN, counted_dtype, error_bound

__all__ = ["UNIT_SPAN", "Counts", "Thresholds", "count_below", "counted_dtype", "error_bound"]


@dataclass(frozen=True)
class Thresholds:
    """low_RQ, high_RQ: (R, Q) float32. Along R both descend and low <= high; -inf fills up a query that has
    fewer."""

    low_RQ: Tensor
    high_RQ: Tensor


@dataclass(frozen=True)
class Counts:
    """below_RQ (R, Q) int32: gallery rows of another label with t < low.

    open_3I (3, I) int32, in no order: query, gallery row, and the first threshold r with low <= t < high. A
    pair is there once, though it may lie between several thresholds. None: there were more than the capacity.
    """

    below_RQ: Tensor
    open_3I: Tensor | None


def count_below(
    query_QD: Tensor,
    gallery_GD: Tensor,
    query_labels_Q: Tensor,
    gallery_labels_G: Tensor,
    slope_G: Tensor,
    offset_G: Tensor,
    thresholds: Thresholds,
    *,
    capacity: int,
    backend: str = "triton",
) -> Counts:
    """Count (see the module). Pairs of equal labels take no part.

    Rows: bfloat16, float16 (float32 where interpreted) or float32, both sides alike, contiguous, with norms
    of 0 or within UNIT_SPAN. Labels: int32. slope, offset: float32.
    backend: "triton" (a GPU, or Triton's interpreter; one host sync) or "reference" (a Q x G matrix in
    float64). Raises ValueError for another, for rows of two dtypes or one it does not take, and beyond 2^31 -
    2^10 rows or pairs.
    """
    if query_QD.dtype != gallery_GD.dtype or counted_dtype(query_QD.dtype) != query_QD.dtype:
        raise ValueError(
            f"rows of {query_QD.dtype} and {gallery_GD.dtype}: both bfloat16, float16 or float32"
        )
    arguments = (query_QD, gallery_GD, query_labels_Q, gallery_labels_G, slope_G, offset_G)
    if backend == "reference":
        below_RQ, open_3I = reference.count_below(*arguments, thresholds.low_RQ, thresholds.high_RQ)
        return Counts(below_RQ, open_3I if open_3I.shape[1] <= capacity else None)
    if backend != "triton":
        raise ValueError(f'backend {backend!r} is not available; available: "reference", "triton"')
    from . import triton  # Triton is imported, and its programs decorated, only where it is used

    below_RQ, total, open_3C = triton.count_below(
        *arguments, thresholds.low_RQ, thresholds.high_RQ, capacity=capacity
    )
    return Counts(below_RQ, open_3C[:, :total] if total <= capacity else None)
