"""Exponential moving average of the weights (Polyak averaging): what evaluations and inference use.

Floating-point buffers (running statistics) are averaged with the weights, so that both are of the same past.
A checkpoint's `weights.safetensors` holds the average, DeepSpeed's own files the weights that train on.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from maskreid_dist.config import Config
from maskreid_dist.errors import CheckpointError
from maskreid_dist.model.checkpoint import WEIGHTS, Checkpoint


class Ema:
    """average <- d * average + (1 - d) * weights, with d = min(decay, (1 + step) / (10 + step)): the first
    steps, which start from noise, are forgotten sooner."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.average = [tensor.clone() for tensor in _averaged(module).values()]

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """After step `step` (from 0) was applied. No collective, no host sync."""
        decay = min(self.decay, (1 + step) / (10 + step))
        own = [tensor.to(mean.dtype) for tensor, mean in zip(self._of(module), self.average, strict=True)]
        torch._foreach_lerp_(self.average, own, 1 - decay)

    @contextmanager
    def applied(self, module: nn.Module, *, keep: bool = False) -> Iterator[None]:
        """The network with the averages in place of its weights; afterwards the weights again, to the bit.

        keep: what the network then holds (running statistics averaged over ranks) becomes the average.
        """
        tensors = self._of(module)
        with torch.no_grad():
            before = [tensor.clone() for tensor in tensors]
            torch._foreach_copy_(tensors, self.average)
            try:
                yield
                if keep:
                    torch._foreach_copy_(self.average, tensors)
            finally:
                torch._foreach_copy_(tensors, before)

    def _of(self, module: nn.Module) -> list[Tensor]:
        return list(_averaged(module).values())


def _averaged(module: nn.Module) -> dict[str, Tensor]:
    named = [*module.named_parameters(), *module.named_buffers()]
    return {name: tensor.detach() for name, tensor in named if tensor.is_floating_point()}


def start_ema(config: Config, module: nn.Module, checkpoint: Checkpoint | None) -> Ema | None:
    """The recipe's average: of the weights at the start, or what a checkpoint's holds. None: it has none.

    Raises CheckpointError: the checkpoint's does not fit.
    """
    if not config.optimizer.ema:
        return None
    ema = Ema(module, config.optimizer.ema)
    if checkpoint:
        path = checkpoint.path / WEIGHTS
        saved: dict[str, Any] = load_file(path)
        for name, mean in zip(_averaged(module), ema.average, strict=True):
            if name not in saved or saved[name].shape != mean.shape:
                raise CheckpointError(f"{path}: has no {name} of this shape; use another checkpoint")
            mean.copy_(saved[name])
    return ema
