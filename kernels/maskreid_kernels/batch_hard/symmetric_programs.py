"""Batch-hard's pass over the upper triangle of S; names are those of programs.py, the walk is that of
symmetric_tiles.py.

Rows and columns of every tile offer their least distance to their anchors: one integer holds the distance's
bits, which as an integer order like it, above the place. The least integer over all tiles is the nearest
negative, of equals the one of the lowest place, in whatever order the tiles come. That of a distance that is
infinite is no negative.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..symmetric_tiles import tiles_of_pair
from ..triton_tiles import anchor_block, load_whole_slab
from .programs import INFINITE, distance_tile


@triton.jit
def key_of(least, first_place, lane, PACKED: tl.constexpr, LANES: tl.constexpr):
    """A distance and a place as one int64. PACKED: `least` are its bits, the lane in those below LANES."""
    if PACKED:
        both = least.to(tl.int64)  # once: from here on the layout is that of memory, not that of the tile
        return ((both & -LANES) << 32) | (first_place + (both & (LANES - 1)))
    else:
        bits = least.to(tl.int32, bitcast=True)
        bits ^= (bits >> 31) & 0x7FFFFFFF  # rounding may leave a distance below 0
        return (bits.to(tl.int64) << 32) | (first_place + lane).to(tl.int64)


@triton.jit
def least_along(keys, lane, axis: tl.constexpr, PACKED: tl.constexpr):
    """(least along an axis, its lane), packed as one number twice."""
    if PACKED:
        least = tl.min(keys | tl.expand_dims(lane, 1 - axis), axis)
        return least, least
    else:
        return tl.min(keys, axis, return_indices=True)


@triton.jit(do_not_specialize=["N", "side", "blocks"])
def symmetric_negatives_program(
    x_ptr, square_ptr, order_ptr, anchor_ptr, start_ptr, stop_ptr, key_ptr, N, D, side, blocks,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, EVEN_D: tl.constexpr,
    ONE_SLAB: tl.constexpr, COSINE: tl.constexpr, PACKED: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """key [N]: of each anchor the nearest negative's distance and place; what it holds before is kept where
    it is less.

    PACKED: see `negatives_program`.
    """
    _row_block, _column_block, first_row, last_row, first_tile, last_tile = tiles_of_pair(
        tl.program_id(0), N, side, blocks, BLOCK_M, BLOCK_N
    )
    LANES: tl.constexpr = max(BLOCK_M, BLOCK_N)
    row_lane, lane = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    for row in range(first_row, last_row):
        m, ok, _, a_row, start, stop, low, high = anchor_block(
            anchor_ptr, order_ptr, start_ptr, stop_ptr, N, row, BLOCK_M
        )
        a_offset = a_row * D
        a_square = tl.full((BLOCK_M,), 1.0, ACC)
        if not COSINE:
            a_square = tl.load(square_ptr + a_row, mask=ok, other=0.0)
        a_slab = load_whole_slab(x_ptr, a_offset, 0, D, BLOCK_D, EVEN_D)
        best = tl.full((BLOCK_M,), INFINITE, tl.int32) if PACKED else tl.full((BLOCK_M,), float("inf"), ACC)
        best_first, best_column = tl.zeros((BLOCK_M,), tl.int32), tl.zeros((BLOCK_M,), tl.int32)
        for tile in range(tl.maximum(first_tile, row * BLOCK_M // BLOCK_N), last_tile):
            distance, b, b_ok = distance_tile(
                x_ptr, square_ptr, order_ptr, a_slab, a_offset, a_square, start, stop, low, high, tile, N, D,
                BLOCK_N, BLOCK_D, EVEN_D, ONE_SLAB, COSINE, DOT, ACC,
            )  # fmt: skip
            keys = distance.to(tl.int32, bitcast=True) & -LANES if PACKED else distance
            # A tile on the diagonal holds both roles of its pairs by rows alone.
            counts = b_ok & (tile * BLOCK_N >= (row + 1) * BLOCK_M)
            least, line = least_along(keys, row_lane, 0, PACKED)
            key = key_of(least, row * BLOCK_M, line, PACKED, LANES)
            tl.atomic_min(key_ptr + b, key, mask=counts, sem="relaxed")
            least, column = least_along(keys, lane, 1, PACKED)
            nearer = least < best
            best_first = tl.where(nearer, tile * BLOCK_N, best_first)
            best_column = tl.where(nearer, column, best_column)
            best = tl.where(nearer, least, best)
        tl.atomic_min(
            key_ptr + m, key_of(best, best_first, best_column, PACKED, LANES), mask=ok, sem="relaxed"
        )
