"""Cross-entropy in blocks of rows: nothing but the logits is kept of the forward.

dL/dz_c = (softmax(z)_c - 1[c = y]) / N. Names: B = this rank's rows, N = rows of all ranks, C = classes, b =
block.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..blocks import row_blocks
from ..first_order import first_order_only
from ..inputs import compute_dtype
from ..ranks import RankLayout, gather_rows


def softmax_loss(logits_BC: Tensor, targets_B: Tensor, layout: RankLayout) -> Tensor:
    """One collective in the forward (each row's value, float64), none in the backward."""
    loss: Tensor = _SoftmaxLoss.apply(logits_BC, targets_B, layout)
    return loss


class _SoftmaxLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_BC: Tensor, targets_B: Tensor, layout: RankLayout) -> Tensor:
        dtype = compute_dtype(logits_BC.dtype)
        own_B = logits_BC.new_empty(logits_BC.shape[0], dtype=torch.float64)
        for block in _blocks(logits_BC, dtype):
            log_probability_bC = torch.log_softmax(logits_BC[block], 1, dtype=dtype)
            own_B[block] = -log_probability_bC.gather(1, targets_B[block, None]).squeeze(1)
        loss = gather_rows(own_B, layout).sum() / max(
            layout.total_rows, 1
        )  # in one order: equal on every rank
        ctx.save_for_backward(logits_BC, targets_B)
        ctx.layout = layout
        return loss.to(dtype)

    @staticmethod
    @first_order_only
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        logits_BC, targets_B = ctx.saved_tensors
        layout: RankLayout = ctx.layout
        scale = gradients[0] * layout.world_size / max(layout.total_rows, 1)  # W: see maskreid_kernels.ranks
        gradient_BC = torch.empty_like(logits_BC, memory_format=torch.contiguous_format)
        dtype = compute_dtype(logits_BC.dtype)
        for block in _blocks(logits_BC, dtype):
            direct = logits_BC.dtype == dtype  # no second copy where the gradient is written in place
            probability_bC = torch.softmax(
                logits_BC[block], 1, dtype=dtype, out=gradient_BC[block] if direct else None
            )
            minus_one_b1 = probability_bC.new_full((probability_bC.shape[0], 1), -1)
            probability_bC.scatter_add_(1, targets_B[block, None], minus_one_b1)
            probability_bC.mul_(scale)
            if not direct:
                gradient_BC[block] = probability_bC
        return gradient_BC, None, None


def _blocks(logits_BC: Tensor, dtype: torch.dtype) -> list[slice]:
    return list(row_blocks(logits_BC.shape[0], 2 * logits_BC.shape[1] * dtype.itemsize))
