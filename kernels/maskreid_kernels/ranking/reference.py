"""The ranking loss as plain autograd over N x N matrices: the specification of the other backends."""

from __future__ import annotations

import torch
from torch import Tensor

from ..pair_matrix import products
from ..ranks import RankLayout, gather_rows, gather_rows_with_gradient
from ..unit_rows import unit_rows_reference
from .terms import RankingStatistics, RankingTerms, ranking_statistics


def ranking_loss(
    rows_BD: Tensor, labels_B: Tensor, terms: RankingTerms, layout: RankLayout, *, per_anchor: bool = False
) -> tuple[Tensor, RankingStatistics]:
    """Every rank computes the whole loss (collectives: rows, labels) and keeps its own rows' gradient."""
    x_ND = gather_rows_with_gradient(rows_BD, layout)
    labels_N = gather_rows(labels_B, layout)
    if terms.normalize:
        x_ND = unit_rows_reference(x_ND)
    if x_ND.shape[0] == 0:
        none = labels_N.bool()
        zero = x_ND.sum(1) if per_anchor else x_ND.sum()
        return zero, ranking_statistics(none, none, none, terms, x_ND.dtype)
    S_NN = products(x_ND, x_ND)
    same_NN = labels_N[:, None] == labels_N
    positive_NN = same_NN & ~torch.eye(len(labels_N), dtype=torch.bool, device=labels_N.device)
    positives_N, negatives_N = positive_NN.sum(1), (~same_NN).sum(1)
    valid_N = (positives_N > 0) & (negatives_N > 0)

    # min(dim) sends the gradient to the first of equal minima; min over all would spread it.
    least_N = S_NN.masked_fill(~positive_NN, torch.inf).min(1).values
    gap_NN = S_NN - torch.where(valid_N, least_N, 0)[:, None] + terms.margin
    active_NN = ~same_NN & ~(gap_NN <= 0)  # keeps NaN, which a broken embedding must not hide
    counted_NN = ~same_NN if terms.negatives == "all" else active_NN
    if terms.bounded:
        push_N = torch.log1p(gap_NN.relu().exp().mul(counted_NN).sum(1))
    else:
        exponent_NN = gap_NN.relu().masked_fill(~counted_NN, -torch.inf)
        one_N1 = torch.zeros_like(exponent_NN[:, :1])  # exp(0), the 1 inside the log
        push_N = torch.logsumexp(torch.cat([one_N1, exponent_NN], 1), 1)
    pull_N = (S_NN - 1).square().mul(positive_NN).sum(1) * (terms.pull / 2) / positives_N.clamp(min=1)

    value_N = torch.where(valid_N, push_N + pull_N, 0)
    loss = value_N if per_anchor else value_N.sum() / valid_N.sum().clamp(min=1)
    return loss, ranking_statistics(valid_N, negatives_N, active_NN.sum(1), terms, x_ND.dtype)
