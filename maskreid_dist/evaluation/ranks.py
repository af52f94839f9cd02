"""Who shares the work of an evaluation: this process alone, or the ranks of a launch.

Ranks take whole batches, those that one process would make: an image is embedded beside the same others
whatever their number, so the embeddings are one process's, bit for bit.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

T = TypeVar("T")
BATCH_ROWS = 128  # images that are embedded at once
ROWS_AT_ONCE = 1 << 16  # that a rank sends in one message


def _default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class Ranks:
    """This rank, of `size`; without arguments, a process alone. device: where images are embedded.
    distances_on: where galleries are ranked, the host or `device`. group: of all ranks, on the host.

    wait: until all are here, for as long as they live. from_first: rank 0's value, which JSON can hold.
    agree: on facts, by name a value and what a line shows for it; raises UserError on every rank where one
    differs. All ranks take part in these. count: by a work's name, how much this rank has done of it so far;
    gives how much all have.
    """

    rank: int = 0
    size: int = 1
    batch_rows: int = BATCH_ROWS
    device: torch.device = field(default_factory=_default_device)
    distances_on: torch.device = field(default_factory=lambda: torch.device("cpu"))
    group: dist.ProcessGroup | None = None
    wait: Callable[[], object] = lambda: None
    from_first: Callable[[Any], Any] = lambda value: value
    agree: Callable[[Mapping[str, tuple[Any, str]]], None] = lambda facts: None
    count: Callable[[str, int], int] = lambda work, done: done

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def share(self, items: int) -> slice:
        """This rank's of so many items: neighbours, in rank order."""
        return slice(self.rank * items // self.size, (self.rank + 1) * items // self.size)

    def rows(self, images: int) -> slice:
        """The rows of this rank's batches."""
        own = self.share(-(-images // self.batch_rows))
        return slice(min(own.start * self.batch_rows, images), min(own.stop * self.batch_rows, images))


def all_rows(own: NDArray[np.float32], images: int, ranks: Ranks) -> NDArray[np.float32]:
    """(images, D) on every rank, of what each has made of its `Ranks.rows`. All ranks take part."""
    if ranks.group is None:
        return own
    return _joined(own, images, ranks, to_all=True)


def rows_on_first(own: NDArray[np.float32], images: int, ranks: Ranks) -> NDArray[np.float32]:
    """(images, D) on rank 0, its own rows on the others. All ranks take part."""
    if ranks.group is None:
        return own
    joined = _joined(own, images, ranks, to_all=False)
    return joined if ranks.is_first else own


def _joined(own: NDArray[np.float32], images: int, ranks: Ranks, to_all: bool) -> NDArray[np.float32]:
    """Sent in rounds of equal size: a share is shorter than the largest by at most a batch."""
    shares = [replace(ranks, rank=rank).rows(images) for rank in range(ranks.size)]
    gets = to_all or ranks.is_first
    joined = np.empty((images if gets else 0, own.shape[1]), np.float32)
    for start in range(0, max(share.stop - share.start for share in shares), ROWS_AT_ONCE):
        parts = _round(own[start : start + ROWS_AT_ONCE], shares, start, ranks, to_all)
        for share, part in zip(shares, parts, strict=False):
            rows = joined[share][start : start + ROWS_AT_ONCE]
            rows[:] = part[: len(rows)].numpy()
    return joined


def _round(
    own: NDArray[np.float32], shares: list[slice], start: int, ranks: Ranks, to_all: bool
) -> list[Tensor]:
    rows = min(ROWS_AT_ONCE, max(share.stop - share.start for share in shares) - start)
    sent = torch.zeros(rows, own.shape[1])
    sent[: len(own)] = torch.from_numpy(own)
    gets = to_all or ranks.is_first
    parts = [torch.empty_like(sent) for _ in range(ranks.size)] if gets else []
    if to_all:
        dist.all_gather(parts, sent, group=ranks.group)
    else:
        dist.gather(sent, parts or None, dst=0, group=ranks.group)
    return parts
