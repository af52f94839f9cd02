"""Selection and scaling with backwards of their own: inside the compiler's operator plain autograd records
nothing.

Names: B = this rank's rows, K = rows kept of them, D = columns.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .guards import first_order_only


class _Kept(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_BD: Tensor, kept_B: Tensor) -> Tensor:
        ctx.save_for_backward(kept_B)
        return rows_BD[kept_B]

    @staticmethod
    @first_order_only
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (kept_B,) = ctx.saved_tensors
        gradient_KD = gradients[0]
        gradient_BD = gradient_KD.new_zeros((len(kept_B), gradient_KD.shape[1]))
        gradient_BD[kept_B] = gradient_KD
        return gradient_BD, None


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, factor: Tensor | int) -> Tensor:
        ctx.factor = factor
        return value * factor

    @staticmethod
    @first_order_only
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.factor, None


def kept_rows(rows_BD: Tensor, kept_B: Tensor) -> Tensor:
    """rows_BD[kept_B] for a bool mask, [K, D]."""
    kept_KD: Tensor = _Kept.apply(rows_BD, kept_B)
    return kept_KD


def scaled(value: Tensor, factor: Tensor | int) -> Tensor:
    """value * factor; the factor has no gradient."""
    product: Tensor = _Scaled.apply(value, factor)
    return product
