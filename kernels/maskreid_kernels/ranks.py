"""Rows over ranks, and the one statement of the gradient convention every loss of this package keeps.

Convention. W ranks of a process group each hold some rows of one global batch (the counts may differ and may
be zero). For a loss L, the true mean over the global batch:

    value      L itself, the same number on every rank (nothing is multiplied by W);
    gradient   on a rank's own rows: W x dL / d(own rows), where dL / d(own rows) counts every term the rows
               take part in, also as candidates of other ranks' anchors.

Candidates that are not the batch (`reference=`) are rows of their own, any number of each rank, and keep the
same: W x dL / d(own references), which counts the anchors of every rank.

Data parallelism averages parameter gradients (sum over ranks, divided by W). Under this convention that
average is the gradient of one process holding the whole batch. Nobody else sums or divides: no collective
runs in the backward. The gradient flowing into the loss must be the same on every rank, as it is when each
rank calls `loss.backward()`. With `group=None` the process is alone and W = 1, whatever groups exist.

Names: B = this rank's rows, N = rows of all ranks, D = columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import FunctionCtx


@dataclass(frozen=True)
class RankLayout:
    """How the N rows of a global batch lie over the ranks of a group, in rank order."""

    group: dist.ProcessGroup | None
    rank: int
    rows_per_rank: tuple[int, ...]

    @property
    def world_size(self) -> int:
        return len(self.rows_per_rank)

    @property
    def total_rows(self) -> int:
        return sum(self.rows_per_rank)

    @property
    def own(self) -> slice:
        """This rank's rows among the N."""
        start = sum(self.rows_per_rank[: self.rank])
        return slice(start, start + self.rows_per_rank[self.rank])


@dataclass(frozen=True)
class ReferenceLayout(RankLayout):
    """How candidates that are not the batch lie over the ranks; `learning`: whether any rank's wait for a
    gradient.
    """

    learning: bool


def gather_rows(own: Tensor, layout: RankLayout) -> Tensor:
    """All ranks' rows in rank order, [B, ...] -> [N, ...]. Every rank takes part; carries no gradient."""
    own = own.detach()
    return own if layout.group is None else _gathered(own, layout)


@torch.no_grad()
def _gathered(own: Tensor, layout: RankLayout) -> Tensor:
    tallest = max(layout.rows_per_rank)
    padded = own
    if own.shape[0] < tallest:  # collectives want equal shapes, ranks may hold unequal row counts
        padded = own.new_zeros((tallest, *own.shape[1:]))
        padded[: own.shape[0]] = own
    gathered = own.new_empty((layout.world_size * tallest, *own.shape[1:]))
    if tallest > 0:
        # Into one tensor: of a list, NCCL would make a flat buffer and copy it.
        dist.all_gather_into_tensor(gathered, padded.contiguous(), group=layout.group)
    if min(layout.rows_per_rank) == tallest:
        return gathered
    padded_ranks = gathered.unflatten(0, (layout.world_size, tallest))
    return torch.cat([padded_ranks[rank, :rows] for rank, rows in enumerate(layout.rows_per_rank)])


def gather_parts(own: Tensor, layout: RankLayout) -> Tensor:
    """Every rank's tensor of one shape, [...] -> [W, ...]. Every rank takes part; carries no gradient."""
    own = own.detach()
    if layout.group is None:
        return own[None]
    parts = own.new_empty((layout.world_size, *own.shape))
    if own.numel():
        dist.all_gather_into_tensor(parts.flatten(0, 1), own.contiguous(), group=layout.group)
    return parts


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, layout: RankLayout) -> Tensor:
        ctx.layout = layout
        return gather_rows(own, layout)

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Any) -> tuple[Tensor, None]:
        layout: RankLayout = ctx.layout  # type: ignore[attr-defined]
        return gradients[0][layout.own] * layout.world_size, None


def gather_rows_with_gradient(own: Tensor, layout: RankLayout) -> Tensor:
    """`gather_rows` for a loss that each rank then computes whole: backward takes the own slice, times W."""
    if layout.group is None:
        return own
    gathered: Tensor = _GatherRows.apply(own, layout)
    return gathered
