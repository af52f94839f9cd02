"""The ranking loss in blocks of rows: O(N D) memory, no N x N matrix, its own backward.

Forward: from the similarities S within identities (identities.py), for every anchor k,

    threshold t_k = margin - min_i S_ki,   least positive p_k,   the pull's value,

which are gathered over the ranks; then the blocks of the triangle of similarities (triangle.py), reduced at
once, by rows and by columns, to the sum over the negatives inside the margin and their count. Over ranks the
parts are added:

    log Z_k (Z is the log's argument),
    pushed mass q_k = sum_j w_k(j)   with   w_k(j) = 1[S_kj + t_k > 0] exp(S_kj + t_k) / Z_k on negatives j.

Backward: dL(k)/dS_kj is

    w_k(j) on negatives,   -q_k on p_k,   (pull / |B+|) (S_ki - 1) on every positive.

The gradient of row a takes a pair (a, b) twice, once per role: dX_a = sum_b (G_ab + G_ba) x_b, and G + G^T is
symmetric as S is. G_ba needs only the numbers of anchor b, so every rank finishes its own rows alone: no
collective, no N x D reduction. Where few negatives are inside the margin they are listed instead: see
active.py.

Names: B = this rank's rows, N = rows of all ranks, W = ranks, D = columns, b, c = rows and columns of a
block, P = rows of the largest identity, m = pairs of a list.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..guards import first_order_only
from ..identities import blocks_of_identities, similarities_within, weighted_rows_within
from ..positives import Positives, find_positives
from ..ranks import RankLayout, gather_parts, gather_rows
from ..triangle import Block, Triangle
from ..unit_rows import unit_rows
from .active import ActivePairs, Finder, add_weighted_rows_, recorder
from .terms import NEVER, RankingStatistics, RankingTerms, ranking_statistics, violations_


@dataclass(frozen=True)
class AnchorNumbers:
    """What the forward keeps of each anchor; [N] tensors in the compute dtype, least_N int64."""

    threshold_N: Tensor
    log_Z_N: Tensor
    pushed_N: Tensor
    least_N: Tensor


def ranking_loss(
    rows_BD: Tensor, labels_B: Tensor, terms: RankingTerms, layout: RankLayout, *, per_anchor: bool = False
) -> tuple[Tensor, RankingStatistics]:
    """Collectives in the forward, none in the backward: rows, labels, and six numbers per anchor."""
    if terms.normalize:
        rows_BD = unit_rows(rows_BD)
    loss, floor, fraction, valid = _RankingLoss.apply(rows_BD, labels_B, terms, layout, per_anchor)
    return loss, RankingStatistics(floor, fraction, valid)


class _RankingLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows_BD: Tensor,
        labels_B: Tensor,
        terms: RankingTerms,
        layout: RankLayout,
        per_anchor: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x_ND = gather_rows(rows_BD, layout)
        positives = find_positives(gather_rows(labels_B, layout))
        threshold_N, least_N, pull_N = _of_positives(x_ND, positives, terms, layout)
        active = recorder(x_ND, terms)
        if active is not None and (layout.group is not None or not ctx.needs_input_grad[0]):
            active.give_up()  # pairs are looked for, and not kept for a backward
        triangle = Triangle(x_ND, positives, layout)
        shift_N, pushed_N, active_N = _of_negatives(x_ND, threshold_N, triangle, terms, active)
        statistics = ranking_statistics(
            positives.valid_N, positives.negatives_N, active_N, terms, dtype=rows_BD.dtype
        )
        ones_N = positives.negatives_N - active_N if terms.negatives == "all" else torch.zeros_like(active_N)
        Z_N = pushed_N + (1 + ones_N) * torch.exp(-shift_N)
        log_Z_N = shift_N + torch.log(Z_N)
        value_N = torch.where(positives.valid_N, log_Z_N + pull_N, 0)
        # The same sum over the same gathered numbers on every rank, so the value is equal to the last bit.
        loss = value_N if per_anchor else value_N.sum() / statistics.valid_anchors.clamp(min=1)

        dtype = rows_BD.dtype
        ctx.numbers = AnchorNumbers(threshold_N, log_Z_N.to(dtype), (pushed_N / Z_N).to(dtype), least_N)
        ctx.positives, ctx.terms, ctx.layout, ctx.per_anchor = positives, terms, layout, per_anchor
        ctx.active = active if active is not None and active.complete else None
        ctx.whole_S = triangle.whole() if ctx.active is None and ctx.needs_input_grad[0] else None
        ctx.save_for_backward(x_ND, statistics.valid_anchors)
        outputs = (statistics.floor, statistics.active_negative_fraction, statistics.valid_anchors)
        ctx.mark_non_differentiable(*outputs)
        return (loss.to(dtype), *outputs)

    @staticmethod
    @first_order_only
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        x_ND, valid_anchors = ctx.saved_tensors
        layout: RankLayout = ctx.layout
        of_N, scale = (gradients[0], x_ND.new_ones(())) if ctx.per_anchor else (None, gradients[0])
        if of_N is None:
            scale = scale * layout.world_size / valid_anchors.clamp(min=1)  # W: see maskreid_kernels.ranks
        gradient_BD = x_ND.new_empty((layout.rows_per_rank[layout.rank], x_ND.shape[1]))
        for block, rows in blocks_of_identities(x_ND, ctx.positives, layout.own):
            index_bP, pull_bP = _pulls(x_ND, rows, ctx.positives, ctx.numbers, ctx.terms, of_N)
            gradient_BD[block] = weighted_rows_within(x_ND, index_bP, pull_bP)
        if ctx.active is not None:
            _add_listed_(gradient_BD, x_ND, ctx.active, ctx.numbers, of_N)
        else:
            triangle = Triangle(x_ND, ctx.positives, layout)
            _add_negatives_(gradient_BD, triangle, ctx.whole_S, ctx.numbers, ctx.terms, of_N)
        return gradient_BD.mul_(scale), None, None, None, None


def _of_positives(
    x_ND: Tensor, positives: Positives, terms: RankingTerms, layout: RankLayout
) -> tuple[Tensor, Tensor, Tensor]:
    """threshold_N, least_N int64, the pull's value [N] float64: of every anchor of all ranks (a
    collective)."""
    # float64 holds row numbers exactly
    own_B3 = x_ND.new_empty((layout.rows_per_rank[layout.rank], 3), dtype=torch.float64)
    for block, rows in blocks_of_identities(x_ND, positives, layout.own):
        _, index_bP, positive_bP = positives.of_rows(rows)
        S_bP = similarities_within(x_ND, rows, index_bP)
        least_b = S_bP.masked_fill(~positive_bP, torch.inf).min(1).values
        at_least_bP = positive_bP & (S_bP == least_b[:, None])
        least_row_b = torch.where(at_least_bP, index_bP, len(x_ND)).min(1).values
        never = NEVER if terms.bounded else -torch.inf
        threshold_b = torch.where(positives.valid_N[rows], terms.margin - least_b, never)
        squares_b = (S_bP - 1).square_().mul_(positive_bP).sum(1)
        pull_b = squares_b * (terms.pull / 2) / positives.positives_N[rows].clamp(min=1)
        own_B3[block] = torch.stack([threshold_b.double(), least_row_b.double(), pull_b.double()], 1)
    threshold_N, least_N, pull_N = gather_rows(own_B3, layout).unbind(1)
    return threshold_N.to(x_ND.dtype), least_N.long(), pull_N


def _of_negatives(
    x_ND: Tensor, threshold_N: Tensor, triangle: Triangle, terms: RankingTerms, active: ActivePairs | None
) -> tuple[Tensor, Tensor, Tensor]:
    """shift, pushed, active [N] float64: the sum of exp(gap - shift) over the negatives inside the margin,
    and their count.

    Of every anchor of all ranks (a collective). Pairs are looked for, and added to `active`, where there is
    one.
    """
    finder = Finder(triangle.largest) if active is not None else None
    sums_3N = x_ND.new_zeros((3, len(x_ND)), dtype=torch.float64)
    for block in triangle.share():
        S_bc = triangle.similarities(block)
        triangle.fill_positives_(S_bc, block, _never_similar(terms))
        place_m = None
        if finder is not None:
            limits = (-threshold_N[block.rows], -threshold_N[block.columns])
            place_m = finder.places(S_bc, *limits, triangle.workspace(block, 1))
        if active is not None and place_m is not None:
            _add_pairs_(sums_3N, threshold_N, S_bc, place_m, block, active)
            continue
        if active is not None:
            active.give_up()
        gap_bc, inside_bc = triangle.workspace(block, 1), triangle.workspace(block, 2)
        for side, anchors in ((1, block.rows), (0, block.columns)):
            if side or block.columns_count:
                torch.add(S_bc, threshold_N[anchors].unsqueeze(side), out=gap_bc)
                _add_violations_(sums_3N[:, anchors], gap_bc, inside_bc, side, bounded=terms.bounded)
    shift_WN, pushed_WN, active_WN = gather_parts(sums_3N, triangle.layout).unbind(1)
    shift_N = shift_WN.amax(0)
    return shift_N, (pushed_WN * torch.exp(shift_WN - shift_N)).sum(0), active_WN.sum(0)


def _never_similar(terms: RankingTerms) -> float:
    """A similarity that is inside no margin; where S is bounded, near enough for exp to be fast."""
    return -max(terms.margin, 0.0) - 2 if terms.bounded else -torch.inf


def _add_pairs_(
    sums_3N: Tensor, threshold_N: Tensor, S_bc: Tensor, place_m: Tensor, block: Block, active: ActivePairs
) -> None:
    """Add a block's listed pairs to the sums of both their rows; a pair of a block on the diagonal is found
    twice there."""
    row_m = place_m.div(block.shape[1], rounding_mode="floor")
    column_m = place_m - row_m * block.shape[1] + block.columns.start
    row_m += block.rows.start
    if not block.columns_count:
        once_m = row_m < column_m
        place_m, row_m, column_m = place_m[once_m], row_m[once_m], column_m[once_m]
    S_m = S_bc.view(-1)[place_m]
    for anchor_m in (row_m, column_m):
        gap_m = S_m + threshold_N[anchor_m]
        inside_m = gap_m > 0
        sums_3N[1].index_add_(0, anchor_m, gap_m.exp_().mul_(inside_m).double())
        sums_3N[2].index_add_(0, anchor_m, inside_m.double())
    active.add(block, row_m, column_m, S_m)


def _add_violations_(sums_3b: Tensor, gap_bc: Tensor, inside_bc: Tensor, side: int, *, bounded: bool) -> None:
    """Add a block's negatives inside the margin to the sums of its anchors, its rows (side 1) or its columns
    (0)."""
    shift_b, pushed_b, active_b = sums_3b
    active_b += torch.gt(gap_bc, 0, out=inside_bc).sum(side)
    if bounded:
        pushed_b += gap_bc.exp_().mul_(inside_bc).sum(side)
        return
    higher_b = torch.maximum(shift_b, gap_bc.amax(side))
    pushed_b *= torch.exp(shift_b - higher_b)
    pushed_b += violations_(gap_bc, higher_b.to(gap_bc.dtype).unsqueeze(side), bounded).sum(side)
    shift_b.copy_(higher_b)


def _pulls(
    x_ND: Tensor,
    rows: slice,
    positives: Positives,
    numbers: AnchorNumbers,
    terms: RankingTerms,
    of_N: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """(index_bP, G_ab + G_ba): the listed rows b of the anchors' identities, 0 on an anchor itself and
    filled-up places.

    Not yet divided by the number of valid anchors. of_N: by how much each anchor counts; None: all alike.
    """
    rows_b, index_bP, positive_bP = positives.of_rows(rows)
    S_bP = similarities_within(x_ND, rows, index_bP)
    # One identity has one |B+| and one validity: both roles of a pair of positives pull alike, hence the 2.
    weight_b = positives.valid_N[rows].to(x_ND.dtype) * (2 * terms.pull)
    pull_b = weight_b / positives.positives_N[rows].clamp(min=1)
    G_bP = (S_bP - 1) * pull_b[:, None]
    pushed_N = numbers.pushed_N
    if of_N is not None:
        G_bP *= (of_N[rows, None] + of_N[index_bP]) / 2
        pushed_N = pushed_N * of_N
    G_bP -= pushed_N[rows, None] * (index_bP == numbers.least_N[rows, None])
    G_bP -= pushed_N[index_bP] * (numbers.least_N[index_bP] == rows_b[:, None])
    return index_bP, G_bP.mul_(positive_bP)


def _add_listed_(
    gradient_ND: Tensor, x_ND: Tensor, active: ActivePairs, numbers: AnchorNumbers, of_N: Tensor | None
) -> None:
    """Add sum_b (G_ab + G_ba) x_b over the negatives b of every row a, from the list."""
    row_m, column_m, S_m = active.pairs()
    G_m = torch.zeros_like(S_m)
    for anchor_m in (row_m, column_m):
        weight_m = violations_(S_m + numbers.threshold_N[anchor_m], numbers.log_Z_N[anchor_m], True)
        G_m += weight_m if of_N is None else weight_m * of_N[anchor_m]
    add_weighted_rows_(gradient_ND, x_ND, row_m, column_m, G_m)


def _add_negatives_(
    gradient_BD: Tensor,
    triangle: Triangle,
    whole_S: Tensor | None,
    numbers: AnchorNumbers,
    terms: RankingTerms,
    of_N: Tensor | None,
) -> None:
    """Add sum_b (G_ab + G_ba) x_b over the negatives b of every own row a, from their similarities. whole_S:
    those of the forward, where they were one block; not written to, a second backward may come."""
    for block in triangle.own():
        S_bc = triangle.similarities(block) if whole_S is None else whole_S
        G_bc, H_bc = triangle.workspace(block, 1), triangle.workspace(block, 0 if whole_S is None else 2)
        torch.add(S_bc, numbers.threshold_N[block.rows, None], out=G_bc)
        violations_(G_bc, numbers.log_Z_N[block.rows, None], terms.bounded)
        torch.add(S_bc, numbers.threshold_N[block.columns], out=H_bc)
        violations_(H_bc, numbers.log_Z_N[block.columns], terms.bounded)
        if of_N is not None:
            G_bc.mul_(of_N[block.rows, None])
            H_bc.mul_(of_N[block.columns])
        triangle.fill_positives_(G_bc.add_(H_bc), block, 0.0)
        triangle.add_products_(gradient_BD, G_bc, block)
