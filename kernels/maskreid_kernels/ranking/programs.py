"""The ranking loss's Triton programs of the forward. chunked.py derives what they compute; here S is never stored.

One anchor (m) is a row of this rank, in sorted order; a place (b) is a candidate. Rows come as they were given, and
a product is multiplied by both rows' inverse norms (by place; None: it is not). `t` is margin - min S_ki by place, -inf
for anchors that are not valid; `shift` the running maximum that keeps exp finite (0 where |S| <= 1 bounds it).

Pairs of an anchor and a negative inside the margin are recorded as marks, one int64 per 16 consecutive places: the
places' number / 16 in the upper half, then 16 bits for the candidate as anchor and 16 bits for the anchor itself.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..triton_tiles import anchor_block, load_slab, similarity_tile

SPAN = tl.constexpr(16)  # positives, or marks, that one step takes
GROUP = tl.constexpr(16)  # places of one mark


@triton.jit
def similarities_of_one(
    x_ptr, inverse_ptr, place, a_offset, b, b_offset, b_ok, D,
    BLOCK_D: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """[SPAN] similarities of the row at `place` with those at `b`, each product taken in ACC."""
    S = tl.zeros((b_offset.shape[0],), ACC)
    for d in range(0, D, BLOCK_D):
        column = d + tl.arange(0, BLOCK_D)
        inside = column < D
        a = tl.load(x_ptr + a_offset + column, mask=inside, other=0.0).to(ACC)
        ok = b_ok[:, None] & inside[None, :]
        x = tl.load(x_ptr + b_offset[:, None] + column[None, :], mask=ok, other=0.0).to(ACC)
        S += tl.sum(a[None, :] * x, 1)
    if inverse_ptr is not None:
        S *= tl.load(inverse_ptr + b, mask=b_ok, other=0.0)
        S *= tl.load(inverse_ptr + place)
    return S


@triton.jit
def positives_program(
    x_ptr, inverse_ptr, order_ptr, anchor_ptr, start_ptr, stop_ptr, least_ptr, least_row_ptr, squares_ptr, D,
    BLOCK_D: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Per anchor: min S_ki over its positives (+inf without one), its row (lowest of equals), sum (S_ki - 1)^2."""
    m = tl.program_id(0)
    place = tl.load(anchor_ptr + m)
    start, stop = tl.load(start_ptr + place), tl.load(stop_ptr + place)
    a_offset = tl.load(order_ptr + place) * D
    least = tl.full((), float("inf"), ACC)
    least_row = tl.full((), -1, tl.int64)
    squares = tl.zeros((), ACC)
    for first in range(start, stop, SPAN):
        b = first + tl.arange(0, SPAN)
        ok = (b < stop) & (b != place)
        row = tl.load(order_ptr + b, mask=ok, other=0)
        S = similarities_of_one(x_ptr, inverse_ptr, place, a_offset, b, row * D, ok, D, BLOCK_D, ACC)
        squares += tl.sum(tl.where(ok, (S - 1) * (S - 1), 0.0), 0)
        S = tl.where(ok, S, float("inf"))
        lowest = tl.min(S, 0)
        # Rows ascend within an identity: the first of equals is the lowest row.
        lowest_row = tl.min(tl.where(ok & (S == lowest), row, 9223372036854775807), 0)
        nearer = lowest < least
        least_row = tl.where(nearer, lowest_row, least_row)
        least = tl.where(nearer, lowest, least)
    tl.store(least_ptr + m, least)
    tl.store(least_row_ptr + m, least_row)
    tl.store(squares_ptr + m, squares)


@triton.jit
def forward_program(
    x_ptr, inverse_ptr, order_ptr, anchor_ptr, start_ptr, stop_ptr, t_ptr, sum_ptr, shift_ptr, active_ptr,
    mark_ptr, mark_count_ptr, M, N, D, tiles_per_chunk, mark_cap,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, EVEN_D: tl.constexpr,
    ONE_SLAB: tl.constexpr, BOUNDED: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Per anchor and chunk: sum of exp(S + t - shift) over violating negatives, their number, and marks of the pairs
    inside the margin in either role, in the anchor's own slots [anchor, chunk, mark_cap], counted beyond the cap.
    """
    block, chunk = tl.program_id(0), tl.program_id(1)
    m, ok, place, a_offset, start, stop, low, high = anchor_block(
        anchor_ptr, order_ptr, start_ptr, stop_ptr, M, D, block, BLOCK_M
    )
    t = tl.load(t_ptr + place, mask=ok, other=float("-inf"))
    if inverse_ptr is not None:
        a_inverse = tl.load(inverse_ptr + place, mask=ok, other=0.0)
    a_slab = load_slab(x_ptr, a_offset, ok, 0, D, BLOCK_D, EVEN_D)
    total, shift = tl.zeros((BLOCK_M,), ACC), tl.zeros((BLOCK_M,), ACC)
    active, recorded = tl.zeros((BLOCK_M,), tl.int32), tl.zeros((BLOCK_M,), tl.int32)
    slots = m.to(tl.int64) * tl.num_programs(1) + chunk
    bit = 1 << (tl.arange(0, BLOCK_N) % GROUP)
    first = chunk * tiles_per_chunk
    for tile in range(first, tl.minimum(first + tiles_per_chunk, tl.cdiv(N, BLOCK_N))):
        b = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        b_ok = b < N
        b_offset = tl.load(order_ptr + b, mask=b_ok, other=0) * D
        t_b = tl.load(t_ptr + b, mask=b_ok, other=float("-inf"))
        S = similarity_tile(
            x_ptr, a_slab, a_offset, ok, b_offset, b_ok, D, BLOCK_D, EVEN_D, ONE_SLAB, DOT, ACC
        )
        if inverse_ptr is not None:
            S = S * tl.load(inverse_ptr + b, mask=b_ok, other=0.0)[None, :] * a_inverse[:, None]
        # A threshold of -inf keeps anchors that are not valid, and what lies beyond M and N, outside the margin.
        if (tile * BLOCK_N < high) & ((tile + 1) * BLOCK_N > low) | ((tile + 1) * BLOCK_N > N):
            negative = ((b[None, :] < start[:, None]) | (b[None, :] >= stop[:, None])) & b_ok[None, :]
            S = tl.where(negative, S, float("-inf"))
        gap = S + t[:, None]
        inside = ~(gap <= 0)  # keeps NaN, which a broken embedding must not hide
        if not BOUNDED:
            top = tl.maximum(shift, tl.max(gap, 1))
            total *= tl.exp(shift - top)
            shift = top
            gap -= shift[:, None]
        total += tl.sum(tl.where(inside, tl.exp(gap), 0.0), 1)
        active += tl.sum(inside.to(tl.int32), 1)
        mark = tl.where(inside, bit[None, :], 0)
        mark += tl.where(S + t_b[None, :] <= 0, 0, (bit << GROUP)[None, :])
        mark = tl.sum(tl.reshape(mark, (BLOCK_M, BLOCK_N // GROUP, GROUP)), 2)  # each bit once: a union
        some = (mark != 0).to(tl.int32)
        of_row = tl.sum(some, 1)
        if tl.max(of_row, 0) > 0:
            number = recorded[:, None] + tl.cumsum(some, 1) - some
            group = tile * (BLOCK_N // GROUP) + tl.arange(0, BLOCK_N // GROUP)
            entry = (group[None, :].to(tl.int64) << 32) | (mark.to(tl.int64) & 0xFFFFFFFF)
            keep = (some > 0) & (number < mark_cap) & ok[:, None]
            tl.store(mark_ptr + slots[:, None] * mark_cap + number, entry, mask=keep)
            recorded += of_row
    out = chunk.to(tl.int64) * M + m
    tl.store(sum_ptr + out, total, mask=ok)
    tl.store(shift_ptr + out, shift, mask=ok)
    tl.store(active_ptr + out, active, mask=ok)
    tl.store(mark_count_ptr + slots, recorded, mask=ok)
