"""Batch-hard with candidates that are not the batch: the specification, and the form in blocks.

In blocks: O((N + M) D) memory, one matrix product in the forward, none in the backward. Forward: mining
distances a tile at a time, of which the farthest positive and the nearest negative so far are kept; the
picked distances again from differences. Gathered over the ranks per anchor: both picks, the value, two pair
weights. Backward: as in chunked.py, with a rank's anchors and its references as the two ends of a pair (k, o)
of weight w = dL/dd times 1/d (euclidean) or 2 (squared): w (x_k - y_o) for x_k and its negative for y_o; for
cosine w = dL/dd, and -w y_o and -w x_k.

Names: those of crossed.py; m also pairs of a block.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..blocks import own_and_global_tiles, row_blocks
from ..crossed import (
    Crossing,
    anchor_weights,
    gathered_rows,
    no_values,
    places_in_tile,
    product_in_tile,
    rows_with_gradient,
)
from ..guards import first_order_only
from ..ranks import gather_rows
from ..unit_rows import unit_rows
from .terms import BatchHardTerms, gradient_per_difference, mining_distances, mining_squares


def specification(
    x_VD: Tensor, y_RD: Tensor, terms: BatchHardTerms, crossing: Crossing, *, per_anchor: bool = False
) -> Tensor:
    """Plain autograd, mining in N x M matrices. Every rank computes it whole (collectives: all rows)."""
    x_ND, y_MD = rows_with_gradient(x_VD, y_RD, crossing, terms.normalize)
    if len(x_ND) == 0:
        value_N = no_values(x_ND, y_MD)
    else:
        with torch.no_grad():
            distance_NM = mining_distances(x_ND, y_MD, mining_squares(y_MD, terms))
            same_NM = crossing.labels_N[:, None] == crossing.labels_M
            positive_N = distance_NM.masked_fill(~same_NM, -torch.inf).max(1).indices  # first of equals
            negative_N = distance_NM.masked_fill(same_NM, torch.inf).min(1).indices
        toward_N = terms.pair_distance(x_ND, y_MD[positive_N])
        value_N = terms.hinge(toward_N - terms.pair_distance(x_ND, y_MD[negative_N]))
    return value_N if per_anchor else value_N.sum() / crossing.counted


def chunked(
    x_VD: Tensor, y_RD: Tensor, terms: BatchHardTerms, crossing: Crossing, *, per_anchor: bool = False
) -> Tensor:
    """Collectives in the forward, none in the backward: rows (`gathered_rows`), five numbers per anchor."""
    if terms.normalize:
        x_VD, y_RD = unit_rows(x_VD), unit_rows(y_RD)
    loss: Tensor = _CrossedLoss.apply(x_VD, y_RD, terms, crossing, per_anchor)
    return loss


class _CrossedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_VD: Tensor, y_RD: Tensor, terms: BatchHardTerms, crossing: Crossing, per_anchor: bool
    ) -> Tensor:
        rows = gathered_rows(x_VD, y_RD, crossing)
        square_M = mining_squares(rows.y_MD, terms)
        own_V5 = x_VD.new_empty((len(x_VD), 5), dtype=torch.float64)  # float64 holds row numbers exactly
        for block, among in crossing.blocks(crossing.anchors.own, x_VD.element_size(), 32):
            picks = _picked(rows.x_VD[block], rows.y_MD, square_M, crossing.positives_of(among))
            own_V5[block] = _anchor_numbers(rows.x_VD[block], rows.y_MD, *picks, terms)
        numbers_N5 = gather_rows(own_V5, crossing.anchors)
        ctx.terms, ctx.crossing, ctx.per_anchor = terms, crossing, per_anchor
        ctx.save_for_backward(rows.x_VD, rows.x_ND, rows.y_MD, numbers_N5)
        # The same sum over the same gathered numbers on every rank, so the value is equal to the last bit.
        value_N = numbers_N5[:, 2]
        return (value_N if per_anchor else value_N.sum() / crossing.counted).to(x_VD.dtype)

    @staticmethod
    @first_order_only
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        x_VD, x_ND, y_MD, numbers_N5 = ctx.saved_tensors
        crossing: Crossing = ctx.crossing
        differences = ctx.terms.distance != "cosine"
        weight_N = anchor_weights(gradients[0], crossing, ctx.per_anchor)
        of_x_VD = torch.zeros_like(x_VD) if ctx.needs_input_grad[0] else None
        of_y_RD = torch.zeros_like(y_MD[crossing.references.own]) if ctx.needs_input_grad[1] else None
        for pick, column, sign in ((0, 3, 1), (1, 4, -1)):
            other_N = numbers_N5[:, pick].long()
            pair_N = (numbers_N5[:, column] * sign).to(x_VD.dtype) * weight_N
            if of_x_VD is not None:
                own = crossing.anchors.own
                _add_to_anchors_(of_x_VD, x_VD, y_MD, other_N[own], pair_N[own], differences)
            if of_y_RD is not None:
                own = crossing.references.own
                _add_to_references_(of_y_RD, x_ND, y_MD, other_N, pair_N, differences, own)
        return of_x_VD, of_y_RD, None, None, None


def _picked(x_bD: Tensor, y_MD: Tensor, square_M: Tensor, index_bP: Tensor) -> tuple[Tensor, Tensor]:
    """The farthest positive and the nearest negative [b] of a block's anchors; of equals the lowest row."""
    far_b, near_b = x_bD.new_full((len(x_bD),), -torch.inf), x_bD.new_full((len(x_bD),), torch.inf)
    positive_b, negative_b = (torch.zeros(len(x_bD), dtype=torch.int64, device=x_bD.device) for _ in range(2))
    for tile, _ in own_and_global_tiles(slice(0, len(y_MD))):
        place_bP = places_in_tile(index_bP, tile)
        distance_bm = product_in_tile(x_bD, y_MD[tile]).mul_(-2)
        distance_bm[:, :-1] += square_M[tile]
        distance_bm[:, -1] = -torch.inf
        far_bP = distance_bm.gather(1, place_bP)
        tile_far_b, place_b = far_bP.max(1)  # the first of equals
        # NaN is kept: a broken embedding must not hide.
        farther_b = (tile_far_b > far_b) | tile_far_b.isnan()
        far_b = torch.where(farther_b, tile_far_b, far_b)
        positive_b = torch.where(farther_b, index_bP.gather(1, place_b[:, None])[:, 0], positive_b)
        distance_bm.scatter_(1, place_bP, torch.inf)
        distance_bm[:, -1] = torch.inf
        tile_near_b, column_b = distance_bm.min(1)
        nearer_b = (tile_near_b < near_b) | tile_near_b.isnan()
        near_b = torch.where(nearer_b, tile_near_b, near_b)
        negative_b = torch.where(nearer_b, column_b + tile.start, negative_b)
    return positive_b, negative_b


def _anchor_numbers(
    x_bD: Tensor, y_MD: Tensor, positive_b: Tensor, negative_b: Tensor, terms: BatchHardTerms
) -> Tensor:
    """[b, 5] float64: both picks, value, pair weights of the one and of the other."""
    toward_b = terms.pair_distance(x_bD, y_MD.index_select(0, positive_b))
    away_b = terms.pair_distance(x_bD, y_MD.index_select(0, negative_b))
    slope_b = terms.hinge_gradient(toward_b - away_b)
    numbers = (
        positive_b,
        negative_b,
        terms.hinge(toward_b - away_b),
        slope_b * gradient_per_difference(toward_b, terms),
        slope_b * gradient_per_difference(away_b, terms),
    )
    return torch.stack([number.double() for number in numbers], 1)


def _add_to_anchors_(
    of_x_VD: Tensor, x_VD: Tensor, y_MD: Tensor, other_V: Tensor, weight_V: Tensor, differences: bool
) -> None:
    """Add sum_k weight_k dd(x_k, y_other_k)/dx_k."""
    for block in row_blocks(len(x_VD), 2 * x_VD.element_size() * x_VD.shape[1]):
        y_mD = y_MD.index_select(0, other_V[block])
        if differences:
            of_x_VD[block].addcmul_(x_VD[block] - y_mD, weight_V[block, None])
        else:
            of_x_VD[block].addcmul_(y_mD, weight_V[block, None], value=-1)


def _add_to_references_(
    of_y_RD: Tensor,
    x_ND: Tensor,
    y_MD: Tensor,
    other_N: Tensor,
    weight_N: Tensor,
    differences: bool,
    own: slice,
) -> None:
    """Add sum_k weight_k dd(x_k, y_other_k)/dy_other_k to own references, in the same order every time."""
    picked_M = ((weight_N != 0) & (other_N >= own.start) & (other_N < own.stop)).nonzero().squeeze(1)
    for block in row_blocks(len(picked_M), 2 * x_ND.element_size() * x_ND.shape[1]):
        anchor_m = picked_M[block]
        other_m = other_N[anchor_m]
        step_mD = x_ND.index_select(0, anchor_m)
        if differences:
            step_mD -= y_MD.index_select(0, other_m)
        step_mD *= -weight_N[anchor_m, None]
        if of_y_RD.is_cuda:  # sorts by row; index_add_ would add atomically, in any order
            of_y_RD.index_put_((other_m - own.start,), step_mD, accumulate=True)
        else:
            of_y_RD.index_add_(0, other_m - own.start, step_mD)
