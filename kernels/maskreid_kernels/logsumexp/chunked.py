"""The log-sum-exp losses in blocks of rows: O(N D) memory, no N x N matrix, their own backward.

Forward: the blocks of the triangle of similarities S (triangle.py), each reduced at once, by rows and by
columns, to A, the log-sum-exp of f over an anchor's negatives; over ranks the parts are added. From A and the
positives' similarities the loss makes three numbers per anchor (`terms.anchor`), which are gathered.
Backward: dL(k)/dS_kj is exp(f(S_kj) + log_weight_k) f'(S_kj) on a negative j and `terms.pull` on a positive.
The gradient of row a takes a pair (a, b) twice, once per role: dX_a = sum_b (G_ab + G_ba) x_b, and G + G^T is
symmetric as S is. G_ba needs only the gathered numbers of anchor b, so every rank finishes its own rows
alone: no collective, no N x D reduction.

Names: B = this rank's rows, N = rows of all ranks, W = ranks, D = columns, b, c = rows and columns of a
block, P = rows of the largest identity.
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
from .exponent import Exponent, least_exponent
from .terms import LogSumExpTerms


@dataclass(frozen=True)
class AnchorNumbers:
    """What the forward keeps of each anchor; [N] tensors in the compute dtype. See `LogSumExpTerms.anchor`.

    rest_N: what the compute dtype left out of log_weight_N, or None where that is nothing.
    """

    log_weight_N: Tensor
    rest_N: Tensor | None
    level_N: Tensor


def log_sum_exp_loss(
    rows_BD: Tensor, labels_B: Tensor, terms: LogSumExpTerms, layout: RankLayout, *, per_anchor: bool = False
) -> Tensor:
    """Collectives in the forward, none in the backward: rows, labels, and three numbers per anchor."""
    if terms.normalize:
        rows_BD = unit_rows(rows_BD)
    loss: Tensor = _LogSumExpLoss.apply(rows_BD, labels_B, terms, layout, per_anchor)
    return loss


class _LogSumExpLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows_BD: Tensor,
        labels_B: Tensor,
        terms: LogSumExpTerms,
        layout: RankLayout,
        per_anchor: bool,
    ) -> Tensor:
        x_ND = gather_rows(rows_BD, layout)
        positives = find_positives(gather_rows(labels_B, layout))
        A_N = _negatives(x_ND, positives, terms.exponent, bounded=terms.bounded, layout=layout)
        own_B3 = x_ND.new_empty((rows_BD.shape[0], 3), dtype=torch.float64)
        for block, rows in blocks_of_identities(x_ND, positives, layout.own):
            _, index_bP, positive_bP = positives.of_rows(rows)
            S_bP = similarities_within(x_ND, rows, index_bP)
            own_B3[block] = terms.anchor_numbers(A_N[rows], S_bP, positive_bP, positives.valid_N[rows])
        value_N, log_weight_N, level_N = gather_rows(own_B3, layout).unbind(1)
        valid_anchors = positives.valid_N.sum()

        dtype = rows_BD.dtype
        rest_N = None
        if terms.exact_log_weight and dtype != torch.float64:
            rest_N = log_weight_N - log_weight_N.to(dtype)
            rest_N = torch.where(log_weight_N.isfinite(), rest_N, 0).to(dtype)  # -inf: no weight
        ctx.numbers = AnchorNumbers(log_weight_N.to(dtype), rest_N, level_N.to(dtype))
        ctx.positives, ctx.terms, ctx.layout, ctx.per_anchor = positives, terms, layout, per_anchor
        ctx.save_for_backward(x_ND, valid_anchors)
        if per_anchor:
            return value_N.to(dtype)
        # The same sum over the same gathered numbers on every rank, so the value is equal to the last bit.
        return (value_N.sum() / valid_anchors.clamp(min=1)).to(dtype)

    @staticmethod
    @first_order_only
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        x_ND, valid_anchors = ctx.saved_tensors
        layout: RankLayout = ctx.layout
        of_N, scale = (gradients[0], x_ND.new_ones(())) if ctx.per_anchor else (None, gradients[0])
        if of_N is None:
            scale = scale * layout.world_size / valid_anchors.clamp(min=1)  # W: see maskreid_kernels.ranks
        scale = torch.where(valid_anchors > 0, scale, 0)
        gradient_BD = x_ND.new_empty((layout.rows_per_rank[layout.rank], x_ND.shape[1]))
        for block, rows in blocks_of_identities(x_ND, ctx.positives, layout.own):
            index_bP, pull_bP = _pulls(x_ND, rows, ctx.positives, ctx.numbers, ctx.terms, of_N)
            gradient_BD[block] = weighted_rows_within(x_ND, index_bP, pull_bP)
        _add_negatives_(gradient_BD, x_ND, ctx.positives, ctx.numbers, ctx.terms, layout, of_N)
        return gradient_BD.mul_(scale), None, None, None, None


def _negatives(
    x_ND: Tensor, positives: Positives, exponent: Exponent, *, bounded: bool, layout: RankLayout
) -> Tensor:
    """A of every anchor of all ranks, [N], -inf or as low without a negative."""
    triangle = Triangle(x_ND, positives, layout)
    if bounded:
        sum_N = x_ND.new_zeros(len(x_ND), dtype=torch.float64)
        for block in triangle.share():
            weight_bc = _bounded_weights(triangle, block, exponent)
            sum_N[block.rows] += weight_bc.sum(1)
            if block.columns_count:
                sum_N[block.columns] += weight_bc.sum(0)
        return gather_parts(sum_N, layout).sum(0).log_().to(x_ND.dtype)
    top_N = x_ND.new_full((len(x_ND),), torch.finfo(x_ND.dtype).min)  # no negative: -inf
    sum_N = torch.zeros_like(top_N)
    for block in triangle.share():
        f_bc, spare_bc = exponent.value_(triangle.similarities(block)), triangle.workspace(block, 1)
        triangle.fill_positives_(f_bc, block, -torch.inf)
        _add_exponentials_(top_N[block.rows], sum_N[block.rows], f_bc, spare_bc, 1)
        if block.columns_count:
            _add_exponentials_(top_N[block.columns], sum_N[block.columns], f_bc, spare_bc, 0)
    A_WN = gather_parts(sum_N.log().add_(top_N), layout)
    return A_WN[0] if layout.group is None else A_WN.logsumexp(0)


def _bounded_weights(triangle: Triangle, block: Block, exponent: Exponent) -> Tensor:
    """exp(f) of a block's negatives, 0 on positives: where f is bounded, one exponential serves both
    roles."""
    weight_bc = triangle.similarities(block, exponent.scale).exp_()
    triangle.fill_positives_(weight_bc, block, 0.0)
    return weight_bc


def _add_exponentials_(top_b: Tensor, sum_b: Tensor, f_bc: Tensor, spare_bc: Tensor, side: int) -> None:
    """Add a block's exp(f) to the sums of its anchors, its rows (side 1) or columns (0), each kept relative
    to its top."""
    top_here_b = torch.maximum(top_b, f_bc.amax(side))
    torch.sub(f_bc, top_here_b.unsqueeze(side), out=spare_bc)
    spare_bc.clamp_(min=least_exponent(f_bc.dtype)).exp_()
    sum_b.mul_(top_b.sub_(top_here_b).exp_()).add_(spare_bc.sum(side))
    top_b.copy_(top_here_b)


def _pulls(
    x_ND: Tensor,
    rows: slice,
    positives: Positives,
    numbers: AnchorNumbers,
    terms: LogSumExpTerms,
    of_N: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """(index_bP, G_ab + G_ba): the listed rows b of the anchors' identities, 0 on an anchor itself and
    filled-up places.

    Not yet divided by the number of valid anchors. of_N: by how much each anchor counts; None: all alike.
    """
    _, index_bP, positive_bP = positives.of_rows(rows)
    S_bP = similarities_within(x_ND, rows, index_bP)
    # Both rows of a pair of positives are anchors of one identity, valid or not together.
    count_b1 = positives.positives_N[rows, None]
    G_bP = terms.pull(S_bP, numbers.level_N[rows, None], count_b1)
    as_positive_bP = terms.pull(S_bP, numbers.level_N[index_bP], count_b1)
    if of_N is not None:
        G_bP, as_positive_bP = G_bP * of_N[rows, None], as_positive_bP * of_N[index_bP]
    G_bP = G_bP + as_positive_bP
    return index_bP, torch.where(positive_bP & positives.valid_N[rows, None], G_bP, 0)


def _add_negatives_(
    gradient_BD: Tensor,
    x_ND: Tensor,
    positives: Positives,
    numbers: AnchorNumbers,
    terms: LogSumExpTerms,
    layout: RankLayout,
    of_N: Tensor | None,
) -> None:
    """Add sum_b (G_ab + G_ba) x_b over the negatives b of every own row a."""
    triangle = Triangle(x_ND, positives, layout)
    exponent = terms.exponent
    weight_N = None
    if terms.bounded:
        weight_N = torch.exp(numbers.log_weight_N).mul_(exponent.scale)
        weight_N = weight_N if of_N is None else weight_N * of_N
    for block in triangle.own():
        if weight_N is not None:
            G_bc = _bounded_weights(triangle, block, exponent)
            both_bc = triangle.workspace(block, 1)
            G_bc.mul_(torch.add(weight_N[block.rows, None], weight_N[block.columns], out=both_bc))
        else:
            G_bc = _pair_gradients(triangle, block, numbers, exponent, of_N)
        triangle.add_products_(gradient_BD, G_bc, block)


def _pair_gradients(
    triangle: Triangle,
    block: Block,
    numbers: AnchorNumbers,
    exponent: Exponent,
    of_N: Tensor | None,
) -> Tensor:
    """G_ab + G_ba of a block's negatives, 0 on positives."""
    f_bc, as_anchor_bc = triangle.similarities(block), triangle.workspace(block, 1)
    slope = exponent.slope(f_bc)
    f_bc = exponent.value_(f_bc)
    least = least_exponent(f_bc.dtype)  # an anchor that is not valid weighs this little, not exactly nothing
    torch.add(f_bc, numbers.log_weight_N[block.rows, None], out=as_anchor_bc)
    as_negative_bc = f_bc.add_(numbers.log_weight_N[block.columns])
    if numbers.rest_N is not None:
        as_anchor_bc.add_(numbers.rest_N[block.rows, None])
        as_negative_bc.add_(numbers.rest_N[block.columns])
    as_anchor_bc.clamp_(min=least).exp_()
    as_negative_bc.clamp_(min=least).exp_()
    if of_N is not None:
        as_anchor_bc.mul_(of_N[block.rows, None])
        as_negative_bc.mul_(of_N[block.columns])
    G_bc = as_anchor_bc.add_(as_negative_bc).mul_(slope)
    triangle.fill_positives_(G_bc, block, 0.0)
    return G_bc
