"""The ranking loss's gradient as a list of pairs, recorded in the forward: exact, and sparse late in
training.

A negative outside the margin has the weight 0 by the hinge. So where few are inside, G = dL(k)/dS_kj is a
short list, and the backward, dX = (G + G^T) x, gathers rows instead of computing every similarity again. One
process on a CPU only: there the forward sees every anchor, and counting costs no host sync.

Names: N = rows, D = columns, b = rows of a block, P = rows of the largest identity, m = pairs.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..blocks import row_blocks
from ..ranks import RankLayout
from .terms import RankingTerms

# Gathering the rows of a pair costs as much as the dense backward of some thirteen pairs: at 1/32 it is a
# clear win.
SPARSE_UP_TO = 1 / 32
# Of the list and its sorted copy, 40 bytes a pair in float32.
MAX_PAIRS = (96 << 20) // 40


class ActivePairs:
    """G, row by row. Once a block has too many pairs the list is given up, and `complete` is False."""

    def __init__(self) -> None:
        self.complete = True
        self._pairs = 0
        self._columns: list[Tensor] = []
        self._values: list[Tensor] = []
        self._count_b: list[Tensor] = []

    def accepts(self, inside_b: Tensor, pulled_bP: Tensor, similarities: int) -> bool:
        """Whether a block is still recorded: negatives inside the margin by anchor, which positives count,
        their total."""
        if not self.complete:
            return False
        negatives = int(inside_b.sum())
        self._pairs += negatives + int(pulled_bP.sum())
        if negatives > SPARSE_UP_TO * similarities or self._pairs > MAX_PAIRS:
            self.complete = False
            self._columns, self._values, self._count_b = [], [], []
        return self.complete

    def add_block(self, row_m: Tensor, column_m: Tensor, value_m: Tensor, rows: int) -> None:
        """The next block's pairs in any order: row within the block, column among the N, value of G."""
        row_m, order_m = torch.sort(row_m.to(torch.int32), stable=True)
        self._columns.append(column_m[order_m].to(torch.int32))
        self._values.append(value_m[order_m])
        self._count_b.append(torch.bincount(row_m, minlength=rows))

    def rows_gradient(self, x_ND: Tensor) -> Tensor:
        """(G + G^T) x, summed in one order: the same bits every time."""
        column_m, value_m, count_N = (torch.cat(p) for p in (self._columns, self._values, self._count_b))
        gradient_ND = torch.empty_like(x_ND)
        _weighted_rows_(gradient_ND, x_ND, column_m, value_m, count_N, add=False)
        row_m = torch.repeat_interleave(torch.arange(len(count_N), dtype=torch.int32), count_N)
        destination_m, order_m = torch.sort(column_m, stable=True)
        count_N = torch.bincount(destination_m, minlength=len(count_N))
        _weighted_rows_(gradient_ND, x_ND, row_m[order_m], value_m[order_m], count_N, add=True)
        return gradient_ND


def recorder(x_ND: Tensor, terms: RankingTerms, layout: RankLayout) -> ActivePairs | None:
    """A list to record into, where that is possible. A NaN, which is inside no margin, must not be lost: then
    None."""
    possible = layout.group is None and x_ND.device.type == "cpu" and terms.bounded and len(x_ND) > 0
    return ActivePairs() if possible and math.isfinite(float(x_ND.sum())) else None


def _weighted_rows_(
    out_ND: Tensor, x_ND: Tensor, index_m: Tensor, weight_m: Tensor, count_N: Tensor, *, add: bool
) -> None:
    """Row k of out: the sum of weight times x over its count_N[k] consecutive pairs."""
    stop_N = count_N.cumsum(0)
    for rows in row_blocks(len(out_ND), x_ND.shape[1] * x_ND.element_size()):
        first = int(stop_N[rows.start - 1]) if rows.start else 0
        pairs = slice(first, int(stop_N[rows.stop - 1]))
        begin_b = (stop_N[rows] - count_N[rows] - first).to(torch.int32)
        sum_bD = F.embedding_bag(
            index_m[pairs], x_ND, begin_b, mode="sum", per_sample_weights=weight_m[pairs]
        )
        out_ND[rows] = sum_bD + out_ND[rows] if add else sum_bD
