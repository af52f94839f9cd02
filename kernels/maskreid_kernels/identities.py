"""Products within identities: an anchor and the few rows that share its label.

Names: N = rows of all ranks, D = columns, b = rows of a block, P = rows of the largest identity. Lists of P
places are those of `Positives.of_rows`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .blocks import own_and_global_blocks
from .positives import Positives

# A gathered row is multiplied once; a product with all rows reads each from the cache many times over.
GATHERED_UP_TO = 1 / 64  # of all rows


def blocks_of_identities(x_ND: Tensor, positives: Positives, own: slice) -> list[tuple[slice, slice]]:
    """Blocks of a rank's rows whose products within identities fit in the workspace; see
    `own_and_global_blocks`."""
    row = x_ND.shape[1] if _few(x_ND, positives.widest) else 2 * len(x_ND)
    return own_and_global_blocks(own, x_ND.element_size() * row + 40 * positives.widest)


def similarities_within(x_ND: Tensor, rows: slice, index_bP: Tensor) -> Tensor:
    """S [b, P] of the rows to those listed."""
    x_bD = x_ND[rows]
    if not _few(x_ND, index_bP.shape[1]):
        return (x_bD @ x_ND.t()).gather(1, index_bP)
    other_bD, S_Pb = torch.empty_like(x_bD), x_ND.new_empty(index_bP.shape[::-1])
    for S_b, index_b in zip(S_Pb, index_bP.t(), strict=True):  # all at once would be P copies of the rows
        torch.index_select(x_ND, 0, index_b, out=other_bD)
        torch.sum(other_bD.mul_(x_bD), 1, out=S_b)
    return S_Pb.t()


def weighted_rows_within(x_ND: Tensor, index_bP: Tensor, weight_bP: Tensor) -> Tensor:
    """sum_p weight_bP x_p over the listed rows, [b, D]."""
    if _few(x_ND, index_bP.shape[1]):
        return F.embedding_bag(index_bP, x_ND, mode="sum", per_sample_weights=weight_bP)
    weight_bN = x_ND.new_zeros((len(index_bP), len(x_ND))).scatter_add_(1, index_bP, weight_bP)
    return weight_bN @ x_ND


def _few(x_ND: Tensor, widest: int) -> bool:
    return widest <= GATHERED_UP_TO * len(x_ND)
