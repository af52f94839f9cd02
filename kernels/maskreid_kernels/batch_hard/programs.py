"""The batch-hard loss's Triton programs; triton.py says how they fit together.

An anchor (m) is a row of this rank, in sorted order; a place (b) is a candidate. A measure grows with the
distance: sum (a - b)^2, or -a.b for cosine.

The numbers of an anchor, float64, by row: [row of the positive, row of the negative, value, weight of the
positive, weight of the negative, 1 if the anchor is valid]. A pair whose weight is 0 has row -1.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..triton_tiles import anchor_block, joined, load_slab, load_whole_slab, similarity_tile

SPAN = tl.constexpr(16)  # pairs of a row that one step of the gradient takes
NUMBERS = tl.constexpr(6)
INFINITE = tl.constexpr(0x7F800000)  # the bits of float32's infinity
NO_KEY = tl.constexpr(2**63 - 1)


@triton.jit
def distance_tile(
    x_ptr, square_ptr, order_ptr, a_slab, a_offset, a_square, start, stop, low, high, tile, N, D,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, EVEN_D: tl.constexpr, ONE_SLAB: tl.constexpr,
    COSINE: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """|a|^2 + |b|^2 - 2 a.b of a block of anchors and a tile of places, infinite where b is no negative of a;
    the places, and which there are.
    """
    b = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    b_ok = b < N
    b_row = tl.load(order_ptr + b, mask=b_ok, other=0)
    b_square = tl.full((BLOCK_N,), 1.0, ACC)
    if not COSINE:
        b_square = tl.load(square_ptr + b_row, mask=b_ok, other=0.0)
    S = similarity_tile(x_ptr, a_slab, a_offset, b_row * D, D, BLOCK_D, EVEN_D, ONE_SLAB, DOT, ACC)
    distance = (a_square[:, None] + b_square[None, :]) - 2 * S
    if (tile * BLOCK_N < high) & ((tile + 1) * BLOCK_N > low) | ((tile + 1) * BLOCK_N > N):
        negative = ((b[None, :] < start[:, None]) | (b[None, :] >= stop[:, None])) & b_ok[None, :]
        distance = tl.where(negative, distance, float("inf"))
    return distance, b, b_ok


@triton.jit(do_not_specialize=["M", "N", "tiles_per_chunk", "chunks"])
def negatives_program(
    x_ptr, square_ptr, order_ptr, anchor_ptr, start_ptr, stop_ptr, best_ptr, best_place_ptr,
    M, N, D, tiles_per_chunk, chunks,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, EVEN_D: tl.constexpr,
    ONE_SLAB: tl.constexpr, COSINE: tl.constexpr, PACKED: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Per chunk and anchor: the least |a|^2 + |b|^2 - 2 a.b over negatives, and its place (-1 without one).

    square: |b|^2 by row; of cosine 1. Of equals the lowest place. PACKED: the column within the tile stands
    in the low bits of the float, which as an integer orders like the distance (it is not below 0, but for
    rounding): one integer minimum finds both, at the price of log2(BLOCK_N) bits of the mantissa.
    """
    block, chunk = tl.program_id(0) // chunks, tl.program_id(0) % chunks
    m, ok, _, a_row, start, stop, low, high = anchor_block(
        anchor_ptr, order_ptr, start_ptr, stop_ptr, M, block, BLOCK_M
    )
    a_offset = a_row * D
    a_square = tl.full((BLOCK_M,), 1.0, ACC)
    if not COSINE:
        a_square = tl.load(square_ptr + a_row, mask=ok, other=0.0)
    a_slab = load_whole_slab(x_ptr, a_offset, 0, D, BLOCK_D, EVEN_D)
    lane = tl.arange(0, BLOCK_N)
    best_place = tl.full((BLOCK_M,), -1, tl.int32)
    best = tl.full((BLOCK_M,), float("inf"), ACC)
    if PACKED:
        best = best.to(tl.int32, bitcast=True)
    first = chunk * tiles_per_chunk
    for tile in range(first, tl.minimum(first + tiles_per_chunk, tl.cdiv(N, BLOCK_N))):
        distance, _b, _b_ok = distance_tile(
            x_ptr, square_ptr, order_ptr, a_slab, a_offset, a_square, start, stop, low, high, tile, N, D,
            BLOCK_N, BLOCK_D, EVEN_D, ONE_SLAB, COSINE, DOT, ACC,
        )  # fmt: skip
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
def distance_of(measure, KIND: tl.constexpr):
    """The distance of a measure, and w with d distance / d a = w (a - b) (0 at distance 0); of cosine w = 1
    before -b."""
    measure = measure.to(tl.float64)
    one = tl.full(measure.shape, 1.0, tl.float64)
    if KIND == "cosine":
        return 1 + measure, one
    elif KIND == "squared_euclidean":
        return measure, 2 * one
    else:
        distance = tl.sqrt(measure)
        return distance, tl.where(distance > 0, 1 / tl.where(distance > 0, distance, 1.0), 0.0)


@triton.jit(do_not_specialize=["M", "N", "chunks", "own_start"])
def picks_program(
    x_ptr, square_ptr, order_ptr, anchor_ptr, start_ptr, stop_ptr, best_ptr, best_place_ptr, numbers_ptr,
    M, N, D, chunks, own_start, margin_high, margin_low,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, KIND: tl.constexpr, SOFT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Merge the chunks, find the farthest positive, and write each anchor's numbers at its row among the
    rank's own."""
    m, ok, place, a_row, start, stop, _low, _high = anchor_block(
        anchor_ptr, order_ptr, start_ptr, stop_ptr, M, tl.program_id(0), BLOCK_M
    )
    COSINE: tl.constexpr = KIND == "cosine"
    a_offset = a_row * D
    farthest = tl.full((BLOCK_M,), float("-inf"), ACC)
    positive = a_row
    for step in range(tl.max(stop - start, 0)):
        b = start + step
        inside = ok & (b < stop) & (b != place)
        row = tl.load(order_ptr + b, mask=inside, other=0)
        measure = measure_of_pairs(x_ptr, a_offset, row * D, inside, D, BLOCK_D, COSINE, ACC)
        farther = inside & (measure > farthest)  # the first of equals: the lowest row
        positive = tl.where(farther, row, positive)
        farthest = tl.where(farther, measure, farthest)
    if best_place_ptr is None:  # keys: the distance's bits, then the place; infinite without a negative
        key = tl.load(best_ptr + m, mask=ok, other=NO_KEY)
        at = tl.where((key >> 32) < INFINITE, key.to(tl.int32), -1)
    else:
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
    nearest_measure = measure_of_pairs(x_ptr, a_offset, negative * D, ok, D, BLOCK_D, COSINE, ACC)

    count = stop - start
    valid = (count > 1) & (count < N)
    far, toward = distance_of(tl.where(valid, farthest, 0.0), KIND)
    near, away = distance_of(nearest_measure, KIND)
    gap = far - near
    if SOFT:  # log(1 + exp(gap)) and its derivative, without overflow
        e = tl.exp(-tl.abs(gap))
        value = tl.where(gap > 0, gap, 0.0) + tl.log(1 + e)
        slope = tl.where(gap > 0, 1 / (1 + e), e / (1 + e))
    else:
        gap += joined(margin_high, margin_low, tl.float64)
        value = tl.where(gap > 0, gap, 0.0)
        slope = tl.where(gap > 0, 1.0, 0.0).to(tl.float64)
    slope = tl.where(valid, slope, 0.0)
    # A minimum over integers hides a row that is not finite: its own anchor's value shows it, valid or not.
    value = tl.where(valid, value, 0.0) + 0 * tl.load(square_ptr + a_row, mask=ok, other=0.0).to(tl.float64)
    toward, away = slope * toward, -slope * away
    out = numbers_ptr + (a_row - own_start) * NUMBERS
    tl.store(out, tl.where(toward == 0, -1, positive).to(tl.float64), mask=ok)
    tl.store(out + 1, tl.where(away == 0, -1, negative).to(tl.float64), mask=ok)
    tl.store(out + 2, value, mask=ok)
    tl.store(out + 3, toward, mask=ok)
    tl.store(out + 4, away, mask=ok)
    tl.store(out + 5, valid.to(tl.float64), mask=ok)


@triton.jit
def step_of_pair(x, other, weight, COSINE: tl.constexpr):
    """weight times the derivative of a pair's distance with respect to x, [pairs, columns] to be summed over
    the pairs."""
    return weight[:, None] * (-other if COSINE else x[None, :] - other)


@triton.jit(do_not_specialize=["own_start", "world_size"])
def pairs_gradient_program(
    x_ptr, numbers_ptr, sums_ptr, of_loss_ptr, first_ptr, pair_ptr, gradient_ptr, own_start, world_size, D,
    BLOCK_D: tl.constexpr, COSINE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """BLOCK_D columns of one own row r: its two pairs as an anchor, then those of the anchors that picked it.

    first, pair: where the pairs that picked an own row lie in the sort by picked row, and which they are: 2
    anchor + (0 positive, 1 negative). A row that is many anchors' pick (a hub) takes them SPAN by SPAN, in
    order, in this one program.
    """
    r = tl.program_id(0)
    column = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = column < D
    row = (r + own_start).to(tl.int64)
    x = tl.load(x_ptr + row * D + column, mask=inside, other=0.0).to(ACC)
    kind = tl.arange(0, 2)
    picked = tl.load(numbers_ptr + row * NUMBERS + kind).to(tl.int64)
    own_weight = tl.load(numbers_ptr + row * NUMBERS + 3 + kind).to(ACC)
    has_pair = (picked >= 0)[:, None] & inside[None, :]
    own_other = tl.load(x_ptr + picked[:, None] * D + column[None, :], mask=has_pair, other=0.0).to(ACC)
    total = tl.sum(tl.where(has_pair, step_of_pair(x, own_other, own_weight, COSINE), 0.0), 0)
    last = tl.load(first_ptr + r + 1)
    for start in range(tl.load(first_ptr + r), last, SPAN):
        at = start + tl.arange(0, SPAN)
        ok = at < last
        pair = tl.load(pair_ptr + at, mask=ok, other=0)
        anchor = pair // 2
        weight = tl.load(numbers_ptr + anchor * NUMBERS + 3 + pair % 2, mask=ok, other=0.0).to(ACC)
        both = ok[:, None] & inside[None, :]
        other = tl.load(x_ptr + anchor[:, None] * D + column[None, :], mask=both, other=0.0).to(ACC)
        total += tl.sum(step_of_pair(x, other, weight, COSINE), 0)
    # The mean's divisor, times W (see maskreid_kernels.ranks); a loss that is not finite makes every row's
    # gradient so.
    sums = sums_ptr
    scale = tl.load(of_loss_ptr).to(tl.float64) * world_size / tl.maximum(tl.load(sums + 5), 1.0)
    scale += 0 * tl.load(sums + 2)
    out = gradient_ptr + r.to(tl.int64) * D + column
    tl.store(out, (total * scale.to(ACC)).to(gradient_ptr.dtype.element_ty), mask=inside)
