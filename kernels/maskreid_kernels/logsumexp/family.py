"""The backends that all losses of the family share, and the scale that may be learned."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..dispatch import Family, Loss, compute
from ..guards import compute_dtype
from ..options import FLOATS, Call, find_pair_problem, requires_grad
from ..precision import preset_of_rows
from ..unit_rows import unit_rows, unit_rows_reference
from . import chunked, crossed, dense, reference
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
    plain_up_to=768,
    crossed={"reference": crossed.specification, "chunked": crossed.chunked},
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
    if not (requires_grad(value) and value.numel() == 1) or constants.get("margin"):
        return compute(loss, embeddings, labels, constants, call)[0]
    compared = None if torch.compiler.is_compiling() else float(value.detach())
    if not _may_be_scaled(embeddings, call) or (compared is not None and not compared > 0):
        known = {**constants, name: float(value.detach())}
        return compute(loss, embeddings, labels, known, call)[0]  # the checks say what is wrong
    call = call._replace(precision=preset_of_rows(call.precision, embeddings.dtype, call.backend))
    rows = scaled_rows(embeddings, value.reciprocal() if name == "temperature" else value, constants, call)
    if call.reference is not None:
        references, reference_labels = call.reference
        call = call._replace(reference=(scaled_rows(references, None, constants, call), reference_labels))
    constants = {**constants, name: 1.0, "normalize": False}
    return compute(loss, rows, labels, constants, call, learned=compared)[0]


def _may_be_scaled(embeddings: object, call: Call) -> bool:
    """Whether the rows are such, before anything is checked."""
    if call.reference is not None and find_pair_problem(call.reference):
        return False
    both = (embeddings,) if call.reference is None else (embeddings, call.reference[0])
    return all(isinstance(rows, Tensor) and rows.dim() == 2 and rows.dtype in FLOATS for rows in both)


def scaled_rows(embeddings: Tensor, scale: Tensor | None, constants: Mapping[str, Any], call: Call) -> Tensor:
    """sqrt(scale) x: their similarities are scale times those of x, so the loss of a scale of 1 is that of x
    and scale.

    Beside references scale x, and of the references (scale None) x: or they would need a gradient for the
    scale's sake. The scale's gradient is one more sum per row, in plain autograd, whatever the backend; over
    ranks it keeps the convention of the rows' gradient.
    """
    rows = embeddings.to(compute_dtype(embeddings.dtype))
    if constants["normalize"]:
        rows = (unit_rows_reference if call.backend == "reference" else unit_rows)(rows)
    if scale is None:
        return rows
    factor = scale.reshape(()).to(rows)
    return rows * (factor.sqrt() if call.reference is None else factor)
