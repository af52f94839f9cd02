"""The ranking loss for small batches: whole N x N matrices, and a gradient written by hand.

At a few hundred rows an operation's launch costs more than its arithmetic. The forward makes the gradient's
matrix G at once, so the backward is one product; nothing is cut into blocks, and every rank computes the
whole batch. The algebra is that of chunked.py. Names: N = rows of all ranks, D = columns.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..guards import first_order_only
from ..ranks import RankLayout, gather_rows
from ..unit_rows import inverse_norms, rows_gradient
from . import reference
from .terms import NEVER, RankingStatistics, RankingTerms, ranking_statistics, violations_


def ranking_loss(
    rows_BD: Tensor, labels_B: Tensor, terms: RankingTerms, layout: RankLayout, *, per_anchor: bool = False
) -> tuple[Tensor, RankingStatistics | None]:
    """Collectives in the forward, none in the backward: rows and labels."""
    if layout.total_rows == 0:
        return reference.ranking_loss(rows_BD, labels_B, terms, layout, per_anchor=per_anchor)
    loss, *numbers = _RankingLoss.apply(rows_BD, labels_B, terms, layout, per_anchor)
    return loss, RankingStatistics(*numbers) if terms.statistics else None


class _RankingLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows_BD: Tensor,
        labels_B: Tensor,
        terms: RankingTerms,
        layout: RankLayout,
        per_anchor: bool,
    ) -> tuple[Tensor, ...]:
        x_ND, labels_N = gather_rows(rows_BD, layout), gather_rows(labels_B, layout)
        inverse_N1 = inverse_norms(x_ND) if terms.normalize else None
        if inverse_N1 is not None:
            x_ND = x_ND * inverse_N1
        S_NN = x_ND @ x_ND.t()
        same_NN = labels_N[:, None] == labels_N
        count_N = same_NN.sum(1)
        valid_N = (count_N > 1) & (count_N < len(labels_N))
        positive_NN = same_NN.clone().fill_diagonal_(False)
        least_N, least_row_N = S_NN.masked_fill(~positive_NN, torch.inf).min(1)  # the first of equals
        never = NEVER if terms.bounded else -torch.inf
        threshold_N = torch.where(valid_N, terms.margin - least_N, never)
        gap_NN = torch.add(S_NN, threshold_N[:, None]).masked_fill_(same_NN, never)
        inside_NN = gap_NN > 0
        active_N = inside_NN.sum(1) if terms.statistics or terms.negatives == "all" else count_N
        shift_N1 = None if terms.bounded else gap_NN.max(1, keepdim=True).values.clamp(min=0)
        G_NN = violations_(gap_NN, shift_N1, terms.bounded, inside_NN)
        pushed_N = G_NN.sum(1)
        ones = 1 + (len(labels_N) - count_N - active_N) if terms.negatives == "all" else 1
        if shift_N1 is None:
            Z_N = pushed_N + ones
            log_Z_N = torch.log(Z_N)
        else:
            shift_N = shift_N1.squeeze(1)
            Z_N = pushed_N + ones * torch.exp(-shift_N)
            log_Z_N = shift_N + torch.log(Z_N)
        G_NN.div_(Z_N[:, None])
        G_NN.scatter_(1, least_row_N[:, None], -(pushed_N / Z_N)[:, None])
        short_NN = S_NN.sub_(1).mul_(positive_NN)
        pull_N = terms.pull * valid_N / (count_N - 1).clamp(min=1).to(S_NN.dtype)
        G_NN.addcmul_(short_NN, pull_N[:, None])
        squares_N = torch.linalg.vecdot(short_NN, short_NN)
        value_N = torch.where(valid_N, log_Z_N, 0).addcmul_(squares_N, pull_N, value=0.5)
        valid_anchors = valid_N.sum()
        loss = value_N if per_anchor else value_N.sum() / valid_anchors.clamp(min=1)
        ctx.layout, ctx.per_anchor = layout, per_anchor
        ctx.save_for_backward(x_ND, inverse_N1, G_NN, valid_anchors)
        if not terms.statistics:
            return (loss,)
        made = ranking_statistics(valid_N, len(labels_N) - count_N, active_N, terms, rows_BD.dtype)
        outputs = (made.floor, made.active_negative_fraction, made.valid_anchors)
        ctx.mark_non_differentiable(*outputs)
        return loss, *outputs

    @staticmethod
    @first_order_only
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        x_ND, inverse_N1, G_NN, valid_anchors = ctx.saved_tensors
        layout: RankLayout = ctx.layout
        if ctx.per_anchor:
            G_NN = G_NN * gradients[0][:, None]
            one = G_NN.new_ones(())
            return rows_gradient(G_NN, x_ND, inverse_N1, layout.own, one), None, None, None, None
        scale = gradients[0] * layout.world_size / valid_anchors.clamp(min=1)  # W: see maskreid_kernels.ranks
        return rows_gradient(G_NN, x_ND, inverse_N1, layout.own, scale), None, None, None, None
