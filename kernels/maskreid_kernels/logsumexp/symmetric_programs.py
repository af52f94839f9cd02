"""The log-sum-exp family's pass over the upper triangle of S; names are those of programs.py, the walk is
that of symmetric_tiles.py.

Sums of floats depend on their order, so what block s says of an anchor in block k comes from one program,
that of the pair (min(s, k), max(s, k)), in a fixed order: partial results are those of the rectangular pass,
[blocks, N] with a block where it has a chunk. A column's partial result lies in memory from one row of tiles
to the next, where its program reads it again behind a barrier. On the diagonal a block's anchors get columns
first and rows after them, in the same place.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..symmetric_tiles import tiles_of_pair
from ..triton_tiles import anchor_block, joined, load_whole_slab, similarity_tile
from .programs import LOG2_E, LOWEST, exponent_tile


@triton.jit
def merged(top, total, other_top, other_total):
    """(top, sum) of two parts."""
    highest = tl.maximum(top, other_top)
    return highest, total * tl.exp2(top - highest) + other_total * tl.exp2(other_top - highest)


@triton.jit(do_not_specialize=["N", "side", "blocks"])
def symmetric_negatives_program(
    x_ptr, anchor_ptr, order_ptr, start_ptr, stop_ptr, top_ptr, sum_ptr, N, D, side, blocks,
    scale_high, scale_low, margin_high, margin_low,
    CIRCLE: tl.constexpr, BOUNDED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, EVEN_D: tl.constexpr, ONE_SLAB: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """top, sum [blocks, N], as `negatives_program` per chunk. BOUNDED: no exponential overflows, top is 0 and
    not stored.
    """
    row_block, column_block, first_row, last_row, first_tile, last_tile = tiles_of_pair(
        tl.program_id(0), N, side, blocks, BLOCK_M, BLOCK_N
    )
    of_rows, of_columns = column_block.to(tl.int64) * N, row_block.to(tl.int64) * N
    scale, margin = joined(scale_high, scale_low, ACC) * LOG2_E, joined(margin_high, margin_low, ACC)
    for row in range(first_row, last_row):
        m, ok, _, a_row, start, stop, low, high = anchor_block(
            anchor_ptr, order_ptr, start_ptr, stop_ptr, N, row, BLOCK_M
        )
        a_offset = a_row * D
        a_slab = load_whole_slab(x_ptr, a_offset, 0, D, BLOCK_D, EVEN_D)
        diagonal = row * BLOCK_M // BLOCK_N
        begun = ok & (row_block == column_block) & (diagonal > first_tile)
        total = tl.load(sum_ptr + of_rows + m, mask=begun, other=0.0)
        if not BOUNDED:
            top = tl.load(top_ptr + of_rows + m, mask=begun, other=LOWEST)
        for tile in range(tl.maximum(first_tile, diagonal), last_tile):
            n0 = tile * BLOCK_N
            n = n0 + tl.arange(0, BLOCK_N)
            n_ok = n < N
            b_offset = tl.load(order_ptr + n, mask=n_ok, other=0) * D
            S = similarity_tile(x_ptr, a_slab, a_offset, b_offset, D, BLOCK_D, EVEN_D, ONE_SLAB, DOT, ACC)
            f = exponent_tile(S, scale, margin, CIRCLE)
            if ((n0 < high) & (n0 + BLOCK_N > low)) | (n0 + BLOCK_N > N):
                own = (n[None, :] >= start[:, None]) & (n[None, :] < stop[:, None])
                f = tl.where(own | (n >= N)[None, :], float("-inf"), f)
            # A tile on the diagonal holds both roles of its pairs by rows alone.
            counts = n_ok & (n0 >= (row + 1) * BLOCK_M)
            known = counts & (row > first_row)
            b_total = tl.load(sum_ptr + of_columns + n, mask=known, other=0.0)
            if BOUNDED:
                power = tl.exp2(f)
                total += tl.sum(power, 1)
                tl.store(sum_ptr + of_columns + n, b_total + tl.sum(power, 0), mask=counts)
            else:
                higher = tl.maximum(top, tl.max(f, 1))
                total = total * tl.exp2(top - higher) + tl.sum(tl.exp2(f - higher[:, None]), 1)
                top = higher
                n_top = tl.maximum(tl.max(f, 0), LOWEST)
                n_total = tl.sum(tl.exp2(f - n_top[None, :]), 0)
                b_top = tl.load(top_ptr + of_columns + n, mask=known, other=LOWEST)
                b_top, b_total = merged(b_top, b_total, n_top, n_total)
                tl.store(top_ptr + of_columns + n, b_top, mask=counts)
                tl.store(sum_ptr + of_columns + n, b_total, mask=counts)
        tl.store(sum_ptr + of_rows + m, total, mask=ok)
        if not BOUNDED:
            tl.store(top_ptr + of_rows + m, top, mask=ok)
        tl.debug_barrier()  # the next row of tiles reads what other threads stored in this one
