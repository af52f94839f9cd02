"""Every unordered pair of rows once: S = x x^T is symmetric, so half of its blocks hold all of it.

A block (i, j) with i <= j serves both roles: its rows are anchors whose candidates are its columns and,
unless i = j, the other way round. What an anchor needs of all its candidates (a least distance, a sum) is put
together from the blocks as they come. In the forward each rank computes a share of the blocks, for the
anchors of all ranks, and the parts are gathered: N^2 / 2 similarities in all. In the backward each rank
computes the blocks that touch its own rows: N^2 - N^2 / (2 W) in all, and no collective.

Names: N = rows of all ranks, W = ranks, b, c = rows and columns of a block, P = rows of the largest identity,
m = pairs of one identity.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from .blocks import CACHE_BYTES, WORKSPACE_BYTES
from .positives import Positives
from .ranks import RankLayout

WHOLE = 1024  # up to so many rows S is one block: half of it would cost more in small operators than it saves
LOW, STRIPS = 512, 16  # strips are at least so high; of so many, 1/17 of the blocks lies on the diagonal
WIDE_IDENTITY = 32  # from here on positives are found by comparing labels, not by listing them


@dataclass(frozen=True)
class Block:
    """Global rows and columns, rows.start <= columns.start, and which of the two are anchors here."""

    rows: slice
    columns: slice
    rows_count: bool
    columns_count: bool

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows.stop - self.rows.start, self.columns.stop - self.columns.start

    @property
    def area(self) -> int:
        return math.prod(self.shape)


class Triangle:
    """The blocks of one batch, cut alike on every rank: none crosses from one rank's rows to another's."""

    def __init__(self, x_ND: Tensor, positives: Positives, layout: RankLayout) -> None:
        self.positives, self.layout = positives, layout
        # Two matrices of a block's shape lie in a CPU's cache for the passes after the product.
        numbers = CACHE_BYTES // (2 * x_ND.element_size())
        height = len(x_ND) if len(x_ND) <= WHOLE else max(len(x_ND) // STRIPS, LOW)
        height = min(height, math.isqrt(numbers))
        height = max(min(height, WORKSPACE_BYTES // (64 * max(positives.widest, 1))), 1)
        self.blocks = list(_blocks(layout, height, max(numbers // height // height, 1) * height))
        self.largest = max((block.area for block in self.blocks), default=0)
        self._x_ND = x_ND
        self._workspaces: list[Tensor] = []
        self._listed: tuple[slice, Tensor, Tensor] | None = None

    def share(self) -> Iterator[Block]:
        """This rank's share of all blocks; its anchors are whose they may be."""
        before, total = 0, sum(block.area for block in self.blocks)
        for block in self.blocks:
            if (2 * before + block.area) * self.layout.world_size // (2 * total) == self.layout.rank:
                yield block
            before += block.area

    def own(self) -> Iterator[Block]:
        """The blocks that touch this rank's rows, with these alone as anchors."""
        own = self.layout.own
        for block in self.blocks:
            of_rows = own.start <= block.rows.start < own.stop
            of_columns = block.columns_count and own.start <= block.columns.start < own.stop
            if of_rows or of_columns:
                yield replace(block, rows_count=of_rows, columns_count=of_columns)

    def workspace(self, block: Block, number: int) -> Tensor:
        """The number-th matrix [b, c] to write into; that of the block before is gone.

        Used again and again: fresh memory costs a CPU more than a pass over it.
        """
        while number >= len(self._workspaces):
            self._workspaces.append(self._x_ND.new_empty(self.largest))
        return self._workspaces[number][: block.area].view(block.shape)

    def similarities(self, block: Block, scale: float = 1) -> Tensor:
        """scale S [b, c], in workspace 0."""
        S_bc = self.workspace(block, 0)
        return S_bc.addmm_(self._x_ND[block.rows], self._x_ND[block.columns].t(), beta=0, alpha=scale)

    def whole(self) -> Tensor | None:
        """The last similarities, [N, N], where all are one block: few enough to be kept for the backward.
        In one process: over ranks another may have computed them."""
        alone = self.layout.group is None and len(self.blocks) == 1
        return self.workspace(self.blocks[0], 0) if alone else None

    def fill_positives_(self, numbers_bc: Tensor, block: Block, value: float) -> None:
        """Write `value` wherever row and column share an identity, the diagonal included."""
        start_N = self.positives.start_N
        if self.positives.widest >= WIDE_IDENTITY:
            same_bc = start_N[block.rows, None] == start_N[block.columns]
            numbers_bc.masked_fill_(same_bc, value)
            return
        if len(self.blocks) == 1:
            numbers_bc.scatter_(1, self.positives.of_rows(block.rows)[1], value)
            return
        row_m, column_m = self._pairs_of_identities(block.rows)
        first, last = torch.searchsorted(
            column_m, torch.tensor([block.columns.start, block.columns.stop], device=column_m.device)
        ).tolist()  # host sync
        if first < last:
            place_m = row_m[first:last] * block.shape[1] + (column_m[first:last] - block.columns.start)
            numbers_bc.view(-1).index_fill_(0, place_m, value)

    def add_products_(self, out_BD: Tensor, G_bc: Tensor, block: Block) -> None:
        """Add a block's share of G x to this rank's rows, G symmetric, for those sides that are anchors."""
        first = self.layout.own.start
        if block.rows_count:
            own = slice(block.rows.start - first, block.rows.stop - first)
            out_BD[own].addmm_(G_bc, self._x_ND[block.columns])
        if block.columns_count:
            own = slice(block.columns.start - first, block.columns.stop - first)
            out_BD[own].addmm_(G_bc.t(), self._x_ND[block.rows])

    def _pairs_of_identities(self, rows: slice) -> tuple[Tensor, Tensor]:
        """(row within the strip, global row of its identity) by ascending global row; those of the last strip
        are kept."""
        if self._listed is None or self._listed[0] != rows:
            _, index_bP, _ = self.positives.of_rows(rows)
            column_m, place_m = index_bP.flatten().sort()
            self._listed = rows, place_m // max(self.positives.widest, 1), column_m
        return self._listed[1:]


def _blocks(layout: RankLayout, height: int, width: int) -> Iterator[Block]:
    """By rows, then by columns: the square on the diagonal, whose rows alone are anchors, and what is right
    of it."""
    edges = list(accumulate(layout.rows_per_rank, initial=0))
    ranks = list(pairwise(edges))
    for rank, (start, stop) in enumerate(ranks):
        for top in range(start, stop, height):
            rows = slice(top, min(top + height, stop))
            yield Block(rows, rows, True, False)
            for first, last in [(rows.stop, stop), *ranks[rank + 1 :]]:
                for left in range(first, last, width):
                    yield Block(rows, slice(left, min(left + width, last)), True, True)
