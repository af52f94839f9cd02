"""Activation checkpointing (Chen et al. 2016, arXiv 1604.06174) around batch normalisation."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def recomputed(part: nn.Module, x: Tensor) -> Tensor:
    """`part(x)`, of which the backward pass keeps x alone and computes the rest again.

    The running statistics are updated once. Nothing in `part` may be random.
    """
    y: Tensor = checkpoint(
        part,
        x,
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=lambda: (nullcontext(), _statistics_left_alone(part)),
    )
    return y


@contextmanager
def _statistics_left_alone(part: nn.Module) -> Iterator[None]:
    """Batch normalisation that trains uses the batch's statistics as before, and leaves the running ones."""
    norms = [m for m in part.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
