"""Softmax cross-entropy over the identities, the mean over the global batch.

For logits z of a row with target y:   L = log sum_c exp(z_c) - z_y
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from ..backends import check_backend, choose_backend
from ..compiled import compiled_loss
from ..inputs import compute_dtype, find_problem, on_their_device
from ..ranks import agree_on_layout
from . import chunked, reference

__all__ = ["softmax_loss"]

REFERENCE_UP_TO_ROWS = 0  # the chunked form costs about the same at small sizes
NO_TARGET = torch.iinfo(torch.int64).min


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
    gradient raises RuntimeError) or "auto": torch's own cross-entropy without a group, else "chunked". Raises ValueError on bad input (targets outside [0, C) are looked
    for on the CPU only, elsewhere it would wait for the device) or an unavailable backend.
    """
    check_backend(backend)
    problem = find_problem(logits, targets, rows_name="logits", labels_name="targets")
    if backend == "auto" and group is None and problem is None and logits.shape[0]:
        return _of_this_process(logits, targets)
    if torch.compiler.is_compiling() and backend != "reference":
        options = {"backend": backend}
        return compiled_loss("softmax_loss", logits, targets, group, options)[0]
    if problem is None and targets.device.type == "cpu" and targets.numel():
        low, high = (int(extreme) for extreme in torch.aminmax(targets))
        if low < 0 or high >= logits.shape[1]:
            problem = _outside(low, high, logits)
    layout = agree_on_layout(logits, problem, group)
    compute = {"reference": reference.softmax_loss, "chunked": chunked.softmax_loss}[
        choose_backend(backend, layout.total_rows, REFERENCE_UP_TO_ROWS, device=logits.device)
    ]
    with on_their_device(logits):
        return compute(logits, targets.to(torch.int64), layout)


def _of_this_process(logits: Tensor, targets: Tensor) -> Tensor:
    """torch's own loss: nothing is faster on one process. No target is taken for "ignore"."""
    try:
        return F.cross_entropy(
            logits.to(compute_dtype(logits.dtype)), targets.to(torch.int64), ignore_index=NO_TARGET
        )
    except IndexError:  # on the CPU; a GPU asserts
        low, high = (int(extreme) for extreme in torch.aminmax(targets))
        raise ValueError(_outside(low, high, logits)) from None


def _outside(low: int, high: int, logits: Tensor) -> str:
    return f"targets: from {low} to {high}, outside [0, {logits.shape[1]}), the columns of logits"
