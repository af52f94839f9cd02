"""Cross-entropy in blocks of rows: nothing but the logits is kept of the forward.

dL/dz_c = (softmax(z)_c - (1 - e) 1[c = y] - e / C) / N, e the label smoothing. Names: B = this rank's rows, N
= rows of all ranks, C = classes, b = block.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..blocks import row_blocks
from ..guards import compute_dtype, first_order_only
from ..ranks import RankLayout, gather_rows
from .terms import SoftmaxTerms


def softmax_loss(
    logits_BC: Tensor, targets_B: Tensor, terms: SoftmaxTerms, layout: RankLayout, *, per_anchor: bool = False
) -> Tensor:
    """One collective in the forward (each row's value, float64), none in the backward."""
    loss: Tensor = _SoftmaxLoss.apply(logits_BC, targets_B, terms, layout, per_anchor)
    return loss


class _SoftmaxLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits_BC: Tensor,
        targets_B: Tensor,
        terms: SoftmaxTerms,
        layout: RankLayout,
        per_anchor: bool,
    ) -> Tensor:
        dtype = compute_dtype(logits_BC.dtype)
        own_B = logits_BC.new_empty(logits_BC.shape[0], dtype=torch.float64)
        for block in _blocks(logits_BC, dtype):
            log_probability_bC = torch.log_softmax(logits_BC[block], 1, dtype=dtype)
            value_b = -log_probability_bC.gather(1, targets_B[block, None]).squeeze(1)
            if terms.label_smoothing:
                value_b += terms.label_smoothing * (-log_probability_bC.mean(1) - value_b)
            own_B[block] = value_b
        ctx.save_for_backward(logits_BC, targets_B)
        ctx.terms, ctx.layout, ctx.per_anchor = terms, layout, per_anchor
        if per_anchor:
            return own_B.to(dtype)
        # In one order: equal on every rank.
        return (gather_rows(own_B, layout).sum() / max(layout.total_rows, 1)).to(dtype)

    @staticmethod
    @first_order_only
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        logits_BC, targets_B = ctx.saved_tensors
        layout: RankLayout = ctx.layout
        scale = gradients[0][:, None] if ctx.per_anchor else gradients[0]
        if not ctx.per_anchor:
            scale = scale * layout.world_size / max(layout.total_rows, 1)  # W: see maskreid_kernels.ranks
        smoothing = ctx.terms.label_smoothing
        gradient_BC = torch.empty_like(logits_BC, memory_format=torch.contiguous_format)
        dtype = compute_dtype(logits_BC.dtype)
        for block in _blocks(logits_BC, dtype):
            direct = logits_BC.dtype == dtype  # no second copy where the gradient is written in place
            probability_bC = torch.softmax(
                logits_BC[block], 1, dtype=dtype, out=gradient_BC[block] if direct else None
            )
            minus_share_b1 = probability_bC.new_full((probability_bC.shape[0], 1), smoothing - 1)
            probability_bC.scatter_add_(1, targets_B[block, None], minus_share_b1)
            if smoothing:
                probability_bC.sub_(smoothing / probability_bC.shape[1])
            probability_bC.mul_(scale[block] if ctx.per_anchor else scale)
            if not direct:
                gradient_BC[block] = probability_bC
        return gradient_BC, None, None, None, None


def _blocks(logits_BC: Tensor, dtype: torch.dtype) -> list[slice]:
    return list(row_blocks(logits_BC.shape[0], 2 * logits_BC.shape[1] * dtype.itemsize))
