"""The log-sum-exp losses for small batches: whole N x N matrices, and a gradient written by hand.

At a few hundred rows an operation's launch costs more than its arithmetic. The forward makes the gradient's
matrix at once, so the backward is one product; every rank computes the whole batch. The algebra is that of
chunked.py. Names: N = rows of all ranks, D = columns, P = rows of the largest identity.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..guards import first_order_only
from ..positives import find_positives
from ..ranks import RankLayout, gather_rows
from ..unit_rows import inverse_norms, rows_gradient
from . import reference
from .exponent import least_exponent
from .terms import LogSumExpTerms


def log_sum_exp_loss(
    rows_BD: Tensor, labels_B: Tensor, terms: LogSumExpTerms, layout: RankLayout, *, per_anchor: bool = False
) -> Tensor:
    """Collectives in the forward, none in the backward: rows and labels."""
    if layout.total_rows == 0:
        return reference.log_sum_exp_loss(rows_BD, labels_B, terms, layout, per_anchor=per_anchor)
    loss: Tensor = _LogSumExpLoss.apply(rows_BD, labels_B, terms, layout, per_anchor)
    return loss


# Up to here lists of positives cost more launches than whole matrices cost arithmetic.
WHOLE_UP_TO_ROWS = 80


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
        x_ND, labels_N = gather_rows(rows_BD, layout), gather_rows(labels_B, layout)
        inverse_N1 = inverse_norms(x_ND) if terms.normalize else None
        if inverse_N1 is not None:
            x_ND = x_ND * inverse_N1
        S_NN = x_ND @ x_ND.t()
        f_NN = terms.exponent.value(S_NN)
        whole = len(labels_N) <= WHOLE_UP_TO_ROWS
        if whole:
            same_NN = labels_N[:, None] == labels_N
            count_N = same_NN.sum(1)
            is_positive_NP = same_NN.clone().fill_diagonal_(False)
            S_NP = S_NN
            f_NN.masked_fill_(same_NN, -torch.inf)
        else:
            positives = find_positives(labels_N)
            count_N = positives.count_N
            _, same_NP, is_positive_NP = positives.of_rows(slice(0, len(labels_N)))
            S_NP = S_NN.gather(1, same_NP)
            f_NN.scatter_(1, same_NP, -torch.inf)
        valid_N = (count_N > 1).logical_and_(count_N < len(labels_N))
        valid_N1 = valid_N[:, None]
        largest_N1 = f_NN.amax(1, keepdim=True).clamp_(min=torch.finfo(f_NN.dtype).min)
        # e^(f - its largest): the anchor's sum and, weighted, its gradient. Places of its identity hold next
        # to 0.
        G_NN = f_NN.sub_(largest_N1).clamp_(min=least_exponent(f_NN.dtype)).exp_()
        A_N = G_NN.sum(1).log_().add_(largest_N1[:, 0])
        value_N, log_weight_N, level_N = terms.anchor(A_N, S_NP, is_positive_NP)
        valid_anchors = valid_N.sum().clamp_(min=1)
        value_N = torch.where(valid_N, value_N, 0)
        loss = value_N if per_anchor else value_N.sum() / valid_anchors

        weight_N1 = torch.where(valid_N1, largest_N1.add_(log_weight_N[:, None]).exp_(), 0)  # dL/dA <= 1
        slope = terms.exponent.slope(S_NN)
        if isinstance(slope, Tensor):
            G_NN.mul_(slope).mul_(weight_N1)
        else:
            G_NN.mul_(weight_N1.mul_(slope))
        pull_NP = terms.pull(S_NP, level_N[:, None], (count_N - 1)[:, None])
        is_pulled_NP = is_positive_NP.logical_and_(valid_N1)
        if whole:
            G_NN = torch.where(is_pulled_NP, pull_NP, G_NN)
        else:
            G_NN.scatter_(1, same_NP, torch.where(is_pulled_NP, pull_NP, 0))
        ctx.layout, ctx.per_anchor = layout, per_anchor
        ctx.save_for_backward(x_ND, inverse_N1, G_NN, valid_anchors)
        return loss

    @staticmethod
    @first_order_only
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        x_ND, inverse_N1, G_NN, valid_anchors = ctx.saved_tensors
        layout: RankLayout = ctx.layout
        if ctx.per_anchor:
            G_NN = G_NN * gradients[0][:, None]
            one = G_NN.new_ones(())
            return rows_gradient(G_NN, x_ND, inverse_N1, layout.own, one), None, None, None, None
        scale = gradients[0] / valid_anchors
        if layout.world_size > 1:
            scale = scale * layout.world_size  # W: see maskreid_kernels.ranks
        return rows_gradient(G_NN, x_ND, inverse_N1, layout.own, scale), None, None, None, None
