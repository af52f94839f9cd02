"""L2-normalised rows with a gradient that stays finite at zero."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .first_order import first_order_only

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
