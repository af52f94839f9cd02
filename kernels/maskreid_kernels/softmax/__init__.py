"""Softmax cross-entropy over the identities, the mean over the global batch.

For logits z of a row with target y:   L = log sum_c exp(z_c) - z_y
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from ..dispatch import Family, Loss, compute
from ..guards import compute_dtype
from ..options import Call, Reduction, check_reduction, find_problem, finite
from ..ranks import RankLayout
from . import chunked, reference
from .terms import SoftmaxTerms

__all__ = ["softmax_loss"]

NO_TARGET = torch.iinfo(torch.int64).min
NAMES = {"rows_name": "logits", "labels_name": "targets"}


def _terms(label_smoothing: float) -> SoftmaxTerms:
    smoothing = finite("label_smoothing", label_smoothing)
    if not 0 <= smoothing <= 1:
        raise ValueError(f"label_smoothing: expected a number in [0, 1], got {smoothing}")
    return SoftmaxTerms(smoothing)


def _find_outside(logits: Tensor, targets: Tensor) -> str | None:
    if targets.device.type != "cpu" or not targets.numel():
        return None
    low, high = (int(extreme) for extreme in torch.aminmax(targets))
    return _outside(low, high, logits) if low < 0 or high >= logits.shape[1] else None


def _rows(targets_B: Tensor, layout: RankLayout) -> int:
    return layout.total_rows


SOFTMAX = Loss(
    "softmax",
    _terms,
    Family(
        {"reference": reference.softmax_loss, "chunked": chunked.softmax_loss},
        crossed={},  # the candidates are the columns
        plain_up_to=0,  # the chunked form costs about the same at small sizes
        capturable=("auto", "chunked"),
        as_given=("chunked",),
        find_problem=_find_outside,
        count=_rows,
        **NAMES,
    ),
)


def softmax_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    label_smoothing: float = 0.0,
    group: dist.ProcessGroup | None = None,
    backend: str = "auto",
    reduction: Reduction = "mean",
    ignore_index: int | None = None,
) -> Tensor:
    """Mean cross-entropy, equal to `torch.nn.functional.cross_entropy(logits, targets)`, as a 0-d tensor.

    logits: [B, C] float64, float32, bfloat16 or float16; targets: [B] integers in [0, C).
    Computed and returned in float32 (float64 for float64 input); the gradient has the input's dtype.
    A batch without rows gives 0.
    group: the mean is over the rows of all its ranks, which may hold unequal counts; convention in
    `maskreid_kernels.ranks`. None: this process alone. Logits never leave their rank ("chunked").
    backend: "reference" (plain autograd), "chunked" (O(B) memory beside the gradient; differentiating its
    gradient raises RuntimeError) or "auto": torch's own cross-entropy without a group, else "chunked".
    Raises ValueError on bad input (targets outside [0, C) are looked for on the CPU only, elsewhere it
    would wait for the device) or an unavailable backend.
    label_smoothing: in [0, 1]; the target's share 1 - label_smoothing, the rest equal over all C, as in
    torch. reduction, ignore_index: see `maskreid_kernels.options`.
    """
    call = Call(group, backend, reduction=reduction, ignore_index=ignore_index)
    alone = backend == "auto" and group is None and ignore_index is None
    if alone and find_problem(logits, targets, **NAMES) is None and logits.shape[0]:
        check_reduction(call)
        return _of_this_process(logits, targets, _terms(label_smoothing), reduction)
    return compute(SOFTMAX, logits, targets, {"label_smoothing": label_smoothing}, call)[0]


def _of_this_process(logits: Tensor, targets: Tensor, terms: SoftmaxTerms, reduction: Reduction) -> Tensor:
    """torch's own loss: nothing is faster on one process. No target is taken for "ignore"."""
    try:
        return F.cross_entropy(
            logits.to(compute_dtype(logits.dtype)),
            targets.to(torch.int64),
            ignore_index=NO_TARGET,
            reduction=reduction,
            label_smoothing=terms.label_smoothing,
        )
    except IndexError:  # on the CPU; a GPU asserts
        low, high = (int(extreme) for extreme in torch.aminmax(targets))
        raise ValueError(_outside(low, high, logits)) from None


def _outside(low: int, high: int, logits: Tensor) -> str:
    return f"targets: from {low} to {high}, outside [0, {logits.shape[1]}), the columns of logits"
