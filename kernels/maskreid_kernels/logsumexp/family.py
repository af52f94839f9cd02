"""The backends that all losses of the family share, and the scale that may be learned."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..dispatch import Family, Loss, compute
from ..inputs import FLOATS, compute_dtype
from ..options import Call, requires_grad
from ..precision import preset_of_rows
from ..unit_rows import unit_rows, unit_rows_reference
from . import chunked, dense, reference
from .terms import LogSumExpTerms


def _triton(*arguments: Any, **options: Any) -> Tensor:
    from . import triton  # Triton is imported, and its programs decorated, only where it is used

    return triton.log_sum_exp_loss(*arguments, **options)


FAMILY = Family(
    {
        "reference": reference.log_sum_exp_loss,
        "dense": dense.log_sum_exp_loss,
        "chunked": chunked.log_sum_exp_loss,
        "triton": _triton,
    },
    plain_up_to=512,
)


def log_sum_exp(name: str, terms: Callable[..., LogSumExpTerms]) -> Loss:
    """A loss of the family. `terms`: of its constants, by name, `normalize` among them; raises ValueError."""
    return Loss(name, terms, FAMILY)


def log_sum_exp_loss(
    loss: Loss, embeddings: Tensor, labels: Tensor, constants: Mapping[str, Any], call: Call
) -> Tensor:
    """The loss; arguments, rules and errors as in `maskreid_kernels.logsumexp`.

    A scale or temperature that requires grad gets its gradient, where there is no margin: see `scaled_rows`.
    """
    name = "temperature" if "temperature" in constants else "scale"
    value = constants.get(name)
    # What cannot be computed so is left to the checks.
    usable = isinstance(embeddings, Tensor) and embeddings.dim() == 2 and embeddings.dtype in FLOATS
    if not (requires_grad(value) and value.numel() == 1 and usable) or constants.get("margin"):
        return compute(loss, embeddings, labels, constants, call)[0]
    if torch.compiler.is_compiling():
        compared = None
    else:
        compared = float(value.detach())
        if not compared > 0:
            return compute(loss, embeddings, labels, {**constants, name: compared}, call)[0]
    call = call._replace(precision=preset_of_rows(call.precision, embeddings.dtype, call.backend))
    rows = scaled_rows(embeddings, value.reciprocal() if name == "temperature" else value, constants, call)
    constants = {**constants, name: 1.0, "normalize": False}
    return compute(loss, rows, labels, constants, call, learned=compared)[0]


def scaled_rows(embeddings: Tensor, scale: Tensor, constants: Mapping[str, Any], call: Call) -> Tensor:
    """sqrt(scale) x: their similarities are scale times those of x, so the loss of a scale of 1 is that of x and scale.

    The scale's gradient is one more sum per row, in plain autograd, whatever the backend; over ranks it keeps the
    convention of the rows' gradient.
    """
    rows = embeddings.to(compute_dtype(embeddings.dtype))
    if constants["normalize"]:
        rows = (unit_rows_reference if call.backend == "reference" else unit_rows)(rows)
    return rows * scale.reshape(()).to(rows).sqrt()
