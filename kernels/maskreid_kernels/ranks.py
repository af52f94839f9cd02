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

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import FunctionCtx

from .agreement import agree
from .options import FLOATS


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


def agree_on_layouts(
    rows_BD: object,
    reference_RD: Tensor | None,
    problem: str | None,
    group: dist.ProcessGroup | None,
    options: Mapping[str, Any] | None = None,
) -> tuple[RankLayout, ReferenceLayout]:
    """Exchange row counts over the group; raise ValueError, the same line on every rank, when any rank's
    input is bad or the ranks' widths, dtypes or options differ.

    Every rank of the group takes part (`agree`). A group of one rank is no group: nothing is exchanged.
    `problem` is what this rank found wrong with its own input, None when nothing: rows_BD is a tensor then.
    reference_RD: candidates that are not the batch, of the rows' width; None: none. `options`: what must be
    equal on all ranks.
    """
    rank = 0 if group is None else dist.get_rank(group)
    if rank < 0:
        raise ValueError("group: this process is not one of the group's ranks")
    learning = reference_RD is not None and reference_RD.requires_grad
    references = 0 if reference_RD is None else len(reference_RD)
    if group is None or dist.get_world_size(group) == 1:
        if problem:
            raise ValueError(problem)
        assert isinstance(rows_BD, Tensor)
        return RankLayout(None, 0, (rows_BD.shape[0],)), ReferenceLayout(None, 0, (references,), learning)
    numbers = (0, 0, 0, 0, 0)
    if not problem:
        assert isinstance(rows_BD, Tensor)
        numbers = (*rows_BD.shape, FLOATS.index(rows_BD.dtype), references, int(learning))
    device = rows_BD.device if isinstance(rows_BD, Tensor) else None
    found = agree(problem, options or {}, numbers, group, device)
    rows, columns, dtypes, candidates, learn = zip(*found, strict=True)
    if len(set(columns)) > 1:
        raise ValueError(
            f"the ranks' rows differ in width: {list(columns)} columns by rank; pass the same width"
        )
    if len(set(dtypes)) > 1:
        names = [str(FLOATS[code]) for code in dtypes]
        raise ValueError(f"the ranks' rows differ in dtype: {names} by rank; pass the same dtype")
    return RankLayout(group, rank, rows), ReferenceLayout(group, rank, candidates, any(learn))


def gather_rows(own: Tensor, layout: RankLayout) -> Tensor:
    """All ranks' rows in rank order, [B, ...] -> [N, ...]. Every rank takes part; carries no gradient."""
    own = own.detach()
    return own if layout.group is None else _gathered(own, layout)


@torch.no_grad()
def _gathered(own: Tensor, layout: RankLayout) -> Tensor:
    max_rows = max(layout.rows_per_rank)
    padded = own
    if own.shape[0] < max_rows:  # collectives want equal shapes, ranks may hold unequal row counts
        padded = own.new_zeros((max_rows, *own.shape[1:]))
        padded[: own.shape[0]] = own
    gathered = own.new_empty((layout.world_size * max_rows, *own.shape[1:]))
    if max_rows > 0:
        # Into one tensor: of a list, NCCL would make a flat buffer and copy it.
        _all_gather(gathered, padded.contiguous(), layout.group)
    if min(layout.rows_per_rank) == max_rows:
        return gathered
    padded_ranks = gathered.unflatten(0, (layout.world_size, max_rows))
    return torch.cat([padded_ranks[rank, :rows] for rank, rows in enumerate(layout.rows_per_rank)])


def gather_parts(own: Tensor, layout: RankLayout) -> Tensor:
    """Every rank's tensor of one shape, [...] -> [W, ...]. Every rank takes part; carries no gradient."""
    own = own.detach()
    if layout.group is None:
        return own[None]
    parts = own.new_empty((layout.world_size, *own.shape))
    if own.numel():
        _all_gather(parts.flatten(0, 1), own.contiguous(), layout.group)
    return parts


_around_gathers: Callable[[], AbstractContextManager[object]] = nullcontext


def _all_gather(gathered: Tensor, own: Tensor, group: dist.ProcessGroup | None) -> None:
    with _around_gathers():
        dist.all_gather_into_tensor(gathered, own, group=group)


@contextmanager
def watched_gathers(around: Callable[[], AbstractContextManager[object]]) -> Iterator[None]:
    """While this lasts, every gather of rows over ranks happens within a context that `around` makes: to
    time them, as part of a loss. Not over the layouts' exchange of row counts."""
    global _around_gathers
    before, _around_gathers = _around_gathers, around
    try:
        yield
    finally:
        _around_gathers = before


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
