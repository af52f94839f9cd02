"""The batch-hard loss's Triton programs; triton.py says how they fit together.

An anchor (m) is a row of this rank, in sorted order; a place (b) is a candidate. A measure grows with the distance:
sum (a - b)^2, or -a.b for cosine.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..triton_tiles import anchor_block, load_slab, similarity_tile

SPAN = tl.constexpr(16)  # pairs of a row that one step of the gradient takes


@triton.jit
def negatives_program(
    x_ptr, square_ptr, order_ptr, anchor_ptr, start_ptr, stop_ptr, best_ptr, best_place_ptr,
    M, N, D, tiles_per_chunk, chunks,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, EVEN_D: tl.constexpr,
    ONE_SLAB: tl.constexpr, PACKED: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Per chunk and anchor: the least |a|^2 + |b|^2 - 2 a.b over negatives, and its place (-1 without one).

    Of equals the lowest place. PACKED: the column within the tile stands in the low bits of the float, which as an
    integer orders like the distance (it is not below 0, but for rounding): one integer minimum finds both, at the
    price of log2(BLOCK_N) bits of the mantissa.
    """
    # Programs that run side by side share few row blocks and all chunks, so both operands stay in the L2 cache.
    block, chunk = tl.program_id(0) // chunks, tl.program_id(0) % chunks
    m, ok, place, a_offset, start, stop, low, high = anchor_block(
        anchor_ptr, order_ptr, start_ptr, stop_ptr, M, D, block, BLOCK_M
    )
    a_square = tl.load(square_ptr + place, mask=ok, other=0.0)
    a_slab = load_slab(x_ptr, a_offset, ok, 0, D, BLOCK_D, EVEN_D)
    lane = tl.arange(0, BLOCK_N)
    best_place = tl.full((BLOCK_M,), -1, tl.int32)
    best = tl.full((BLOCK_M,), float("inf"), ACC)
    if PACKED:
        best = best.to(tl.int32, bitcast=True)
    first = chunk * tiles_per_chunk
    for tile in range(first, tl.minimum(first + tiles_per_chunk, tl.cdiv(N, BLOCK_N))):
        b = tile * BLOCK_N + lane
        b_ok = b < N
        b_offset = tl.load(order_ptr + b, mask=b_ok, other=0) * D
        b_square = tl.load(square_ptr + b, mask=b_ok, other=0.0)
        S = similarity_tile(
            x_ptr, a_slab, a_offset, ok, b_offset, b_ok, D, BLOCK_D, EVEN_D, ONE_SLAB, DOT, ACC
        )
        distance = (a_square[:, None] + b_square[None, :]) - 2 * S
        if (tile * BLOCK_N < high) & ((tile + 1) * BLOCK_N > low) | ((tile + 1) * BLOCK_N > N):
            negative = ((b[None, :] < start[:, None]) | (b[None, :] >= stop[:, None])) & b_ok[None, :]
            distance = tl.where(negative, distance, float("inf"))
        if PACKED:
            key = (distance.to(tl.int32, bitcast=True) & -BLOCK_N) | lane[None, :]
            least = tl.min(key, 1)
            column = least & (BLOCK_N - 1)
        else:
            least, column = tl.min(distance, 1, return_indices=True)
        nearer = least < best
        best_place = tl.where(nearer, tile * BLOCK_N + column, best_place)
        best = tl.where(nearer, least, best)
    out = chunk.to(tl.int64) * M + m
    tl.store(best_ptr + out, best, mask=ok)
    tl.store(best_place_ptr + out, best_place, mask=ok)


@triton.jit
def measure_of_pairs(
    x_ptr, a_offset, b_offset, ok, D, BLOCK_D: tl.constexpr, COSINE: tl.constexpr, ACC: tl.constexpr
):
    """[rows] measures of rows a and b pair by pair, from differences, in ACC."""
    measure = tl.zeros((a_offset.shape[0],), ACC)
    for d in range(0, D, BLOCK_D):
        a = load_slab(x_ptr, a_offset, ok, d, D, BLOCK_D, False).to(ACC)
        b = load_slab(x_ptr, b_offset, ok, d, D, BLOCK_D, False).to(ACC)
        if COSINE:
            measure -= tl.sum(a * b, 1)
        else:
            measure += tl.sum((a - b) * (a - b), 1)
    return measure


@triton.jit
def picks_program(
    x_ptr, order_ptr, anchor_ptr, start_ptr, stop_ptr, best_ptr, best_place_ptr,
    positive_ptr, negative_ptr, positive_measure_ptr, negative_measure_ptr, M, D, chunks,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, COSINE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Per anchor: rows and measures of its farthest positive (lowest row of equals) and of the nearest negative of
    the chunks (lowest chunk of equals). The anchor itself stands for one it does not have.
    """
    m, ok, place, a_offset, start, stop, _, _ = anchor_block(
        anchor_ptr, order_ptr, start_ptr, stop_ptr, M, D, tl.program_id(0), BLOCK_M
    )
    a_row = tl.load(order_ptr + place, mask=ok, other=0)
    farthest = tl.full((BLOCK_M,), float("-inf"), ACC)
    positive = a_row
    for step in range(tl.max(stop - start, 0)):
        b = start + step  # rows ascend within an identity: the first of equals is the lowest
        b_ok = (b < stop) & (b != place)
        b_row = tl.load(order_ptr + b, mask=b_ok, other=0)
        measure = measure_of_pairs(x_ptr, a_offset, b_row * D, b_ok, D, BLOCK_D, COSINE, ACC)
        farther = b_ok & (measure > farthest)
        positive = tl.where(farther, b_row, positive)
        farthest = tl.where(farther, measure, farthest)
    nearest = tl.load(best_ptr + m, mask=ok, other=0)
    at = tl.load(best_place_ptr + m, mask=ok, other=-1)
    for _ in range(1, chunks):
        best_ptr += M
        best_place_ptr += M
        other = tl.load(best_ptr + m, mask=ok, other=0)
        other_at = tl.load(best_place_ptr + m, mask=ok, other=-1)
        at = tl.where(other < nearest, other_at, at)
        nearest = tl.where(other < nearest, other, nearest)
    negative = tl.load(order_ptr + at, mask=ok & (at >= 0), other=0)
    negative = tl.where(at >= 0, negative, a_row)
    tl.store(positive_ptr + m, positive, mask=ok)
    tl.store(negative_ptr + m, negative, mask=ok)
    tl.store(positive_measure_ptr + m, farthest, mask=ok)
    nearest_measure = measure_of_pairs(x_ptr, a_offset, negative * D, ok, D, BLOCK_D, COSINE, ACC)
    tl.store(negative_measure_ptr + m, nearest_measure, mask=ok)


@triton.jit
def pairs_gradient_program(
    x_ptr, first_ptr, opposite_ptr, weight_ptr, gradient_ptr, own_start, D,
    BLOCK_D: tl.constexpr, COSINE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """BLOCK_D columns of one own row r: sum of w (x_r - x_opposite) over its pairs; for cosine of -w x_opposite.

    A row that is many anchors' pick (a hub) takes them SPAN by SPAN, in order, in this one program.
    """
    r = tl.program_id(0)
    column = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = column < D
    x = tl.load(x_ptr + (r + own_start).to(tl.int64) * D + column, mask=inside, other=0.0).to(ACC)
    first, last = tl.load(first_ptr + r), tl.load(first_ptr + r + 1)
    total = tl.zeros((BLOCK_D,), ACC)
    for start in range(first, last, SPAN):
        pair = start + tl.arange(0, SPAN)
        ok = pair < last
        row = tl.load(opposite_ptr + pair, mask=ok, other=0)
        weight = tl.load(weight_ptr + pair, mask=ok, other=0.0).to(ACC)
        both = ok[:, None] & inside[None, :]
        other = tl.load(x_ptr + row[:, None] * D + column[None, :], mask=both, other=0.0).to(ACC)
        step = -other if COSINE else x[None, :] - other
        total += tl.sum(weight[:, None] * step, 0)
    tl.store(gradient_ptr + r.to(tl.int64) * D + column, total, mask=inside)
