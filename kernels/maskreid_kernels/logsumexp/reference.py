"""The log-sum-exp losses as plain autograd over N x N matrices: the specification of the other backends."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ranks import RankLayout, gather_rows, gather_rows_with_gradient
from ..unit_rows import products, unit_rows_reference
from .terms import LogSumExpTerms


def log_sum_exp_loss(
    rows_BD: Tensor, labels_B: Tensor, terms: LogSumExpTerms, layout: RankLayout, *, per_anchor: bool = False
) -> Tensor:
    """Every rank computes the whole loss (collectives: rows, labels) and keeps its own rows' gradient."""
    x_ND = gather_rows_with_gradient(rows_BD, layout)
    labels_N = gather_rows(labels_B, layout)
    if terms.normalize:
        x_ND = unit_rows_reference(x_ND)
    if x_ND.shape[0] == 0:
        return x_ND.sum(1) if per_anchor else x_ND.sum()
    same_NN = labels_N[:, None] == labels_N
    positive_NN = same_NN & ~torch.eye(len(labels_N), dtype=torch.bool, device=labels_N.device)
    valid_N = positive_NN.any(1) & ~same_NN.all(1)
    S_VN = products(x_ND[valid_N], x_ND)
    loss_V = terms.loss(S_VN, positive_NN[valid_N], ~same_NN[valid_N])
    if per_anchor:
        return loss_V.new_zeros(len(x_ND)).index_put((valid_N,), loss_V)
    return loss_V.sum() / max(len(loss_V), 1)
