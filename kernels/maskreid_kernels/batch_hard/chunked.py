"""Batch-hard in blocks of rows: O(N D) memory, one matrix product in the forward, none in the backward.

Forward: a block of anchors' mining distances to all N rows, reduced at once to the picked rows p and n; the
picked distances again from differences. Gathered over the ranks per anchor: p, n, the value, two pair
weights.

Backward: a pair (k, o) whose weight is w = dL/dd times 1/d (euclidean) or 2 (squared) adds w (x_k - x_o) to
row k and its negative to row o; for cosine w = dL/dd, and -w x_o and -w x_k are added. A rank applies the
pairs, of whichever anchor, that touch its own rows: no collective, O(pairs x D).

Names: B = this rank's rows, N = rows of all ranks, D = columns, b = rows of a block, m = pairs of a block,
P = rows of the largest identity.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..blocks import own_and_global_blocks, row_blocks
from ..first_order import first_order_only
from ..positives import Positives, find_positives
from ..ranks import RankLayout, gather_rows
from ..unit_rows import unit_rows
from .terms import BatchHardTerms, gradient_per_difference, mining_distances, mining_squares


def batch_hard_loss(
    rows_BD: Tensor, labels_B: Tensor, terms: BatchHardTerms, layout: RankLayout, *, per_anchor: bool = False
) -> Tensor:
    """Collectives in the forward, none in the backward: rows, labels, and five numbers per anchor."""
    if terms.normalize:
        rows_BD = unit_rows(rows_BD)
    loss: Tensor = _BatchHardLoss.apply(rows_BD, labels_B, terms, layout, per_anchor)
    return loss


class _BatchHardLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows_BD: Tensor,
        labels_B: Tensor,
        terms: BatchHardTerms,
        layout: RankLayout,
        per_anchor: bool,
    ) -> Tensor:
        x_ND = gather_rows(rows_BD, layout)
        positives = find_positives(gather_rows(labels_B, layout))
        square_N = mining_squares(x_ND, terms)
        # float64 holds row numbers exactly.
        own_B5 = x_ND.new_empty((rows_BD.shape[0], 5), dtype=torch.float64)
        bytes_per_row = x_ND.element_size() * (x_ND.shape[0] + 3 * x_ND.shape[1]) + 32 * positives.widest
        for block, rows in own_and_global_blocks(layout.own, bytes_per_row):
            own_B5[block] = _anchor_numbers(x_ND, rows, square_N, positives, terms)
        positive_N, negative_N, value_N, toward_N, away_N = gather_rows(own_B5, layout).unbind(1)
        valid_anchors = positives.valid_N.sum().clamp(min=1)

        other_2N = torch.stack([positive_N, negative_N]).long()
        weight_2N = torch.stack([toward_N, -away_N]).to(rows_BD.dtype)
        ctx.save_for_backward(x_ND, other_2N, weight_2N, valid_anchors)
        ctx.terms, ctx.layout, ctx.per_anchor = terms, layout, per_anchor
        if per_anchor:
            return value_N.to(rows_BD.dtype)
        # The same sum over the same gathered numbers on every rank, so the value is equal to the last bit.
        return (value_N.sum() / valid_anchors).to(rows_BD.dtype)

    @staticmethod
    @first_order_only
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        x_ND, other_2N, weight_2N, valid_anchors = ctx.saved_tensors
        layout: RankLayout = ctx.layout
        scale = gradients[0]
        if not ctx.per_anchor:
            scale = scale * layout.world_size / valid_anchors  # W: see maskreid_kernels.ranks
        weight_2N = weight_2N * scale
        gradient_BD = torch.zeros_like(x_ND[layout.own])
        for other_N, weight_N in zip(other_2N, weight_2N, strict=True):
            _apply_pairs_(gradient_BD, x_ND, other_N, weight_N, ctx.terms.distance != "cosine", layout.own)
        return gradient_BD, None, None, None, None


def _apply_pairs_(
    gradient_BD: Tensor, x_ND: Tensor, other_N: Tensor, weight_N: Tensor, differences: bool, own: slice
) -> None:
    """Add the gradient of sum_k weight_k d(x_k, x_other_k) to the own rows, for the pairs that touch them."""
    touches_N = (weight_N != 0) & _lies_in(own, other_N)
    touches_N[own] = weight_N[own] != 0
    anchor_M = touches_N.nonzero().squeeze(1)  # host sync; an inactive hinge costs nothing below
    for pairs in row_blocks(anchor_M.shape[0], 2 * x_ND.element_size() * x_ND.shape[1]):
        anchor_m = anchor_M[pairs]
        other_m, weight_m1 = other_N[anchor_m], weight_N[anchor_m, None]
        x_anchor_mD, x_other_mD = x_ND.index_select(0, anchor_m), x_ND.index_select(0, other_m)
        if differences:
            step_mD = x_anchor_mD.sub_(x_other_mD).mul_(weight_m1)
            _add_rows_(gradient_BD, anchor_m, step_mD, 1, own)
            _add_rows_(gradient_BD, other_m, step_mD, -1, own)
        else:
            _add_rows_(gradient_BD, anchor_m, x_other_mD.mul_(weight_m1), -1, own)
            _add_rows_(gradient_BD, other_m, x_anchor_mD.mul_(weight_m1), -1, own)


def _anchor_numbers(
    x_ND: Tensor, rows: slice, square_N: Tensor, positives: Positives, terms: BatchHardTerms
) -> Tensor:
    """[b, 5] float64: hardest positive, hardest negative, value, pair weights of the one and of the other."""
    _, index_bP, positive_bP = positives.of_rows(rows)
    valid_b, x_bD = positives.valid_N[rows], x_ND[rows]
    distance_bN = mining_distances(x_bD, x_ND, square_N)
    distance_bP = distance_bN.gather(1, index_bP).masked_fill_(~positive_bP, -torch.inf)
    # First of equals.
    hardest_positive_b = index_bP.gather(1, distance_bP.max(1, keepdim=True).indices).squeeze(1)
    hardest_negative_b = distance_bN.scatter_(1, index_bP, torch.inf).min(1).indices
    positive_distance_b = terms.pair_distance(x_bD, x_ND.index_select(0, hardest_positive_b))
    negative_distance_b = terms.pair_distance(x_bD, x_ND.index_select(0, hardest_negative_b))
    gap_b = positive_distance_b - negative_distance_b
    slope_b = terms.hinge_gradient(gap_b) * valid_b
    numbers = (
        hardest_positive_b,
        hardest_negative_b,
        torch.where(valid_b, terms.hinge(gap_b), 0),
        slope_b * gradient_per_difference(positive_distance_b, terms),
        slope_b * gradient_per_difference(negative_distance_b, terms),
    )
    return torch.stack([number.double() for number in numbers], 1)


def _lies_in(rows: slice, index: Tensor) -> Tensor:
    inside: Tensor = (index >= rows.start) & (index < rows.stop)
    return inside


def _add_rows_(gradient_BD: Tensor, index_m: Tensor, step_mD: Tensor, sign: int, own: slice) -> None:
    """Add sign x steps to the own rows among the indexed; repeated rows add up, in the same order every
    time."""
    inside_m = _lies_in(own, index_m)
    if not bool(inside_m.all()):
        step_mD, index_m = step_mD[inside_m], index_m[inside_m]
    if gradient_BD.is_cuda:  # sorts by row; index_add_ would add atomically, in any order
        gradient_BD.index_put_((index_m - own.start,), step_mD * sign, accumulate=True)
        return
    gradient_BD.index_add_(0, index_m - own.start, step_mD, alpha=sign)
