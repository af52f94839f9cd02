"""Activation checkpointing (Chen et al. 2016, arXiv 1604.06174) around batch normalisation."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def recomputed(part: nn.Module, x: Tensor, *, random: bool = False) -> Tensor:
    """`part(x)`, of which the backward pass keeps x alone and computes the rest again.

    The running statistics are updated once. random: `part` draws numbers, the same in both passes.
    """
    y: Tensor = checkpoint(
        part,
        x,
        use_reentrant=False,
        preserve_rng_state=random,
        context_fn=lambda: (nullcontext(), _statistics_left_alone(part)),
    )
    return y


@contextmanager
def _statistics_left_alone(part: nn.Module) -> Iterator[None]:
    """Copies of the running statistics take the update of batch normalisation that trains."""
    norms = [m for m in part.modules() if isinstance(m, _BatchNorm) and m.training]
    own = [dict(norm.named_buffers(recurse=False)) for norm in norms]
    for norm, buffers in zip(norms, own, strict=True):
        for name, buffer in buffers.items():
            setattr(norm, name, buffer.clone())
    try:
        yield
    finally:
        for norm, buffers in zip(norms, own, strict=True):
            for name, buffer in buffers.items():
                setattr(norm, name, buffer)
