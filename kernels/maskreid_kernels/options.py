"""What a loss is called with: rows, labels, and the options that every loss has; the checks of each.

Names: B = this rank's rows, D = columns.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor

from .precision import PRECISIONS

Reduction = Literal["mean", "sum", "none"]
REDUCTIONS = ("mean", "sum", "none")
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


class Reference(NamedTuple):
    """The candidates that are not the batch: rows [R, D] of its width, labels [R]."""

    rows: Tensor
    labels: Tensor


class Call(NamedTuple):
    """How a loss is computed, whichever loss it is.

    group: the ranks whose rows are one batch (convention: `maskreid_kernels.ranks`); None: this process
    alone. backend: see `maskreid_kernels.backends`; precision: see `maskreid_kernels.precision`. reduction:
    "mean" over the valid anchors of all ranks (softmax: rows), "sum" over them, or "none", each anchor's
    value [B], 0 where it is not valid: of one process, not by "triton", under torch.compile by "reference"
    alone. ignore_index: rows of this label take no part, neither as anchors nor as candidates, and get no
    gradient; None: every integer is a label.

    reference: a pair (rows [R, D], labels [R]): the only candidates (a memory bank, another view, embeddings
    of text); None: the batch itself. One option, as neither tensor means anything without the other, and a
    plain pair, which needs no class at the call: `reference=(bank, bank_labels)`. The batch's rows are then
    anchors alone: an anchor's positives are all references of its label, its negatives all others, and none
    is left out as the anchor itself, even of equal bits. It is valid with at least one of each. `normalize`
    and `ignore_index` hold for both kinds of rows. The gradient goes to the batch's rows, and to the
    references where they require grad: else none of that work is done. Computed in float64 where either kind
    of rows is. With a group the references of all ranks are everybody's candidates, any number of each rank
    (also none), and both kinds of rows keep the convention; a bank of which every rank has a copy belongs in
    parts, or counts W times. By "chunked" (which "auto" is then) and "reference".
    """

    group: dist.ProcessGroup | None = None
    backend: str = "auto"
    precision: str = "auto"
    reduction: str = "mean"
    ignore_index: int | None = None
    reference: tuple[Tensor, Tensor] | None = None


def find_problem(rows_BD: object, labels_B: object, *, rows_name: str, labels_name: str) -> str | None:
    """One line saying what is wrong with a loss's input and what to pass instead, or None."""
    for name, value in ((rows_name, rows_BD), (labels_name, labels_B)):
        if not isinstance(value, Tensor):
            return _not_a_tensor(name, value)
    assert isinstance(rows_BD, Tensor) and isinstance(labels_B, Tensor)
    if rows_BD.dim() != 2 or rows_BD.dtype not in FLOATS or rows_BD.shape[1] == 0:
        return (
            f"{rows_name}: expected a 2-d float tensor with at least one column, "
            f"got shape {tuple(rows_BD.shape)} of {rows_BD.dtype}"
        )
    if labels_B.dim() != 1 or labels_B.dtype not in INTEGERS:
        shape = tuple(labels_B.shape)
        advice = _labels_instead(labels_name, labels_B)
        return f"{labels_name}: expected a 1-d integer tensor, got shape {shape} of {labels_B.dtype}{advice}"
    if labels_B.shape[0] != rows_BD.shape[0]:
        counts = f"{labels_B.shape[0]} entries for {rows_BD.shape[0]} rows of {rows_name}"
        return f"{labels_name}: {counts}; pass one per row"
    if labels_B.device != rows_BD.device:
        devices = f"on {labels_B.device} while {rows_name} is on {rows_BD.device}"
        return f"{labels_name}: {devices}; pass both on one device"
    return None


def find_pair_problem(reference: object) -> str | None:
    """One line where `reference=` is no pair of tensors, or None."""
    if not isinstance(reference, tuple | list) or len(reference) != 2:
        kind = type(reference).__name__
        found = f"{kind} of {len(reference)}" if isinstance(reference, tuple | list) else kind
        return f"reference: expected a pair (rows, labels), got {found}; pass reference=(rows, labels)"
    for place, value in enumerate(reference):
        if not isinstance(value, Tensor):
            return _not_a_tensor(f"reference[{place}]", value)
    return None


def find_reference_problem(reference: object, rows_BD: Tensor, *, rows_name: str) -> str | None:
    """One line saying what is wrong with `reference=` beside rows that are fine, or None."""
    problem = find_pair_problem(reference)
    if problem is not None:
        return problem
    assert isinstance(reference, tuple | list)
    problem = find_problem(*reference, rows_name="reference[0]", labels_name="reference[1]")
    if problem is not None:
        return problem
    rows_RD: Tensor = reference[0]
    if rows_RD.shape[1] != rows_BD.shape[1]:
        widths = f"{rows_RD.shape[1]} columns while {rows_name} has {rows_BD.shape[1]}"
        return f"reference[0]: {widths}; pass rows of one width"
    if rows_RD.device != rows_BD.device:
        devices = f"on {rows_RD.device} while {rows_name} is on {rows_BD.device}"
        return f"reference[0]: {devices}; pass both on one device"
    return None


def _not_a_tensor(name: str, value: object) -> str:
    kind = type(value).__name__
    instead = f"torch.as_tensor({name})"
    if isinstance(value, list | tuple) and value and isinstance(value[0], Tensor):
        instead = f"torch.stack({name})"
    elif _holds_strings(value):
        instead = f"their numbers: torch.tensor([sorted(set({name})).index(one) for one in {name}])"
    return f"{name}: expected a torch.Tensor, got {kind}; pass {instead}"


def _holds_strings(value: object) -> bool:
    kind = getattr(getattr(value, "dtype", None), "kind", None)  # of a NumPy array
    return kind in ("U", "S", "O") or (
        isinstance(value, list | tuple) and bool(value) and isinstance(value[0], str)
    )


def _labels_instead(name: str, labels: Tensor) -> str:
    """What is likely meant by labels of a wrong shape or dtype."""
    if labels.dim() == 2 and labels.shape[1] == 1:
        return f"; pass {name}.squeeze(1){'' if labels.dtype in INTEGERS else '.long()'}"
    if labels.dim() == 2:
        return f"; if they are one-hot, pass {name}.argmax(1)"
    if labels.dim() == 1:
        return f"; pass {name}.long()"
    return f"; pass {name}[None] with one row" if labels.dim() == 0 else ""


def check_group(group: object) -> None:
    """Raise ValueError unless `group` is None or a group of this process. Nobody can be told over a group
    that is none."""
    if group is None:
        return
    if group is dist.GroupMember.NON_GROUP_MEMBER:
        raise ValueError("group: this process is not one of the group's ranks")
    if not isinstance(group, dist.ProcessGroup):
        kind = type(group).__name__
        raise ValueError(f"group: expected a torch.distributed process group or None, got {kind} {group!r}")
    if not dist.is_initialized():
        raise ValueError("group: torch.distributed is not initialised; call init_process_group first")


def check_precision(precision: str, backend: str) -> None:
    """Raise ValueError for an unknown preset, or one given to a backend that has none."""
    if precision != "auto" and precision not in PRECISIONS:
        known = ", ".join(repr(name) for name in ("auto", *PRECISIONS))
        raise ValueError(f"precision {precision!r}: known are {known}")
    if precision != "auto" and backend in ("reference", "dense", "chunked"):
        raise ValueError(f'precision {precision!r} is an option of backend="triton", not of {backend!r}')


def check_reduction(call: Call) -> None:
    """Raise ValueError for an unknown reduction, or "none" where it cannot be had."""
    if call.reduction not in REDUCTIONS:
        known = ", ".join(repr(name) for name in REDUCTIONS)
        raise ValueError(f"reduction {call.reduction!r}: known are {known}")
    if call.reduction != "none":
        return
    if call.backend == "triton":
        raise ValueError('reduction "none" has no triton backend; use backend="chunked"')
    if call.group is not None and dist.get_world_size(call.group) > 1:
        raise ValueError('reduction "none" is of one process; use "mean" or "sum" with a group')


def check_ignore_index(ignore_index: object) -> None:
    """Raise ValueError unless None or an integer."""
    if ignore_index is not None and (isinstance(ignore_index, bool) or not isinstance(ignore_index, int)):
        raise ValueError(f"ignore_index: expected an integer or None, got {ignore_index!r}")


def requires_grad(value: object) -> TypeGuard[Tensor]:
    """Whether an option is a tensor that waits for a gradient."""
    return isinstance(value, Tensor) and value.requires_grad


def finite(name: str, value: Any) -> float:
    """The value as a float; a tensor of one element is taken as its number.

    Raises ValueError unless finite, and for a tensor that requires grad: it would wait for a gradient in
    vain.
    """
    if isinstance(value, Tensor):
        if value.requires_grad:
            raise ValueError(
                f"{name}: a tensor that requires grad, and this loss gives {name} no gradient; "
                f"pass float({name}) or {name}.detach()"
            )
        if value.numel() != 1:
            raise ValueError(f"{name}: expected a finite number, got a tensor of shape {tuple(value.shape)}")
        value = value.item()
    try:
        number = math.nan if isinstance(value, str | bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{name}: expected a finite number, got {value!r}")
    return number


def positive(name: str, value: Any) -> float:
    """`finite`, and above 0."""
    try:
        number = finite(name, value)
    except ValueError as error:
        raise ValueError(str(error).replace("a finite number", "a finite number above 0")) from None
    if number <= 0:
        raise ValueError(f"{name}: expected a finite number above 0, got {value}")
    return number


def one_of(name: str, value: object, known: tuple[str, ...]) -> str:
    """The value. Raises ValueError unless it is one of the known words."""
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{name}: expected one of {', '.join(known)}, got {value!r}")
    return value
