"""What the dense backends share: from the matrix of dL/dS over all pairs to the gradient of a rank's rows."""

from __future__ import annotations

import torch
from torch import Tensor

from .inputs import without_autocast


def rows_gradient(G_NN: Tensor, x_ND: Tensor, inverse_N1: Tensor | None, own: slice, scale: Tensor) -> Tensor:
    """scale times the gradient [B, D] of the rows that `own` are, through S = x x^T and through x = row * inverse.

    G_NN: dL/dS, anchors by candidates. inverse_N1: 1 / |row|, or None where rows are not normalised.
    """
    if own.stop - own.start == len(x_ND):  # a slice of everything costs as much as a small product
        both_BN, x_BD, inverse_B1 = G_NN + G_NN.t(), x_ND, inverse_N1
    else:
        both_BN, x_BD = G_NN[own] + G_NN[:, own].t(), x_ND[own]
        inverse_B1 = None if inverse_N1 is None else inverse_N1[own]
    with without_autocast(x_ND.device):
        gradient_BD = both_BN @ x_ND
    if inverse_B1 is None:
        return gradient_BD.mul_(scale)
    along_B1 = torch.linalg.vecdot(gradient_BD, x_BD).unsqueeze(1)
    return gradient_BD.addcmul_(x_BD, along_B1, value=-1).mul_(inverse_B1 * scale)
