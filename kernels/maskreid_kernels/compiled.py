"""The losses under torch.compile: one opaque operator that computes a loss and its gradient together.

torch.compile cannot trace collectives, Triton launches and choices by shape, and need not: to the compiler a
loss is `maskreid_kernels::loss_with_gradient`, whose fake kernel gives shapes alone. Its forward computes the
gradient too, as training always wants it; the backward scales it. Losses register what the operator calls
(`register`), so nothing here knows them. Autograd does not see into an operator, so only backends with a
backward of their own run in it; the reference is plain torch, and traced as such.

There are two of the operator: a loss that reads something on the host (any with a group, ranking to choose
its backward, the log-sum-exp family the largest identity) cannot be captured in a CUDA graph, and its
operator is tagged so: the compiler captures what lies before and after it. Batch-hard and softmax without a
group are captured whole.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.distributed_c10d import _resolve_process_group  # type: ignore[attr-defined]

from .guards import NO_SECOND_DERIVATIVE, compute_dtype
from .options import Call, find_pair_problem
from .precision import preset_of_rows

# rows, labels, constants and call -> the loss (0-d) and its statistics (float64), or None where it has none.
Compute = Callable[[Tensor, Tensor, Mapping[str, Any], Call], tuple[Tensor, Tensor | None]]


@dataclass(frozen=True)
class Registered:
    """A loss as the operator sees it. `capturable`: backends that read nothing on the host."""

    compute: Compute
    statistics: int
    capturable: tuple[str, ...]


REGISTERED: dict[str, Registered] = {}


def register(name: str, compute: Compute, *, statistics: int = 0, capturable: tuple[str, ...] = ()) -> None:
    """Make a loss known to the operator. `statistics`: how many numbers it has beside its value."""
    REGISTERED[name] = Registered(compute, statistics, capturable)


def compiled_loss(
    name: str, rows_BD: Tensor, labels_B: Tensor, constants: Mapping[str, Any], call: Call
) -> tuple[Tensor, Tensor]:
    """The loss (0-d) registered as `name`, and its statistics (float64), as one operator of the graph.

    All ranks of the group take part. The gradient has no derivative of its own.
    """
    words = {key: value for key, value in constants.items() if isinstance(value, str | bool)}
    numbers = {key: float(value) for key, value in constants.items() if not isinstance(value, str | bool)}
    from .packed import packed  # it imports the compiler, half of a program's start, which is there by now

    # The group travels by its name, the reference's tensors as arguments.
    options = packed(words, tuple(numbers), *call._replace(reference=None)[1:])
    group_name = "" if call.group is None else call.group.group_name
    shared = (name, options, list(numbers.values()), group_name, rows_BD.requires_grad)
    if call.reference is not None:
        problem = find_pair_problem(call.reference)  # the operator takes tensors alone, and checks the rest
        if problem:
            raise ValueError(problem)
        rows_RD, labels_R = call.reference
        loss, statistics, *_ = crossed_loss_with_gradient(
            rows_BD, labels_B, rows_RD, labels_R, *shared, rows_RD.requires_grad
        )
        return loss, statistics
    capturable = call.group is None and call.backend in REGISTERED[name].capturable
    operator = capturable_loss_with_gradient if capturable else loss_with_gradient
    loss, statistics, _ = operator(rows_BD, labels_B, *shared)
    return loss, statistics


def _loss_with_gradient(
    rows_BD: Tensor,
    labels_B: Tensor,
    name: str,
    options: str,
    numbers: list[float],
    group_name: str,
    wants_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss (0-d), statistics (float64, as many as the loss has) and gradient on the rows (empty if not
    wanted)."""
    call = _unpacked(options, group_name)
    # Casts would be plain autograd, too: rows are cast here, and the preset of their dtype is passed on.
    call = call._replace(precision=preset_of_rows(call.precision, rows_BD.dtype, call.backend))
    with torch.enable_grad():
        rows = rows_BD.detach().to(compute_dtype(rows_BD.dtype)).requires_grad_(wants_gradient)
        loss, statistics = REGISTERED[name].compute(rows, labels_B, _constants(options, numbers), call)
        if not wants_gradient:
            gradient_BD = rows_BD.new_empty(0)
        elif loss.requires_grad:
            gradient_BD = torch.autograd.grad(loss, rows)[0].to(rows_BD.dtype)
        elif _none_counts(labels_B, call.ignore_index):  # then nothing was recorded
            gradient_BD = torch.zeros_like(rows_BD)
        else:
            raise RuntimeError(
                f"{name}: the {call.backend} backend recorded no gradient inside torch.compile"
            )
    return loss.detach(), loss.new_empty(0).double() if statistics is None else statistics, gradient_BD


def _crossed_loss_with_gradient(
    rows_BD: Tensor,
    labels_B: Tensor,
    rows_RD: Tensor,
    labels_R: Tensor,
    name: str,
    options: str,
    numbers: list[float],
    group_name: str,
    wants_gradient: bool,
    wants_reference_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`_loss_with_gradient` with candidates that are not the batch, and the gradient on them."""
    wanted = (wants_gradient, wants_reference_gradient)
    dtype = compute_dtype(torch.promote_types(rows_BD.dtype, rows_RD.dtype))
    both = (rows_BD, rows_RD)
    with torch.enable_grad():
        cast = [
            rows.to(dtype) if rows.is_floating_point() else rows for rows in both
        ]  # the rest is refused below
        cast = [rows.detach().requires_grad_(w) for rows, w in zip(cast, wanted, strict=True)]
        call = _unpacked(options, group_name)._replace(reference=(cast[1], labels_R))
        loss, statistics = REGISTERED[name].compute(cast[0], labels_B, _constants(options, numbers), call)
        leaves = [rows for rows, w in zip(cast, wanted, strict=True) if w]
        found = iter(torch.autograd.grad(loss, leaves) if leaves else ())
    gradients = [
        next(found).to(rows.dtype) if w else rows.new_empty(0) for rows, w in zip(both, wanted, strict=True)
    ]
    made = loss.new_empty(0).double() if statistics is None else statistics
    return loss.detach(), made, gradients[0], gradients[1]


def _constants(options: str, numbers: list[float]) -> dict[str, Any]:
    packed = json.loads(options)
    constants: dict[str, Any] = packed["words"] | dict(zip(packed["numbers"], numbers, strict=True))
    return constants


def _unpacked(options: str, group_name: str) -> Call:
    # GroupName is a str
    group = _resolve_process_group(group_name) if group_name else None  # type: ignore[arg-type]
    return Call(group, *json.loads(options)["call"])


def _none_counts(labels_B: Tensor, ignore_index: int | None) -> bool:
    ignored = 0 if ignore_index is None else int(torch.eq(labels_B, ignore_index).sum())
    return ignored == len(labels_B)


def _shapes(
    rows_BD: Tensor,
    labels_B: Tensor,
    name: str,
    options: str,
    numbers: list[float],
    group_name: str,
    wants_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    loss = rows_BD.new_empty((), dtype=compute_dtype(rows_BD.dtype))
    statistics = rows_BD.new_empty(REGISTERED[name].statistics, dtype=torch.float64)
    return loss, statistics, torch.empty_like(rows_BD) if wants_gradient else rows_BD.new_empty(0)


def _crossed_shapes(
    rows_BD: Tensor,
    labels_B: Tensor,
    rows_RD: Tensor,
    labels_R: Tensor,
    name: str,
    options: str,
    numbers: list[float],
    group_name: str,
    wants_gradient: bool,
    wants_reference_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    packed = (name, options, numbers, group_name)
    _, statistics, gradient_BD = _shapes(rows_BD, labels_B, *packed, wants_gradient)
    loss = rows_BD.new_empty((), dtype=compute_dtype(torch.promote_types(rows_BD.dtype, rows_RD.dtype)))
    of_RD = torch.empty_like(rows_RD) if wants_reference_gradient else rows_RD.new_empty(0)
    return loss, statistics, gradient_BD, of_RD


@torch.library.custom_op("maskreid_kernels::scaled_gradient", mutates_args=())
def scaled_gradient(gradient_BD: Tensor, of_loss: Tensor, rows_BD: Tensor) -> Tensor:
    """The gradient of the rows. Its derivative raises; taking the rows ties it to them, or none would be
    asked for."""
    return (gradient_BD * of_loss).to(gradient_BD.dtype)


@scaled_gradient.register_fake
def _scaled_shape(gradient_BD: Tensor, of_loss: Tensor, rows_BD: Tensor) -> Tensor:
    return torch.empty_like(gradient_BD)


def _refuse(ctx: Any, *gradients: Tensor) -> None:
    raise RuntimeError(NO_SECOND_DERIVATIVE)


scaled_gradient.register_autograd(_refuse)


def _keep_gradient(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[2], inputs[0])
    ctx.mark_non_differentiable(output[1], output[2])


def _scale_gradient(ctx: Any, of_loss: Tensor, *others: Tensor) -> tuple[Tensor | None, ...]:
    gradient_BD, rows_BD = ctx.saved_tensors
    return (scaled_gradient(gradient_BD, of_loss, rows_BD), *[None] * 6)


def _keep_gradients(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(output[2], inputs[0], output[3], inputs[2])
    ctx.wanted = inputs[-2:]
    ctx.mark_non_differentiable(*output[1:])


def _scale_gradients(ctx: Any, of_loss: Tensor, *others: Tensor) -> tuple[Tensor | None, ...]:
    gradient_BD, rows_BD, gradient_RD, rows_RD = ctx.saved_tensors
    of_rows = scaled_gradient(gradient_BD, of_loss, rows_BD) if ctx.wanted[0] else None
    of_reference = scaled_gradient(gradient_RD, of_loss, rows_RD) if ctx.wanted[1] else None
    return (of_rows, None, of_reference, *[None] * 7)


def _operator(name: str, tags: tuple[torch.Tag, ...] = ()) -> Any:
    operator = torch.library.custom_op(
        f"maskreid_kernels::{name}", _loss_with_gradient, mutates_args=(), tags=tags
    )
    operator.register_fake(_shapes)
    operator.register_autograd(_scale_gradient, setup_context=_keep_gradient)
    return operator


loss_with_gradient = _operator("loss_with_gradient", (torch.Tag.cudagraph_unsafe,))
capturable_loss_with_gradient = _operator("capturable_loss_with_gradient")

crossed_loss_with_gradient = torch.library.custom_op(
    "maskreid_kernels::crossed_loss_with_gradient",
    _crossed_loss_with_gradient,
    mutates_args=(),
    tags=(torch.Tag.cudagraph_unsafe,),
)
crossed_loss_with_gradient.register_fake(_crossed_shapes)
crossed_loss_with_gradient.register_autograd(_scale_gradients, setup_context=_keep_gradients)
