"""Similarities of all pairs, and back: from the matrix of dL/dS to the gradient of a rank's rows."""

from __future__ import annotations

from typing import Any

import torch
import torch.autograd.forward_ad as fwAD
from torch import Tensor

from .inputs import under_transforms, without_autocast


def rows_gradient(G_NN: Tensor, x_ND: Tensor, inverse_N1: Tensor | None, own: slice, scale: Tensor) -> Tensor:
    """scale times the gradient [B, D] of the rows that `own` are, through S = x x^T and through x = row *
    inverse.

    G_NN: dL/dS, anchors by candidates. inverse_N1: 1 / |row|, or None where rows are not normalised.
    """
    if own.stop - own.start == len(x_ND):  # a slice of everything costs as much as a small product
        both_BN, x_BD, inverse_B1 = G_NN + G_NN.t(), x_ND, inverse_N1
    else:
        both_BN, x_BD = G_NN[own] + G_NN[:, own].t(), x_ND[own]
        inverse_B1 = None if inverse_N1 is None else inverse_N1[own]
    gradient_BD = both_BN @ x_ND
    if inverse_B1 is None:
        return gradient_BD.mul_(scale)
    along_B1 = torch.linalg.vecdot(gradient_BD, x_BD).unsqueeze(1)
    return gradient_BD.addcmul_(x_BD, along_B1, value=-1).mul_(inverse_B1 * scale)


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(a_MD: Tensor, b_ND: Tensor) -> Tensor:
        return a_MD @ b_ND.t()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        a_MD, b_ND = ctx.saved_tensors
        of_a, of_b = ctx.needs_input_grad
        with without_autocast(a_MD.device):
            return gradients[0] @ b_ND if of_a else None, gradients[0].t() @ a_MD if of_b else None


def products(a_MD: Tensor, b_ND: Tensor) -> Tensor:
    """a b^T [M, N] for plain autograd, with derivatives of any order.

    Its backward's products are in the operands' dtype also where `backward()` is called inside autocast.
    torch.func and forward mode, which an own backward would not serve, get torch's product; the compiler too,
    whose backwards run out of autocast's reach, and which takes a function of the same rows twice for one of
    two inputs.
    """
    if torch.compiler.is_compiling() or under_transforms() or fwAD._current_level >= 0:
        return a_MD @ b_ND.t()
    product_MN: Tensor = _Products.apply(a_MD, b_ND)
    return product_MN
