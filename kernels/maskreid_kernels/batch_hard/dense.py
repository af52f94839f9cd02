"""Batch-hard for small batches: whole N x N mining, and a gradient written by hand.

At a few hundred rows an operation's launch costs more than its arithmetic: nothing is cut into blocks, and
every rank computes the whole batch. The algebra is that of chunked.py. Names: N = rows of all ranks, D =
columns.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..guards import first_order_only
from ..ranks import RankLayout, gather_rows
from ..unit_rows import inverse_norms
from . import reference
from .terms import BatchHardTerms, gradient_per_difference, mining_distances


def batch_hard_loss(
    rows_BD: Tensor, labels_B: Tensor, terms: BatchHardTerms, layout: RankLayout, *, per_anchor: bool = False
) -> Tensor:
    """Collectives in the forward, none in the backward: rows and labels."""
    if layout.total_rows == 0:
        return reference.batch_hard_loss(rows_BD, labels_B, terms, layout, per_anchor=per_anchor)
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
        x_ND, labels_N = gather_rows(rows_BD, layout), gather_rows(labels_B, layout)
        inverse_N1 = inverse_norms(x_ND) if terms.normalize else None
        if inverse_N1 is not None:
            x_ND = x_ND * inverse_N1
        if terms.distance == "cosine":
            distance_NN = (x_ND @ x_ND.t()).neg_()
        else:
            distance_NN = mining_distances(x_ND, x_ND, torch.linalg.vecdot(x_ND, x_ND))
        same_NN = labels_N[:, None] == labels_N
        count_N = same_NN.sum(1)
        valid_N = (count_N > 1) & (count_N < len(labels_N))
        positive_NN = same_NN.clone().fill_diagonal_(False)
        positive_N = distance_NN.masked_fill(~positive_NN, -torch.inf).argmax(1)  # the first of equals
        negative_N = distance_NN.masked_fill_(same_NN, torch.inf).argmin(1)
        toward_N = terms.pair_distance(x_ND, x_ND.index_select(0, positive_N))
        away_N = terms.pair_distance(x_ND, x_ND.index_select(0, negative_N))
        gap_N = toward_N - away_N
        valid_anchors = valid_N.sum().clamp(min=1)
        value_N = torch.where(valid_N, terms.hinge(gap_N), 0)
        loss = value_N if per_anchor else value_N.sum() / valid_anchors

        slope_N = terms.hinge_gradient(gap_N) * valid_N
        toward_N = slope_N * gradient_per_difference(toward_N, terms)
        away_N = slope_N * gradient_per_difference(away_N, terms)
        ctx.terms, ctx.layout, ctx.per_anchor = terms, layout, per_anchor
        ctx.save_for_backward(x_ND, inverse_N1, positive_N, negative_N, toward_N, away_N, valid_anchors)
        return loss

    @staticmethod
    @first_order_only
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        x_ND, inverse_N1, positive_N, negative_N, toward_N, away_N, valid_anchors = ctx.saved_tensors
        layout: RankLayout = ctx.layout
        scale = gradients[0]
        if not ctx.per_anchor:
            scale = scale * layout.world_size / valid_anchors  # W: see maskreid_kernels.ranks
        gradient_ND = torch.zeros_like(x_ND)
        for other_N, weight_N in ((positive_N, toward_N * scale), (negative_N, away_N * -scale)):
            x_other_ND = x_ND.index_select(0, other_N)
            if ctx.terms.distance == "cosine":
                gradient_ND.addcmul_(x_other_ND, weight_N[:, None], value=-1)
                step_ND = x_ND * weight_N[:, None]
            else:
                step_ND = x_other_ND.sub_(x_ND).mul_(weight_N[:, None]).neg_()
                gradient_ND += step_ND
            if gradient_ND.is_cuda:  # sorts by row; index_add_ would add atomically, in any order
                gradient_ND.index_put_((other_N,), -step_ND, accumulate=True)
            else:
                gradient_ND.index_add_(0, other_N, step_ND, alpha=-1)
        gradient_BD, x_BD = gradient_ND[layout.own], x_ND[layout.own]
        if inverse_N1 is not None:
            along_B1 = torch.linalg.vecdot(gradient_BD, x_BD).unsqueeze(1)
            gradient_BD = gradient_BD.addcmul_(x_BD, along_B1, value=-1).mul_(inverse_N1[layout.own])
        return gradient_BD, None, None, None, None
