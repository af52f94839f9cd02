"""The log-sum-exp losses in blocks of rows: O(N D) memory, no N x N matrix, their own backward.

Forward: a block of anchors' similarities S to all N rows, reduced at once to A, the log-sum-exp of f over the
negatives; from it and the positives' similarities the loss makes three numbers per anchor (`terms.anchor`),
which are gathered over the ranks. Backward: dL(k)/dS_kj is exp(f(S_kj) + log_weight_k) f'(S_kj) on a negative
j and `terms.pull` on a positive. The gradient of row a takes a pair (a, b) twice, once per role: dX_a = sum_b
(G_ab + G_ba) x_b. G_ba needs only the gathered numbers of anchor b, so every rank finishes its own rows
alone: no collective, no N x D reduction.

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
from .exponent import least_exponent
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
        own_B3 = x_ND.new_empty((rows_BD.shape[0], 3), dtype=torch.float64)
        for block, rows in _own_blocks(x_ND, positives, layout):
            own_B3[block] = _anchor_numbers(x_ND, rows, positives, terms)
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
        for block, rows in _own_blocks(x_ND, ctx.positives, layout):
            G_bN = _pair_gradients(x_ND, rows, ctx.positives, ctx.numbers, ctx.terms, of_N)
            torch.mm(G_bN, x_ND, out=gradient_BD[block])
        return gradient_BD.mul_(scale), None, None, None, None


def _own_blocks(x_ND: Tensor, positives: Positives, layout: RankLayout) -> list[tuple[slice, slice]]:
    """This rank's blocks, each as (rows among its own, the same rows among the N)."""
    # Three matrices of b x N at most, and five of b x P (lists of positives: int64 indices, masks and
    # values).
    bytes_per_row = 3 * x_ND.shape[0] * x_ND.element_size() + 40 * positives.widest
    return own_and_global_blocks(layout.own, bytes_per_row)


def _anchor_numbers(x_ND: Tensor, rows: slice, positives: Positives, terms: LogSumExpTerms) -> Tensor:
    """`LogSumExpTerms.anchor_numbers` of a block's anchors."""
    _, index_bP, positive_bP = positives.of_rows(rows)
    S_bN = x_ND[rows] @ x_ND.t()
    S_bP = S_bN.gather(1, index_bP)
    f_bN = terms.exponent.value_(S_bN).scatter_(1, index_bP, -torch.inf)
    top_b1 = f_bN.amax(1, keepdim=True).clamp(min=torch.finfo(f_bN.dtype).min)  # no negative: -inf
    sum_b1 = f_bN.sub_(top_b1).clamp_(min=least_exponent(f_bN.dtype)).exp_().sum(1, keepdim=True)
    A_b = sum_b1.log().add_(top_b1).squeeze(1)
    return terms.anchor_numbers(A_b, S_bP, positive_bP, positives.valid_N[rows])


def _pair_gradients(
    x_ND: Tensor,
    rows: slice,
    positives: Positives,
    numbers: AnchorNumbers,
    terms: LogSumExpTerms,
    of_N: Tensor | None,
) -> Tensor:
    """G_ab + G_ba for the block's rows a and all rows b, not yet divided by the number of valid anchors.

    of_N: by how much each anchor counts; None: all alike.
    """
    _, index_bP, positive_bP = positives.of_rows(rows)
    S_bN = x_ND[rows] @ x_ND.t()
    S_bP = S_bN.gather(1, index_bP)
    slope = terms.exponent.slope(S_bN)
    f_bN = terms.exponent.value_(S_bN)
    least = least_exponent(f_bN.dtype)  # an anchor that is not valid weighs this little, not exactly nothing
    as_anchor_bN = torch.add(f_bN, numbers.log_weight_N[rows, None])
    as_negative_bN = f_bN.add_(numbers.log_weight_N)
    if numbers.rest_N is not None:
        as_anchor_bN.add_(numbers.rest_N[rows, None])
        as_negative_bN.add_(numbers.rest_N)
    as_anchor_bN.clamp_(min=least).exp_()
    as_negative_bN.clamp_(min=least).exp_()
    if of_N is not None:
        as_anchor_bN.mul_(of_N[rows, None])
        as_negative_bN.mul_(of_N)
    G_bN = as_anchor_bN.add_(as_negative_bN).mul_(slope)

    # Both rows of a pair of positives are anchors of one identity, valid or not together.
    count_b1 = positives.positives_N[rows, None]
    G_bP = terms.pull(S_bP, numbers.level_N[rows, None], count_b1)
    as_positive_bP = terms.pull(S_bP, numbers.level_N[index_bP], count_b1)
    if of_N is not None:
        G_bP, as_positive_bP = G_bP * of_N[rows, None], as_positive_bP * of_N[index_bP]
    G_bP += as_positive_bP
    counted_bP = positive_bP & positives.valid_N[rows, None]
    # Filled-up places and the row itself carry 0, and several may write to the diagonal: the same 0.
    return G_bN.scatter_(1, index_bP, torch.where(counted_bP, G_bP, 0))
