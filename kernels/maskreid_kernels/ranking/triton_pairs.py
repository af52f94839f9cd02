"""Launches around the ranking loss's pass over the upper triangle of S: the pass, the list of pairs inside
the margin, and that list sorted by anchor. Names are those of triton_forward.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..precision import Precision
from ..symmetric_tiles import Triangle, triangle_of
from ..triton_tiles import (
    INTERPRETED,
    Chip,
    SortedRows,
    TileShape,
    accumulator,
    chip_of,
    tile_options,
    tile_shape,
)
from .symmetric_programs import KEY_BITS, symmetric_forward_program
from .terms import RankingTerms

# Of the list, each pair from both of its sides; sorting it takes some four times as much for a while.
PAIR_BYTES = 64 << 20


@dataclass(frozen=True)
class UpperPass:
    """How a batch's upper triangle is walked, and what the pass reads of a place, see `positives_program`:
    scale and least, readable up to the end of the last tile.
    """

    tile: TileShape
    walk: Triangle
    scale: Tensor
    least: Tensor


@dataclass(frozen=True)
class UpperPartials:
    """What a pass over the upper triangle leaves, see symmetric_programs.py: by place sum_N int64 and
    active_N int32, and the pairs.
    """

    sum_N: Tensor
    active_N: Tensor
    pairs: Pairs


@dataclass(frozen=True)
class Pairs:
    """The list, int64 [most], and how many it would hold, found_1 int64."""

    pair: Tensor
    found_1: Tensor

    def sorted(self, places: int) -> tuple[Tensor, Tensor] | None:
        """(keys in ascending order, int64 [N + 1] first key of each anchor); None where the list does not
        hold all. A host sync.
        """
        found = int(self.found_1)
        if found > len(self.pair):
            return None
        key = self.pair[:found].sort().values
        begin = torch.arange(places + 1, device=key.device) << KEY_BITS.value
        return key, torch.searchsorted(key, begin)


def upper_pass(
    rows: SortedRows, columns: int, terms: RankingTerms, precision: Precision, inverse_N: Tensor | None
) -> UpperPass | None:
    """None where the pass takes all of S: `triangle_of` has a reason, |S| <= 1 does not bound the sums, or
    float64 wants more digits than fixed point has. inverse_N: inverse norms, None of rows as given.
    """
    tile = upper_tile(columns, precision.rows, chip_of(rows.order_N.device))
    if inverse_N is None or not terms.bounded or precision.rows == torch.float64:
        return None
    walk, room = triangle_of(rows, tile), len(rows.order_N) + tile.block_n
    if walk is None:
        return None
    return UpperPass(tile, walk, inverse_N.new_empty(room), inverse_N.new_empty(room))


def upper_tile(columns: int, rows: torch.dtype, chip: Chip) -> TileShape:
    """Of the pass over the upper triangle: both roles of a pair leave no registers for more columns."""
    tile = tile_shape(columns, rows, chip=chip)
    if INTERPRETED or (chip == "wide" and rows == torch.bfloat16 and not tile.one_slab):
        return tile
    return replace(tile, block_n=64)


def push_away_in_pairs(
    x_ND: Tensor, rows: SortedRows, upper: UpperPass, most: int, precision: Precision
) -> UpperPartials:
    """most: pairs that the list has room for, from both sides."""
    (places, columns), acc = x_ND.shape, accumulator(x_ND.dtype)[1]
    sums, active_N = rows.order_N.new_zeros(places + 1), rows.anchor_M.new_zeros(places)
    pairs = Pairs(rows.order_N.new_empty(most), sums[-1:])
    symmetric_forward_program[(upper.walk.programs,)](
        x_ND, upper.scale, rows.order_N, rows.anchor_M, rows.start_N, rows.stop_N, upper.least, sums,
        active_N, pairs.pair, pairs.found_1, places, columns, upper.walk.side, upper.walk.blocks, most,
        **tile_options(upper.tile, columns, precision, acc),
    )  # fmt: skip
    return UpperPartials(sums, active_N, pairs)


def most_pairs(places: int, most_marks: int) -> int:
    """Pairs that are listed, from both sides: PAIR_BYTES, and no more than the sparse backward would be
    chosen for.
    """
    return max(min(PAIR_BYTES // 8, places * min(most_marks, places - 1)), 2)
