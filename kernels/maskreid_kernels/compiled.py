"""The losses under torch.compile: one opaque operator that computes a loss and its gradient together.

torch.compile cannot trace collectives, Triton launches and choices by shape, and need not: to the compiler a loss is
`maskreid_kernels::loss_with_gradient`, whose fake kernel gives shapes alone. Its forward computes the gradient too, as
training always wants it; the backward scales it. Every public loss calls `compiled_loss` while it is being compiled.
Autograd does not see into an operator, so only backends with a backward of their own run in it; the reference is plain
torch, and traced as such.

There are two of the operator: a loss that reads something on the host (any with a group, ranking to choose its backward,
the log-sum-exp family the largest identity) cannot be captured in a CUDA graph, and its operator is tagged so: the
compiler captures what lies before and after it. Batch-hard and softmax without a group are captured whole.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import _resolve_process_group  # type: ignore[attr-defined]

from .inputs import compute_dtype

STATISTICS = {"ranking_loss_with_statistics": 3}
CAPTURABLE = {"batch_hard_loss": ("auto", "dense", "triton"), "softmax_loss": ("auto", "chunked")}


def compiled_loss(
    name: str, rows_BD: Tensor, labels_B: Tensor, group: dist.ProcessGroup | None, options: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """The loss (0-d) of the public function `name`, and its statistics (float64), as one operator of the graph.

    All ranks of `group` take part. The gradient has no derivative of its own.
    """
    words = {key: value for key, value in options.items() if isinstance(value, str)}
    numbers = {key: float(value) for key, value in options.items() if not isinstance(value, str)}
    capturable = group is None and options["backend"] in CAPTURABLE.get(name, ())
    operator = capturable_loss_with_gradient if capturable else loss_with_gradient
    loss, statistics, _ = operator(
        rows_BD,
        labels_B,
        name,
        " ".join(numbers),
        list(numbers.values()),
        " ".join(f"{key}={value}" for key, value in words.items()),
        "" if group is None else group.group_name,
        rows_BD.requires_grad,
    )
    return loss, statistics


def _loss_with_gradient(
    rows_BD: Tensor,
    labels_B: Tensor,
    name: str,
    number_names: str,
    numbers: list[float],
    words: str,
    group_name: str,
    wants_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss (0-d), statistics (float64, as many as the loss has) and gradient on the rows (empty if not wanted).

    Options travel as an operator's arguments may: names "margin pull" of `numbers`, and words "backend=auto".
    """
    import maskreid_kernels  # the public losses import this module

    options: dict[str, Any] = dict(zip(number_names.split(), numbers, strict=True))
    options |= dict(word.split("=") for word in words.split())
    if "normalize" in options:
        options["normalize"] = bool(options["normalize"])
    if group_name:
        options["group"] = _resolve_process_group(group_name)  # type: ignore[arg-type]  # GroupName is a str
    # Casts would be plain autograd, too: rows are cast here, and what follows from their dtype is said in words.
    low = rows_BD.dtype in (torch.bfloat16, torch.float16)
    if low and options.get("precision") == "auto" and options["backend"] in ("auto", "triton"):
        options["precision"] = "bf16"
    with torch.enable_grad():
        rows = rows_BD.detach().to(compute_dtype(rows_BD.dtype)).requires_grad_(wants_gradient)
        found = getattr(maskreid_kernels, name)(rows, labels_B, **options)
        loss, statistics = found if isinstance(found, tuple) else (found, None)
        gradient = (
            torch.autograd.grad(loss, rows)[0].to(rows_BD.dtype) if wants_gradient else rows_BD.new_empty(0)
        )
    values = [value.double() for value in vars(statistics).values()] if statistics else []
    return loss.detach(), torch.stack(values) if values else loss.new_empty(0).double(), gradient


def _shapes(
    rows_BD: Tensor,
    labels_B: Tensor,
    name: str,
    number_names: str,
    numbers: list[float],
    words: str,
    group_name: str,
    wants_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    loss = rows_BD.new_empty((), dtype=compute_dtype(rows_BD.dtype))
    statistics = rows_BD.new_empty(STATISTICS.get(name, 0), dtype=torch.float64)
    return loss, statistics, torch.empty_like(rows_BD) if wants_gradient else rows_BD.new_empty(0)


def _keep_gradient(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[2])
    ctx.mark_non_differentiable(output[1], output[2])


def _scale_gradient(ctx: Any, of_loss: Tensor, *others: Tensor) -> tuple[Tensor | None, ...]:
    (gradient_BD,) = ctx.saved_tensors
    return ((gradient_BD * of_loss).to(gradient_BD.dtype), *[None] * 7)


def _operator(name: str, tags: tuple[torch.Tag, ...] = ()) -> torch.library.CustomOpDef:
    operator = torch.library.custom_op(
        f"maskreid_kernels::{name}", _loss_with_gradient, mutates_args=(), tags=tags
    )
    operator.register_fake(_shapes)
    operator.register_autograd(_scale_gradient, setup_context=_keep_gradient)
    return operator


loss_with_gradient = _operator("loss_with_gradient", (torch.Tag.cudagraph_unsafe,))
capturable_loss_with_gradient = _operator("capturable_loss_with_gradient")
