"""The definition: a Q x G matrix of measures in float64."""

from __future__ import annotations

import torch
from torch import Tensor


def count_below(
    query_QD: Tensor,
    gallery_GD: Tensor,
    query_labels_Q: Tensor,
    gallery_labels_G: Tensor,
    slope_G: Tensor,
    offset_G: Tensor,
    low_RQ: Tensor,
    high_RQ: Tensor,
) -> tuple[Tensor, Tensor]:
    """below_RQ and open_3I of `Counts`; pairs by query, then by gallery row."""
    t_QG = query_QD.double() @ gallery_GD.double().T * slope_G.double() + offset_G.double()
    other_QG = query_labels_Q[:, None] != gallery_labels_G[None, :]
    first_QG = torch.full(t_QG.shape, -1, dtype=torch.int32, device=t_QG.device)
    below = []
    for r in range(len(low_RQ)):
        low_Q1, high_Q1 = low_RQ[r, :, None], high_RQ[r, :, None]
        below.append(((t_QG < low_Q1) & other_QG).sum(dim=1, dtype=torch.int32))
        between_QG = (t_QG >= low_Q1) & (t_QG < high_Q1) & other_QG
        first_QG = torch.where(between_QG & (first_QG < 0), r, first_QG)
    query_I, row_I = (first_QG >= 0).nonzero(as_tuple=True)
    open_3I = torch.stack([query_I.int(), row_I.int(), first_QG[query_I, row_I]])
    return torch.stack(below) if below else low_RQ.new_empty((0, len(query_QD)), dtype=torch.int32), open_3I
