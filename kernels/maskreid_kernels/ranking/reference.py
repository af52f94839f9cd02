"""The ranking loss as plain autograd over N x N matrices: the specification of the other backends."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ranks import RankLayout, gather_rows, gather_rows_with_gradient
from ..unit_rows import products, unit_rows_reference
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
    same_NN = labels_N[:, None] == labels_N
    positive_NN = same_NN & ~torch.eye(len(labels_N), dtype=torch.bool, device=labels_N.device)
    value_N, statistics = values_of_anchors(products(x_ND, x_ND), positive_NN, ~same_NN, terms)
    loss = value_N if per_anchor else value_N.sum() / statistics.valid_anchors.clamp(min=1)
    return loss, statistics


def values_of_anchors(
    S_NM: Tensor, positive_NM: Tensor, negative_NM: Tensor, terms: RankingTerms
) -> tuple[Tensor, RankingStatistics]:
    """Eq. 5: L(k) [N], 0 of anchors that are not valid, of similarities to M candidates and bool masks of
    them.
    """
    positives_N, negatives_N = positive_NM.sum(1), negative_NM.sum(1)
    valid_N = (positives_N > 0) & (negatives_N > 0)

    # min(dim) sends the gradient to the first of equal minima; min over all would spread it.
    least_N = S_NM.masked_fill(~positive_NM, torch.inf).min(1).values
    gap_NM = S_NM - torch.where(valid_N, least_N, 0)[:, None] + terms.margin
    active_NM = negative_NM & ~(gap_NM <= 0)  # keeps NaN, which a broken embedding must not hide
    counted_NM = negative_NM if terms.negatives == "all" else active_NM
    if terms.bounded:
        push_N = torch.log1p(gap_NM.relu().exp().mul(counted_NM).sum(1))
    else:
        exponent_NM = gap_NM.relu().masked_fill(~counted_NM, -torch.inf)
        one_N1 = torch.zeros_like(exponent_NM[:, :1])  # exp(0), the 1 inside the log
        push_N = torch.logsumexp(torch.cat([one_N1, exponent_NM], 1), 1)
    pull_N = (S_NM - 1).square().mul(positive_NM).sum(1) * (terms.pull / 2) / positives_N.clamp(min=1)

    value_N = torch.where(valid_N, push_N + pull_N, 0)
    return value_N, ranking_statistics(valid_N, negatives_N, active_NM.sum(1), terms, S_NM.dtype)
