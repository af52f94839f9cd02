"""The negatives inside a margin as a list of pairs: exact, and sparse late in training.

A negative outside the margin has the weight 0 by the hinge. So where few are inside, a block's sums come from
a short list of its pairs, and the backward gathers their rows instead of computing every similarity again. On
a CPU only, where counting costs no host sync; the backward's list in one process only, whose forward sees
every pair.

Names: N = rows, D = columns, b, c = rows and columns of a block, m = pairs.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..blocks import row_blocks
from ..triangle import Block
from .terms import RankingTerms

# Gathering the rows of a pair costs as much as the dense backward of some thirteen pairs: at 1/32 it is a
# clear win.
SPARSE_UP_TO = 1 / 32
# Of the list and its sorted copies, 40 bytes a pair in float32.
MAX_PAIRS = (96 << 20) // 40
WORD = 8  # truth values that are looked at together, as one integer
MAX_WORDS = 1 / 3  # of a block's, that hold a pair
SAMPLE = 16  # every so many-th row is looked at first, and all where it holds less than 3/2 of that


class ActivePairs:
    """Unordered pairs of negatives, inside the margin of one of the two at least, with their similarities.

    Once there are too many the list is given up, and `complete` is False.
    """

    def __init__(self) -> None:
        self.complete = True
        self._pairs = 0
        self._row: list[Tensor] = []
        self._column: list[Tensor] = []
        self._S: list[Tensor] = []

    def add(self, block: Block, row_m: Tensor, column_m: Tensor, S_m: Tensor) -> None:
        """A block's pairs, by their global rows, as long as they are few."""
        if not self.complete:
            return
        self._pairs += len(S_m)
        if len(S_m) > SPARSE_UP_TO * block.area or self._pairs > MAX_PAIRS:
            self.give_up()
            return
        self._row.append(row_m.to(torch.int32))
        self._column.append(column_m.to(torch.int32))
        self._S.append(S_m)

    def give_up(self) -> None:
        self.complete = False
        self._row, self._column, self._S = [], [], []

    def pairs(self) -> tuple[Tensor, Tensor, Tensor]:
        """row_m, column_m int32, S_m."""
        return torch.cat(self._row), torch.cat(self._column), torch.cat(self._S)


def recorder(x_ND: Tensor, terms: RankingTerms) -> ActivePairs | None:
    """A list to look for pairs with, where that is possible. A NaN, which is inside no margin, must not be
    lost: then None."""
    possible = x_ND.device.type == "cpu" and terms.bounded and len(x_ND) > 0
    return ActivePairs() if possible and math.isfinite(float(x_ND.sum())) else None


class Finder:
    """Where a block's similarities exceed limits, in ascending order; for many blocks, with one buffer for
    all."""

    def __init__(self, largest: int) -> None:
        self._inside = torch.zeros(-(-largest // WORD) * WORD, dtype=torch.bool)

    def places(self, S_bc: Tensor, row_b: Tensor, column_c: Tensor, limit_bc: Tensor) -> Tensor | None:
        """Flat places with S > min(row, column), the limits of a pair's two anchors, or None where so many
        words hold one that a list would not be short. limit_bc: to write into."""
        some_rows = slice(None, None, SAMPLE)
        words = self._words(S_bc[some_rows], torch.minimum(row_b[some_rows, None], column_c))
        if int(torch.count_nonzero(words)) > 1.5 * MAX_WORDS * len(words):
            return None
        word_w = self._words(S_bc, torch.minimum(row_b[:, None], column_c, out=limit_bc))
        # A word of eight is passed over at the price of one truth value.
        some_m = word_w.nonzero().squeeze(1)
        if len(some_m) > MAX_WORDS * len(word_w):
            return None
        place_m = word_w[some_m].view(torch.bool).nonzero().squeeze(1)
        return some_m[place_m // WORD].mul_(WORD).add_(place_m % WORD)

    def _words(self, S_bc: Tensor, limit_bc: Tensor) -> Tensor:
        """S > limit, in the buffer, as int64 words; what fills up the last is not."""
        numbers = S_bc.numel()
        torch.gt(S_bc, limit_bc, out=self._inside[:numbers].view(S_bc.shape))
        words = -(-numbers // WORD)
        self._inside[numbers : words * WORD] = False
        return self._inside[: words * WORD].view(torch.int64)


def add_weighted_rows_(
    gradient_ND: Tensor, x_ND: Tensor, row_m: Tensor, column_m: Tensor, weight_m: Tensor
) -> None:
    """Add weight x[column] to row and weight x[row] to column for every pair, in one order: the same bits
    every time."""
    for to_m, from_m in ((row_m, column_m), (column_m, row_m)):
        to_m, order_m = torch.sort(to_m, stable=True)
        _add_runs_(gradient_ND, x_ND, to_m, from_m[order_m], weight_m[order_m])


def _add_runs_(gradient_ND: Tensor, x_ND: Tensor, to_m: Tensor, from_m: Tensor, weight_m: Tensor) -> None:
    """Add to the rows `to_m`, ascending, their weighted rows `from_m`."""
    count_N = torch.bincount(to_m, minlength=len(gradient_ND))
    stop_N = count_N.cumsum(0)
    for rows in row_blocks(len(gradient_ND), x_ND.shape[1] * x_ND.element_size()):
        first = int(stop_N[rows.start - 1]) if rows.start else 0
        pairs = slice(first, int(stop_N[rows.stop - 1]))
        begin_b = (stop_N[rows] - count_N[rows] - first).to(torch.int32)
        gradient_ND[rows] += F.embedding_bag(
            from_m[pairs], x_ND, begin_b, mode="sum", per_sample_weights=weight_m[pairs]
        )
