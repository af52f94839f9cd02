"""Batch-hard by plain autograd with N x N matrices for mining: the specification of the other backends."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ranks import RankLayout, gather_rows, gather_rows_with_gradient
from ..unit_rows import unit_rows_reference
from .terms import BatchHardTerms, mining_distances, mining_squares


def batch_hard_loss(
    rows_BD: Tensor, labels_B: Tensor, terms: BatchHardTerms, layout: RankLayout, *, per_anchor: bool = False
) -> Tensor:
    """Every rank computes the whole loss (collectives: rows, labels) and keeps its own rows' gradient."""
    x_ND = gather_rows_with_gradient(rows_BD, layout)
    labels_N = gather_rows(labels_B, layout)
    if terms.normalize:
        x_ND = unit_rows_reference(x_ND)
    if x_ND.shape[0] == 0:
        return x_ND.sum(1) if per_anchor else x_ND.sum()
    with torch.no_grad():
        distance_NN = mining_distances(x_ND, x_ND, mining_squares(x_ND, terms))
        same_NN = labels_N[:, None] == labels_N
        positive_NN = same_NN & ~torch.eye(len(labels_N), dtype=torch.bool, device=labels_N.device)
        valid_N = positive_NN.any(1) & ~same_NN.all(1)
        # First of equals.
        hardest_positive_N = distance_NN.masked_fill(~positive_NN, -torch.inf).max(1).indices
        hardest_negative_N = distance_NN.masked_fill(same_NN, torch.inf).min(1).indices
    positive_distance_N = terms.pair_distance(x_ND, x_ND[hardest_positive_N])
    negative_distance_N = terms.pair_distance(x_ND, x_ND[hardest_negative_N])
    loss_N = terms.hinge(positive_distance_N - negative_distance_N)
    value_N = torch.where(valid_N, loss_N, 0)
    return value_N if per_anchor else value_N.sum() / valid_N.sum().clamp(min=1)
