"""The options of the losses: those every loss has, and the checks of numbers."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, TypeGuard

import torch.distributed as dist
from torch import Tensor

from .precision import PRECISIONS

Reduction = Literal["mean", "sum", "none"]
REDUCTIONS = ("mean", "sum", "none")


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
