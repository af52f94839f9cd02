"""L2-normalised rows, with a gradient that stays finite at zero, and the similarities of all pairs of rows:
there, and back from the matrix of dL/dS to the gradient of a rank's rows."""

from __future__ import annotations

from typing import Any

import torch
import torch.autograd.forward_ad as fwAD
from torch import Tensor

from .guards import first_order_only, under_transforms, without_autocast

EPSILON = 1e-12


def inverse_norms(rows_BD: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """1 / |x| by row [B, 1], computed in `dtype` (None: the rows' own) without a copy of the rows.

    A zero row has no direction: it gets 0, and so stays zero and without gradient.
    """
    norm_B1 = torch.linalg.vector_norm(rows_BD, dim=1, keepdim=True, dtype=dtype)
    inverse_B1: Tensor = norm_B1.reciprocal_().masked_fill_(norm_B1 > 1 / EPSILON, 0.0)
    return inverse_B1


class _UnitRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_BD: Tensor) -> Tensor:
        inverse_B1 = inverse_norms(rows_BD)
        unit_BD = rows_BD * inverse_B1
        ctx.save_for_backward(unit_BD, inverse_B1)
        return unit_BD

    @staticmethod
    @first_order_only
    def backward(ctx: Any, gradient_BD: Tensor) -> Tensor:
        unit_BD, inverse_B1 = ctx.saved_tensors
        along_B1 = torch.linalg.vecdot(gradient_BD, unit_BD).unsqueeze(1)
        return torch.addcmul(gradient_BD, unit_BD, along_B1, value=-1).mul_(inverse_B1)


def unit_rows(rows_BD: Tensor) -> Tensor:
    """x / |x| by row; rows of norm <= 1e-12 become zero rows with zero gradient."""
    unit_BD: Tensor = _UnitRows.apply(rows_BD)
    return unit_BD


def unit_rows_reference(rows_BD: Tensor) -> Tensor:
    """The same by plain autograd."""
    norm_B1 = torch.linalg.vector_norm(rows_BD, dim=1, keepdim=True)
    return rows_BD * torch.where(norm_B1 > EPSILON, 1 / norm_B1.clamp_min(EPSILON), 0.0)


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
