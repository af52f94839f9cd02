"""Gradient cache (Gao et al. 2021, arXiv 2101.06983): a global batch of any size in the memory of a micro
batch.

A rank's rows pass the network in micro batches without a graph; the loss of the whole global batch gives each
embedding its gradient; then every micro batch passes once more, with a graph, and hands its rows' gradient
back.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from maskreid_dist.model import Output
from maskreid_dist.training.divergence import Buffers


def micro_batches(rows: int, images: int) -> list[slice]:
    """`rows` dealt in turn to as few parts as hold at most `images`; their sizes differ by one at most.

    Dealt, as a batch lies identity by identity, and batch normalisation should see as many of them as it can.
    It cannot train on a single row, which joins another part: with images = 2, one may have 3.
    """
    parts = max(1, min(-(-rows // images), rows // 2))
    return [slice(part, rows, parts) for part in range(parts)]


def cached_backward(
    engine: Any,
    parts: list[slice],
    forward: Callable[[int, slice], Output],
    objective: Callable[[Output], tuple[Tensor, dict[str, Tensor]]],
    before: Buffers,
) -> tuple[Output, Tensor, dict[str, Tensor]]:
    """The gradients of one step in the engine, as backward of the unsplit loss would leave them, and what it
    returns: the rows' output without a graph, the loss, what to log. All ranks take part.

    parts: this rank's rows. ZeRO from stage 2 on reduces gradients after each, so that every rank needs as
    many. forward: the engine on a part, by number and rows; alike in both passes (dropout). objective: of all
    rows, with those of other ranks. before: the buffers before the step, as running statistics see a part in
    the second pass only.
    """
    with torch.no_grad():
        output = _joined(parts, [forward(part, rows) for part, rows in enumerate(parts)])
    before.restore()
    leaves = [rows.requires_grad_() for rows in output if rows is not None]
    loss, scalars = objective(output)
    gradients = torch.autograd.grad(loss, leaves, allow_unused=True)  # collectives of the loss
    last = len(parts) - 1
    for part, rows in enumerate(parts):
        engine.set_gradient_accumulation_boundary(part == last)
        own = [values for values in forward(part, rows) if values is not None]
        engine.backward(_with_gradient(own, [g if g is None else g[rows] for g in gradients]))
    return output, loss.detach(), scalars


def _joined(parts: list[slice], outputs: list[Output]) -> Output:
    """The output of all rows, in their order."""
    embeddings, logits = zip(*outputs, strict=True)
    return Output(_in_order(parts, embeddings), None if logits[0] is None else _in_order(parts, logits))


def _in_order(parts: list[slice], values: Sequence[Tensor]) -> Tensor:
    whole = values[0].new_empty((sum(map(len, values)), *values[0].shape[1:]))
    for rows, own in zip(parts, values, strict=True):
        whole[rows] = own
    return whole


def _with_gradient(rows: list[Tensor], gradients: list[Tensor | None]) -> Tensor:
    """A 0-d float32 whose derivative by each of `rows` is its gradient, to the bit: DeepSpeed takes scalars
    only."""
    pairs = zip(rows, gradients, strict=True)
    return torch.stack([(own.float() * g.float()).sum() for own, g in pairs if g is not None]).sum()
