"""Batch-hard in blocks of rows: O(N D) memory, half a matrix product in the forward, none in the backward.

Forward: the hardest positives within the identities; the hardest negatives from the blocks of the triangle of
mining distances (triangle.py), each reduced at once, by rows and by columns. Over ranks the least of the
parts is taken. The picked distances again from differences. Gathered over the ranks per anchor: p, n, the
value, two pair weights.

Backward: a pair (k, o) whose weight is w = dL/dd times 1/d (euclidean) or 2 (squared) adds w (x_k - x_o) to
row k and its negative to row o; for cosine w = dL/dd, and -w x_o and -w x_k are added. A rank applies the
pairs, of whichever anchor, that touch its own rows: no collective, O(pairs x D).

Names: B = this rank's rows, N = rows of all ranks, D = columns, b = rows of a block, m = pairs of a block,
P = rows of the largest identity, s = candidates of a segment.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..blocks import row_blocks
from ..guards import first_order_only
from ..identities import blocks_of_identities, similarities_within
from ..positives import Positives, find_positives
from ..ranks import RankLayout, gather_parts, gather_rows
from ..triangle import Triangle
from ..unit_rows import unit_rows
from .terms import BatchHardTerms, gradient_per_difference, mining_squares

SEGMENT = 64


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
        hardest_negative_N = _hardest_negatives(x_ND, square_N, positives, layout)
        # float64 holds row numbers exactly
        own_B5 = x_ND.new_empty((rows_BD.shape[0], 5), dtype=torch.float64)
        for block, rows in blocks_of_identities(x_ND, positives, layout.own):
            own_B5[block] = _anchor_numbers(x_ND, rows, square_N, hardest_negative_N[rows], positives, terms)
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


def _hardest_negatives(x_ND: Tensor, square_N: Tensor, positives: Positives, layout: RankLayout) -> Tensor:
    """The negative of least mining distance of every anchor of all ranks, [N]; of equals that of lowest
    row."""
    triangle = Triangle(x_ND, positives, layout)
    least_N, row_N = torch.full_like(square_N, torch.inf), torch.zeros_like(positives.order_N)
    for block in triangle.share():
        distance_bc = triangle.workspace(block, 0)
        x_bD, x_cD = x_ND[block.rows], x_ND[block.columns]
        torch.addmm(square_N[block.columns], x_bD, x_cD.t(), alpha=-2, out=distance_bc)
        distance_bc.add_(square_N[block.rows, None])  # orders the columns too
        triangle.fill_positives_(distance_bc, block, torch.inf)
        # Blocks come by rows, then by columns: candidates of an anchor in ascending order, whichever its
        # role.
        _take_least_(least_N[block.rows], row_N[block.rows], distance_bc, 1, block.columns.start)
        if block.columns_count:
            _take_least_(least_N[block.columns], row_N[block.columns], distance_bc, 0, block.rows.start)
    if layout.group is None:
        return row_N
    least_WN, row_WN = gather_parts(torch.stack([least_N.double(), row_N.double()]), layout).unbind(1)
    farther_WN = least_WN > least_WN.amin(0)  # nothing is farther than a NaN
    return row_WN.masked_fill(farther_WN, torch.inf).amin(0).long()


def _take_least_(least_b: Tensor, row_b: Tensor, distance_bc: Tensor, side: int, first: int) -> None:
    """Where a block has a lesser distance than all before, it and its candidate; a NaN is less than every
    number.

    side: 1 where the anchors are the block's rows, 0 where they are its columns. first: the first candidate's
    row.
    """
    # torch's minimum with its place is ten times slower than the minimum alone, so its place is asked within
    # the least of some segments, and only where it is news.
    length = math.gcd(distance_bc.shape[side], SEGMENT)
    distance = distance_bc.unflatten(side, (-1, length))
    least_here_b, segment_b = distance.amin(side + 1).min(side)
    better_b = ~(least_here_b >= least_b) & ~least_b.isnan()
    better_m = better_b.nonzero().squeeze(1)  # host sync
    segment_m = segment_b[better_m]
    of_segment_ms = distance[better_m, segment_m] if side == 1 else distance[segment_m, :, better_m]
    row_b[better_m] = segment_m * length + of_segment_ms.argmin(1) + first
    least_b[better_m] = least_here_b[better_m]


def _anchor_numbers(
    x_ND: Tensor,
    rows: slice,
    square_N: Tensor,
    hardest_negative_b: Tensor,
    positives: Positives,
    terms: BatchHardTerms,
) -> Tensor:
    """[b, 5] float64: hardest positive, hardest negative, value, pair weights of the one and of the other."""
    _, index_bP, positive_bP = positives.of_rows(rows)
    valid_b, x_bD = positives.valid_N[rows], x_ND[rows]
    distance_bP = square_N[index_bP] - 2 * similarities_within(x_ND, rows, index_bP)
    distance_bP.masked_fill_(~positive_bP, -torch.inf)
    place_b1 = distance_bP.max(1, keepdim=True).indices  # first of equals
    hardest_positive_b = index_bP.gather(1, place_b1).squeeze(1)
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
