"""Softmax cross-entropy over the identities, the mean over the global batch.

For logits z of a row with target y:   L = log sum_c exp(z_c) - z_y
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from ..backends import check_backend, choose_backend
from ..inputs import find_problem
from ..ranks import agree_on_layout
from . import chunked, reference

__all__ = ["softmax_loss"]

REFERENCE_UP_TO_ROWS = 0  # the chunked form costs about the same at small sizes


def softmax_loss(
    logits: Tensor, targets: Tensor, *, group: dist.ProcessGroup | None = None, backend: str = "auto"
) -> Tensor:
    """Mean cross-entropy, equal to `torch.nn.functional.cross_entropy(logits, targets)`, as a 0-d tensor.

    logits: [B, C] float64, float32, bfloat16 or float16; targets: [B] integers in [0, C).
    Computed and returned in float32 (float64 for float64 input); the gradient has the input's dtype.
    A batch without rows gives 0.
    group: the mean is over the rows of all its ranks, which may hold unequal counts; convention in
    `maskreid_kernels.ranks`. None: this process alone. Logits never leave their rank ("chunked").
    backend: "reference" (plain autograd), "chunked" (O(B) memory beside the gradient; differentiating its
    gradient raises RuntimeError) or "auto". Raises ValueError on bad input (targets outside [0, C) are looked
    for on the CPU only, elsewhere it would wait for the device) or an unavailable backend.
    """
    check_backend(backend)
    problem = find_problem(logits, targets, rows_name="logits", labels_name="targets")
    if problem is None and targets.device.type == "cpu" and targets.numel():
        low, high = (int(extreme) for extreme in torch.aminmax(targets))
        if low < 0 or high >= logits.shape[1]:
            problem = f"targets: from {low} to {high}, outside [0, {logits.shape[1]}), the columns of logits"
    layout = agree_on_layout(logits, problem, group)
    compute = {"reference": reference.softmax_loss, "chunked": chunked.softmax_loss}[
        choose_backend(backend, layout.total_rows, REFERENCE_UP_TO_ROWS, device=logits.device)
    ]
    with torch.autocast(logits.device.type, enabled=False):
        return compute(logits, targets.to(torch.int64), layout)
