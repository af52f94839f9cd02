"""The log-sum-exp losses for small batches: whole N x N matrices, and a gradient written by hand.

At a few hundred rows an operation's launch costs more than its arithmetic. The forward makes the gradient's matrix at
once, so the backward is one product; every rank computes the whole batch. The algebra is that of chunked.py, with all
N rows in the place of an anchor's list of positives. Names: N = rows of all ranks, D = columns.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..first_order import first_order_only
from ..pair_matrix import rows_gradient
from ..ranks import RankLayout, gather_rows
from ..unit_rows import inverse_norms
from . import reference
from .exponent import least_exponent
from .terms import LogSumExpTerms


def log_sum_exp_loss(rows_BD: Tensor, labels_B: Tensor, terms: LogSumExpTerms, layout: RankLayout) -> Tensor:
    """Collectives in the forward, none in the backward: rows and labels."""
    if layout.total_rows == 0:
        return reference.log_sum_exp_loss(rows_BD, labels_B, terms, layout)
    loss: Tensor = _LogSumExpLoss.apply(rows_BD, labels_B, terms, layout)
    return loss


class _LogSumExpLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows_BD: Tensor, labels_B: Tensor, terms: LogSumExpTerms, layout: RankLayout
    ) -> Tensor:
        x_ND, labels_N = gather_rows(rows_BD, layout), gather_rows(labels_B, layout)
        inverse_N1 = inverse_norms(x_ND) if terms.normalize else None
        if inverse_N1 is not None:
            x_ND = x_ND * inverse_N1
        S_NN = x_ND @ x_ND.t()
        same_NN = labels_N[:, None] == labels_N
        count_N = same_NN.sum(1)
        valid_N = (count_N > 1) & (count_N < len(labels_N))
        positive_NN = same_NN.clone().fill_diagonal_(False)
        f_NN = terms.exponent.value_(S_NN.clone()).masked_fill_(same_NN, -torch.inf)
        value_N, log_weight_N, level_N = terms.anchor(f_NN.logsumexp(1), S_NN, positive_NN)
        valid_anchors = valid_N.sum()
        loss: Tensor = torch.where(valid_N, value_N, 0).sum() / valid_anchors.clamp(min=1)

        log_weight_N = torch.where(valid_N, log_weight_N, -torch.inf)
        f_NN.add_(log_weight_N[:, None]).clamp_(min=least_exponent(f_NN.dtype))
        G_NN = f_NN.exp_().masked_fill_(same_NN, 0).mul_(terms.exponent.slope(S_NN))
        pull_NN = terms.pull(S_NN, level_N[:, None], (count_N - 1)[:, None])
        G_NN = torch.where(positive_NN, pull_NN, G_NN).masked_fill_(~valid_N[:, None], 0)
        ctx.layout = layout
        ctx.save_for_backward(x_ND, inverse_N1, G_NN, valid_anchors)
        return loss

    @staticmethod
    @first_order_only
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        x_ND, inverse_N1, G_NN, valid_anchors = ctx.saved_tensors
        layout: RankLayout = ctx.layout
        scale = gradients[0] * layout.world_size / valid_anchors.clamp(min=1)  # W: see maskreid_kernels.ranks
        return rows_gradient(G_NN, x_ND, inverse_N1, layout.own, scale), None, None, None
