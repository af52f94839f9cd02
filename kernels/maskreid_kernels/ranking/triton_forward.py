"""Launches of the ranking loss's forward programs, and what the forward leaves to the backward.

Names: M = this rank's anchors, N = rows of all ranks, D = columns, C = chunks of columns.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
from torch import Tensor

from ..precision import Precision
from ..triton_tiles import (
    INTERPRETED,
    Chip,
    SortedRows,
    TileShape,
    accumulator,
    chip_of,
    column_chunks,
    split_float,
    tile_options,
    tile_shape,
)
from .programs import GROUP, NUMBERS, anchors_program, forward_program, positives_program
from .terms import RankingTerms
from .triton_pairs import Pairs, UpperPartials, UpperPass, most_pairs, push_away_in_pairs

MARK_BYTES = 160 << 20  # bound of the recorded pairs, 8 bytes per mark
# From this share of the places on, gathering rows pair by pair is slower than two matrix products (an
# estimate).
SPARSE_UP_TO = 1 / 64
FEW_MARKS = 16  # per anchor: always few
PARTIAL_BYTES_PER_ANCHOR = 16  # sum, shift, active, count
# Of whole rows, in a program's registers at a time. In float64 a quarter of it: half of it spills 72 bytes.
ROWS_BYTES = 64 << 10
MOST_ROWS = 16
ANCHORS = 128  # per program of the one that merges the chunks


@dataclass(frozen=True)
class Marks:
    """The pairs inside the margin, see programs.py: entry [M, C, cap] int64, count [C, M] int32 (may exceed
    the cap).

    many_M: int32, 1 where an anchor's marks are many, or did not fit.
    """

    entry: Tensor
    count_CM: Tensor
    many_M: Tensor


@dataclass(frozen=True)
class Partials:
    """What one pass over S leaves of each anchor and chunk."""

    sum_CM: Tensor
    shift_CM: Tensor
    active_CM: Tensor
    count_CM: Tensor
    entry: Tensor


def ranking_tile(columns: int, rows: torch.dtype, *, chip: Chip = "large") -> TileShape:
    """Half the columns of the shared tile: both roles of a pair per element leave no registers for more."""
    tile = tile_shape(columns, rows, chip=chip)
    if INTERPRETED:
        return tile
    return replace(tile, block_m=128 if rows == torch.bfloat16 else 64, block_n=64)


def row_options(columns: int, rows: torch.dtype) -> dict[str, Any]:
    """Constants and launch options of the programs that own one anchor each and hold whole rows."""
    acc = accumulator(rows)
    block = max(int(triton.next_power_of_2(columns)), 16)
    size = ROWS_BYTES if acc[0] == torch.float32 else ROWS_BYTES // 4
    span = min(max(size // (block * acc[0].itemsize), 1), MOST_ROWS)
    warps = 4 if block <= 512 else 8 if block <= 4096 else 16
    return {"BLOCK_D": block, "SPAN": span, "ACC": acc[1], "num_warps": warps}


def least_positives(
    x_ND: Tensor,
    inverse_N: Tensor | None,
    rows: SortedRows,
    terms: RankingTerms,
    upper: UpperPass | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Per anchor the row of its least similar positive [M] (-1 without one), the sum of (S - 1)^2 [M]; by own
    row t [B]. What an upper pass reads of a place is filled in."""
    (places, columns), anchors = x_ND.shape, len(rows.anchor_M)
    t_B, squares_M = (x_ND.new_empty(anchors, dtype=accumulator(x_ND.dtype)[0]) for _ in range(2))
    least_row_M = rows.order_N.new_empty(anchors)
    by_place = (None, None) if upper is None else (upper.scale, upper.least)
    if anchors:
        positives_program[(anchors,)](
            x_ND, inverse_N, rows.order_N, rows.anchor_M, rows.start_N, rows.stop_N, least_row_M, squares_M,
            t_B, *by_place, places, columns, rows.own.start, *split_float(terms.margin),
            **row_options(columns, x_ND.dtype),
        )  # fmt: skip
    return least_row_M, squares_M, t_B


def push_away(
    x_ND: Tensor,
    inverse_N: Tensor | None,
    rows: SortedRows,
    t_N: Tensor,
    terms: RankingTerms,
    precision: Precision,
    upper: UpperPass | None,
) -> Partials | UpperPartials:
    """Per anchor and chunk: the sum over violating negatives and its shift, their number; the marks of both
    roles. Or what the upper triangle gives of it."""
    (places, columns), anchors = x_ND.shape, len(rows.anchor_M)
    if upper is not None:
        return push_away_in_pairs(x_ND, rows, upper, most_pairs(places, most_marks(places)), precision)
    tile = ranking_tile(columns, x_ND.dtype, chip=chip_of(x_ND.device))
    dtype, acc = accumulator(x_ND.dtype)
    tiles_per_chunk, chunks = column_chunks(anchors, places, tile, x_ND.device, PARTIAL_BYTES_PER_ANCHOR)
    cap = mark_cap(anchors, chunks, tiles_per_chunk * tile.block_n)
    sum_CM, shift_CM = (x_ND.new_empty((chunks, anchors), dtype=dtype) for _ in range(2))
    active_CM, count_CM = (rows.anchor_M.new_empty((chunks, anchors)) for _ in range(2))
    entry = rows.order_N.new_empty((anchors, chunks, cap))
    if anchors:
        forward_program[(triton.cdiv(anchors, tile.block_m) * chunks,)](
            x_ND, inverse_N, rows.order_N, rows.anchor_M, rows.start_N, rows.stop_N, t_N, sum_CM, shift_CM,
            active_CM, entry, count_CM, anchors, places, columns, tiles_per_chunk, chunks, cap,
            BOUNDED=terms.bounded, **tile_options(tile, columns, precision, acc),
        )  # fmt: skip
    return Partials(sum_CM, shift_CM, active_CM, count_CM, entry)


def anchor_numbers(
    rows: SortedRows,
    partials: Partials | UpperPartials,
    least_row_M: Tensor,
    squares_M: Tensor,
    t_N: Tensor,
    terms: RankingTerms,
) -> tuple[Tensor, Marks | Pairs]:
    """[B, 9] float64: the numbers of this rank's anchors, by row, see programs.py; and the marks."""
    anchors, places = len(rows.anchor_M), len(rows.order_N)
    chunks, cap, many_M = 1, 0, None
    marks: Marks | Pairs
    left: tuple[Tensor | None, ...]
    if isinstance(partials, UpperPartials):
        left, marks = (t_N, partials.sum_N, None, partials.active_N, None), partials.pairs
    else:
        (chunks, _), cap = partials.sum_CM.shape, partials.entry.shape[2]
        left = None, partials.sum_CM, partials.shift_CM, partials.active_CM, partials.count_CM
        many_M = torch.empty_like(rows.anchor_M)
        marks = Marks(partials.entry, partials.count_CM, many_M)
    numbers_B9 = squares_M.new_empty((anchors, NUMBERS.value), dtype=torch.float64)
    if anchors:
        anchors_program[(triton.cdiv(anchors, ANCHORS),)](
            rows.order_N, rows.anchor_M, rows.start_N, rows.stop_N, least_row_M, squares_M, *left, numbers_B9,
            many_M, anchors, places, chunks, cap, most_marks(places), rows.own.start,
            *split_float(terms.pull), BLOCK_M=ANCHORS, ALL=terms.negatives == "all",
            ACC=accumulator(squares_M.dtype)[1], num_warps=4,
        )  # fmt: skip
    return numbers_B9, marks


def most_marks(places: int) -> int:
    """Of an anchor, that the backward visits one by one."""
    return max(int(SPARSE_UP_TO * places), FEW_MARKS)


def mark_cap(anchors: int, chunks: int, chunk_places: int) -> int:
    """Slots per anchor and chunk: MARK_BYTES in all, and no more than the sparse backward would be chosen
    for."""
    fits = MARK_BYTES // (max(anchors, 1) * chunks * 8)
    # Chunks differ in how many pairs they hold: four times the average share.
    useful = max(int(4 * SPARSE_UP_TO * chunk_places), FEW_MARKS)
    return max(min(fits, useful, -(-chunk_places // int(GROUP.value))), 1)
