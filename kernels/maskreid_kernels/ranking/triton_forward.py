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
    SortedRows,
    TileShape,
    accumulator,
    column_chunks,
    processors,
    tile_options,
    tile_shape,
)
from .programs import GROUP, forward_program, positives_program
from .terms import RankingTerms

MARK_BYTES = 160 << 20  # bound of the recorded pairs, 8 bytes per mark
# From this share of the places on, gathering rows pair by pair is slower than two matrix products (an estimate).
SPARSE_UP_TO = 1 / 64
FEW_MARKS = 16  # per anchor: always few
SLAB_BYTES = 512  # of a row, in registers at a time


@dataclass(frozen=True)
class Marks:
    """The pairs inside the margin, see programs.py: entry [M, C, cap] int64, count [M, C] int32 (may exceed the cap)."""

    entry: Tensor
    count_MC: Tensor


@dataclass(frozen=True)
class Saved:
    """What the forward leaves to the backward beside the rows; [N] by place unless named otherwise."""

    sorted_rows: SortedRows
    inverse_N: Tensor | None  # inverse norms, None where rows are not normalised
    t_N: Tensor
    log_z_N: Tensor
    pushed_N: Tensor
    least_row_N: Tensor
    pull_N: Tensor
    marks: Marks


def ranking_tile(columns: int, rows: torch.dtype, *, amd: bool = torch.version.hip is not None) -> TileShape:
    """Half the columns of the shared tile: both roles of a pair per element leave no registers for 128."""
    tile = tile_shape(columns, rows, amd=amd)
    if INTERPRETED:
        return tile
    return replace(tile, block_m=128 if rows == torch.bfloat16 else 64, block_n=64)


def row_options(columns: int, rows: torch.dtype) -> dict[str, Any]:
    """Constants and launch options of the programs that own one anchor each."""
    slab = min(max(int(triton.next_power_of_2(columns)), 16), SLAB_BYTES // rows.itemsize)
    return {"BLOCK_D": slab, "ACC": accumulator(rows)[1], "num_warps": 4}


def least_positives(
    x_ND: Tensor, inverse_N: Tensor | None, rows: SortedRows
) -> tuple[Tensor, Tensor, Tensor]:
    """Per anchor: least similarity to a positive (+inf without one), its row (-1), sum of (S - 1)^2."""
    anchors, columns = len(rows.anchor_M), x_ND.shape[1]
    least_M, squares_M = (x_ND.new_empty(anchors, dtype=accumulator(x_ND.dtype)[0]) for _ in range(2))
    least_row_M = rows.order_N.new_empty(anchors)
    if anchors:
        positives_program[(anchors,)](
            x_ND, inverse_N, rows.order_N, rows.anchor_M, rows.start_N, rows.stop_N, least_M, least_row_M,
            squares_M, columns, **row_options(columns, x_ND.dtype),
        )  # fmt: skip
    return least_M, least_row_M, squares_M


def push_away(
    x_ND: Tensor,
    inverse_N: Tensor | None,
    rows: SortedRows,
    t_N: Tensor,
    terms: RankingTerms,
    precision: Precision,
) -> tuple[Tensor, Tensor, Tensor, Marks]:
    """Per anchor: the sum over violating negatives and its shift, their number; and the marks of both roles."""
    (places, columns), anchors = x_ND.shape, len(rows.anchor_M)
    tile, (dtype, acc) = ranking_tile(columns, x_ND.dtype), accumulator(x_ND.dtype)
    tiles_per_chunk, chunks = column_chunks(anchors, places, tile, processors(x_ND.device))
    cap = mark_cap(anchors, chunks, tiles_per_chunk * tile.block_n)
    sum_CM, shift_CM = (x_ND.new_empty((chunks, anchors), dtype=dtype) for _ in range(2))
    active_CM, count_MC = (rows.anchor_M.new_empty(shape) for shape in ((chunks, anchors), (anchors, chunks)))
    entry = rows.order_N.new_empty((anchors, chunks, cap))
    if anchors:
        forward_program[(triton.cdiv(anchors, tile.block_m), chunks)](
            x_ND, inverse_N, rows.order_N, rows.anchor_M, rows.start_N, rows.stop_N, t_N, sum_CM, shift_CM,
            active_CM, entry, count_MC, anchors, places, columns, tiles_per_chunk, cap,
            BOUNDED=terms.bounded, **tile_options(tile, columns, precision, acc),
        )  # fmt: skip
    # torch's sum over a leading dimension is a fixed order of additions per column: the same bits on every run.
    shift_M = shift_CM.amax(0)
    push_M = (sum_CM * torch.exp(shift_CM - shift_M)).sum(0)
    return push_M, shift_M, active_CM.sum(0), Marks(entry, count_MC)


def mark_cap(anchors: int, chunks: int, chunk_places: int) -> int:
    """Slots per anchor and chunk: MARK_BYTES in all, and no more than the sparse backward would be chosen for."""
    fits = MARK_BYTES // (max(anchors, 1) * chunks * 8)
    # Chunks differ in how many pairs they hold: four times the average share.
    useful = max(int(4 * SPARSE_UP_TO * chunk_places), FEW_MARKS)
    return max(min(fits, useful, -(-chunk_places // int(GROUP.value))), 1)
