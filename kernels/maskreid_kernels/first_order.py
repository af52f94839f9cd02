"""Guard of hand-written backwards: they have no second derivative and say so, and autocast does not reach
into them."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch

from .inputs import without_autocast

NO_SECOND_DERIVATIVE = 'create_graph=True: this backend has no second derivative; use backend="reference"'


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
