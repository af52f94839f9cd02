"""What surrounds a loss and must not change it: autocast, another current device, torch.func, a second
derivative. And the precision that it computes in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import wraps
from typing import Any

import torch
from torch import Tensor

NO_SECOND_DERIVATIVE = 'create_graph=True: this backend has no second derivative; use backend="reference"'
NOTHING = nullcontext()


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Precision a loss is computed in: float64 stays (gradient checks), everything else is float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def under_transforms() -> bool:
    """Whether torch.func (grad, vmap, hessian, ...) is at work, outside the compiler."""
    return torch._C._are_functorch_transforms_active() and not torch.compiler.is_compiling()


def on_their_device(rows: Tensor, *, launches: bool) -> AbstractContextManager[None]:
    """Full precision, on the rows' GPU: autocast is off, and launches go to the stream of the device the rows
    are on.

    Triton launches on the current device, whatever its arguments are on. Where nothing has to change, on a
    CPU, the context managers below would be a tenth of a small batch's calls.
    """
    if rows.is_cpu and not launches and not torch.is_autocast_enabled("cpu"):
        return NOTHING
    return _on_their_device(rows)


@contextmanager
def _on_their_device(rows: Tensor) -> Iterator[None]:
    # The compiler, which traces the reference alone, cannot look into device_of.
    on_device = nullcontext() if torch.compiler.is_compiling() else torch.cuda.device_of(rows)
    with on_device, without_autocast(rows.device):
        yield


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Products inside are computed in their operands' dtype. Costs nothing where autocast is off already."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def first_order_only(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate `Function.backward` to raise RuntimeError when a second derivative is asked for, and to run as
    the forward did where `backward()` is called inside autocast.

    torch's own `once_differentiable` raises only where the upstream gradient requires a gradient; otherwise
    it takes the gradient for a constant, and a gradient penalty would be dropped in silence. Gradient mode is
    on inside a backward exactly when the caller passed create_graph=True.
    """

    @wraps(backward)
    def guarded(ctx: Any, *gradients: Any) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError(NO_SECOND_DERIVATIVE)
        for gradient in gradients:
            if gradient is not None and torch.is_autocast_enabled(gradient.device.type):
                with without_autocast(gradient.device):
                    return backward(ctx, *gradients)
        return backward(ctx, *gradients)

    return guarded
