"""The ranking loss in blocks of rows: O(N D) memory, no N x N matrix, its own backward.

Forward: a block of anchors' similarities S to all N rows, reduced at once to a few numbers per anchor,

    threshold t_k = margin - min_i S_ki,   log Z_k (Z is the log's argument),   least positive p_k,
    pushed mass q_k = sum_j w_k(j)   with   w_k(j) = 1[S_kj + t_k > 0] exp(S_kj + t_k) / Z_k on negatives j,

which are gathered over the ranks for every anchor. Backward: dL(k)/dS_kj is

    w_k(j) on negatives,   -q_k on p_k,   (pull / |B+|) (S_ki - 1) on every positive.

The gradient of row a takes a pair (a, b) twice, once per role: dX_a = sum_b (G_ab + G_ba) x_b. G_ba needs
only the gathered numbers of anchor b, so every rank finishes its own rows alone: no collective, no N x D
reduction. Where few negatives are inside the margin, one process lists them instead: see active.py.

Names: B = this rank's rows, N = rows of all ranks, D = columns, b = rows of a block,
P = rows of the largest identity.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..blocks import own_and_global_blocks
from ..first_order import first_order_only
from ..positives import Positives, find_positives
from ..ranks import RankLayout, gather_rows
from ..unit_rows import unit_rows
from .active import ActivePairs, recorder
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
        # float64 holds row numbers exactly.
        own_B6 = x_ND.new_empty((rows_BD.shape[0], 6), dtype=torch.float64)
        recorded = ctx.needs_input_grad[0] and not per_anchor  # the list holds a sum over the anchors
        active = recorder(x_ND, terms, layout) if recorded else None
        for block, rows in _own_blocks(x_ND, positives, layout):
            own_B6[block] = _anchor_numbers(x_ND, rows, positives, terms, active)
        threshold_N, log_Z_N, pushed_N, least_N, value_N, active_N = gather_rows(own_B6, layout).unbind(1)
        statistics = ranking_statistics(
            positives.valid_N, positives.negatives_N, active_N, terms, dtype=rows_BD.dtype
        )
        # The same sum over the same gathered numbers on every rank, so the value is equal to the last bit.
        loss = value_N if per_anchor else value_N.sum() / statistics.valid_anchors.clamp(min=1)

        dtype = rows_BD.dtype
        ctx.numbers = AnchorNumbers(
            threshold_N.to(dtype), log_Z_N.to(dtype), pushed_N.to(dtype), least_N.long()
        )
        ctx.positives, ctx.terms, ctx.layout, ctx.per_anchor = positives, terms, layout, per_anchor
        ctx.active = active if active is not None and active.complete else None
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
        if ctx.active is not None:
            return ctx.active.rows_gradient(x_ND).mul_(scale), None, None, None, None
        gradient_BD = x_ND.new_empty((layout.rows_per_rank[layout.rank], x_ND.shape[1]))
        for block, rows in _own_blocks(x_ND, ctx.positives, layout):
            G_bN = _pair_gradients(x_ND, rows, ctx.positives, ctx.numbers, ctx.terms, of_N)
            torch.mm(G_bN, x_ND, out=gradient_BD[block])
        return gradient_BD.mul_(scale), None, None, None, None


def _own_blocks(x_ND: Tensor, positives: Positives, layout: RankLayout) -> list[tuple[slice, slice]]:
    """This rank's blocks, each as (rows among its own, the same rows among the N)."""
    # Two matrices of b x N, and four of b x P (lists of positives: int64 indices, masks and values).
    bytes_per_row = 2 * x_ND.shape[0] * x_ND.element_size() + 32 * positives.widest
    return own_and_global_blocks(layout.own, bytes_per_row)


def _anchor_numbers(
    x_ND: Tensor, rows: slice, positives: Positives, terms: RankingTerms, active: ActivePairs | None
) -> Tensor:
    """[b, 6] float64: threshold, log Z, pushed mass, least positive, value, negatives inside the margin.

    The block's pairs are added to `active` while it is complete.
    """
    _, index_bP, positive_bP = positives.of_rows(rows)
    valid_b, negatives_b = positives.valid_N[rows], positives.negatives_N[rows]
    S_bN = x_ND[rows] @ x_ND.t()
    S_bP = S_bN.gather(1, index_bP)
    least_b = S_bP.masked_fill(~positive_bP, torch.inf).min(1).values
    at_least_bP = positive_bP & (S_bP == least_b[:, None])
    least_row_b = torch.where(at_least_bP, index_bP, x_ND.shape[0]).min(1).values
    never = NEVER if terms.bounded else -torch.inf
    threshold_b = torch.where(valid_b, terms.margin - least_b, never)

    gap_bN = S_bN.add_(threshold_b[:, None]).scatter_(1, index_bP, never)
    shift_b1 = None if terms.bounded else gap_bN.max(1, keepdim=True).values.clamp(min=0)
    inside_bN = torch.gt(gap_bN, 0, out=torch.empty_like(gap_bN))
    active_b = inside_bN.sum(1)
    pulled_bP = positive_bP & valid_b[:, None]
    if active and active.accepts(active_b, pulled_bP, inside_bN.numel()):
        place_m = inside_bN.view(-1).nonzero().squeeze(1)
        row_m = place_m.div(inside_bN.shape[1], rounding_mode="floor")
        weight_m = gap_bN.view(-1)[place_m].exp_()
        pushed_b = torch.zeros_like(active_b).index_add_(0, row_m, weight_m)
    else:
        active = None
        pushed_b = violations_(gap_bN, shift_b1, terms.bounded, inside_bN).sum(1)
    ones_b = 1 + (negatives_b - active_b if terms.negatives == "all" else torch.zeros_like(active_b))
    shift_b = torch.zeros_like(pushed_b) if shift_b1 is None else shift_b1.squeeze(1)
    Z_b = pushed_b + ones_b * torch.exp(-shift_b)
    log_Z_b = shift_b + torch.log(Z_b)
    squares_b = (S_bP - 1).square_().mul_(positive_bP).sum(1)
    pull_b = squares_b * (terms.pull / 2) / positives.positives_N[rows].clamp(min=1)
    value_b = torch.where(valid_b, log_Z_b + pull_b, 0)
    if active:
        positives_b1 = positives.positives_N[rows, None].clamp(min=1).to(S_bP.dtype)
        G_bP = (S_bP - 1) * (terms.pull / positives_b1)
        G_bP -= (pushed_b / Z_b)[:, None] * (index_bP == least_row_b[:, None])
        row_p, place_p = pulled_bP.nonzero().unbind(1)
        active.add_block(
            torch.cat([row_m, row_p]),
            torch.cat([place_m - row_m * inside_bN.shape[1], index_bP[row_p, place_p]]),
            torch.cat([weight_m / Z_b[row_m], G_bP[row_p, place_p]]),
            len(valid_b),
        )
    numbers = (threshold_b, log_Z_b, pushed_b / Z_b, least_row_b, value_b, active_b)
    return torch.stack([number.double() for number in numbers], 1)


def _pair_gradients(
    x_ND: Tensor,
    rows: slice,
    positives: Positives,
    numbers: AnchorNumbers,
    terms: RankingTerms,
    of_N: Tensor | None,
) -> Tensor:
    """G_ab + G_ba for the block's rows a and all rows b, not yet divided by the number of valid anchors.

    of_N: by how much each anchor counts; None: all alike.
    """
    rows_b, index_bP, positive_bP = positives.of_rows(rows)
    S_bN = x_ND[rows] @ x_ND.t()
    S_bP = S_bN.gather(1, index_bP)
    as_anchor_bN = torch.add(S_bN, numbers.threshold_N[rows, None])
    violations_(as_anchor_bN, numbers.log_Z_N[rows, None], terms.bounded)
    as_negative_bN = violations_(S_bN.add_(numbers.threshold_N), numbers.log_Z_N, terms.bounded)
    if of_N is not None:
        as_anchor_bN.mul_(of_N[rows, None])
        as_negative_bN.mul_(of_N)
    G_bN = as_anchor_bN.add_(as_negative_bN)

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
    # Filled-up places and the row itself carry 0, and several may write to the diagonal: the same 0.
    return G_bN.scatter_(1, index_bP, G_bP.mul_(positive_bP))
