"""What plain torch code asks of a GPU, counted on the CPU at a small size: bytes of N x N matrices, and
operators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ROWS, COLUMNS, IMAGES = 128, 32, 4


@dataclass(frozen=True)
class Traffic:
    """Of a forward and backward: bytes per pair of rows that operators read and write, and how many of them
    compute."""

    bytes_per_pair: float
    operators: int


class _Count(TorchDispatchMode):
    def __init__(self, pairs: int) -> None:
        super().__init__()
        self.pairs, self.bytes, self.operators = pairs, 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        taken = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        given = [leaf for leaf in tree_leaves(found) if isinstance(leaf, Tensor)]
        held = {leaf.untyped_storage().data_ptr() for leaf in taken}
        in_place = func._schema.is_mutable
        if in_place or any(leaf.untyped_storage().data_ptr() not in held for leaf in given):  # not a view
            self.operators += 1
            matrices = [leaf for leaf in taken + given if leaf.numel() >= self.pairs]
            self.bytes += sum(leaf.numel() * leaf.element_size() for leaf in matrices)
        return found


def traffic(loss: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype = torch.bfloat16) -> Traffic:
    """Of one loss on ROWS rows of `dtype`."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, COLUMNS, generator=generator).to(dtype).requires_grad_()
    y = torch.arange(ROWS) // IMAGES
    with _Count(ROWS * ROWS) as count:
        loss(x, y).backward()
    return Traffic(count.bytes / ROWS**2, count.operators)
