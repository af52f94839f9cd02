"""What the dense backends share: from the matrix of dL/dS over all pairs to the gradient of a rank's rows."""

from __future__ import annotations

import torch
from torch import Tensor


def rows_gradient(G_NN: Tensor, x_ND: Tensor, inverse_N1: Tensor | None, own: slice, scale: Tensor) -> Tensor:
    """scale times the gradient [B, D] of the rows that `own` are, through S = x x^T and through x = row * inverse.

    G_NN: dL/dS, anchors by candidates. inverse_N1: 1 / |row|, or None where rows are not normalised.
    """
    with torch.autocast(x_ND.device.type, enabled=False):
        gradient_BD = (G_NN[own] + G_NN[:, own].t()) @ x_ND
    if inverse_N1 is None:
        return gradient_BD.mul_(scale)
    x_BD = x_ND[own]
    along_B1 = torch.linalg.vecdot(gradient_BD, x_BD).unsqueeze(1)
    return gradient_BD.addcmul_(x_BD, along_B1, value=-1).mul_(inverse_N1[own] * scale)
