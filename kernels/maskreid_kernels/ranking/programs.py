"""The ranking loss's Triton programs. What they compute is derived in chunked.py; here S is never stored.

One anchor (m) is a row of this rank, in sorted order; a place (b) is a candidate. `t` is margin - min S_ki, `shift`
the running maximum that keeps exp finite (0 where |S| <= 1 bounds it), `log_z` the log of the loss's argument.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..triton_tiles import anchor_block, load_slab, similarity_tile

SPAN = tl.constexpr(16)  # positives, or recorded pairs, that one step takes


@triton.jit
def similarities_of_one(x_ptr, a_offset, b_offset, b_ok, D, BLOCK_D: tl.constexpr, ACC: tl.constexpr):
    """[SPAN] dot products of one row with SPAN others, each product taken in ACC."""
    S = tl.zeros((b_offset.shape[0],), ACC)
    for d in range(0, D, BLOCK_D):
        column = d + tl.arange(0, BLOCK_D)
        inside = column < D
        a = tl.load(x_ptr + a_offset + column, mask=inside, other=0.0).to(ACC)
        ok = b_ok[:, None] & inside[None, :]
        b = tl.load(x_ptr + b_offset[:, None] + column[None, :], mask=ok, other=0.0).to(ACC)
        S += tl.sum(a[None, :] * b, 1)
    return S


@triton.jit
def positives_program(
    x_ptr, order_ptr, anchor_ptr, start_ptr, stop_ptr, least_ptr, least_row_ptr, squares_ptr, D,
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
        S = similarities_of_one(x_ptr, a_offset, row * D, ok, D, BLOCK_D, ACC)
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
    x_ptr, order_ptr, anchor_ptr, start_ptr, stop_ptr, t_ptr, sum_ptr, shift_ptr, active_ptr,
    pair_place_ptr, pair_S_ptr, pair_count_ptr, M, N, D, tiles_per_chunk, pair_cap,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, EVEN_D: tl.constexpr,
    ONE_SLAB: tl.constexpr, BOUNDED: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Per anchor and chunk: sum of exp(S + t - shift) over violating negatives, their number, and the pairs inside
    the margin in either role: place and S, in the anchor's own slots [anchor, chunk, pair_cap], counted beyond the cap.
    """
    block, chunk = tl.program_id(0), tl.program_id(1)
    m, ok, place, a_offset, start, stop, low, high = anchor_block(
        anchor_ptr, order_ptr, start_ptr, stop_ptr, M, D, block, BLOCK_M
    )
    t = tl.load(t_ptr + place, mask=ok, other=float("-inf"))
    a_slab = load_slab(x_ptr, a_offset, ok, 0, D, BLOCK_D, EVEN_D)
    total, shift = tl.zeros((BLOCK_M,), ACC), tl.zeros((BLOCK_M,), ACC)
    active, recorded = tl.zeros((BLOCK_M,), tl.int32), tl.zeros((BLOCK_M,), tl.int32)
    pair_list = m.to(tl.int64) * tl.num_programs(1) + chunk
    block_slot = tl.arange(0, BLOCK_M) * (tl.num_programs(1) * pair_cap)
    first_slot = (block.to(tl.int64) * BLOCK_M * tl.num_programs(1) + chunk) * pair_cap
    block_place_ptr, block_S_ptr = pair_place_ptr + first_slot, pair_S_ptr + first_slot
    first = chunk * tiles_per_chunk
    for tile in range(first, tl.minimum(first + tiles_per_chunk, tl.cdiv(N, BLOCK_N))):
        b = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        b_ok = b < N
        b_offset = tl.load(order_ptr + b, mask=b_ok, other=0) * D
        t_b = tl.load(t_ptr + b, mask=b_ok, other=float("-inf"))
        S = similarity_tile(
            x_ptr, a_slab, a_offset, ok, b_offset, b_ok, D, BLOCK_D, EVEN_D, ONE_SLAB, DOT, ACC
        )
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
        either = (inside | ~(S + t_b[None, :] <= 0)).to(tl.int32)
        of_row = tl.sum(either, 1)
        active += tl.sum(inside.to(tl.int32), 1)
        if tl.max(of_row, 0) > 0:
            number = recorded[:, None] + tl.cumsum(either, 1) - either
            keep = (either > 0) & (number < pair_cap) & ok[:, None]
            at = block_slot[:, None] + number  # int32: a block's slots are few, and 64-bit ones spill
            tl.store(block_place_ptr + at, tl.broadcast_to(b[None, :], (BLOCK_M, BLOCK_N)), mask=keep)
            tl.store(block_S_ptr + at, S, mask=keep)
            recorded += of_row
    out = chunk.to(tl.int64) * M + m
    tl.store(sum_ptr + out, total, mask=ok)
    tl.store(shift_ptr + out, shift, mask=ok)
    tl.store(active_ptr + out, active, mask=ok)
    tl.store(pair_count_ptr + pair_list, recorded, mask=ok)


@triton.jit
def push_weight(S, t, log_z, ACC: tl.constexpr):
    """1[S + t > 0] exp(S + t) / Z: dL/dS of a negative."""
    gap = S + t
    return tl.where(gap <= 0, tl.zeros_like(gap), tl.exp(gap - log_z))


@triton.jit
def positives_gradient_program(
    x_ptr, order_ptr, anchor_ptr, start_ptr, stop_ptr, pull_ptr, least_row_ptr, pushed_ptr, gradient_ptr,
    first_anchor, D, BLOCK_D: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Row m - first_anchor of the gradient: sum over positives b of (G_ab + G_ba) x_b, stored.

    pull, least_row and pushed by place. One identity has one |B+|, so both roles of a pair pull alike.
    """
    m = tl.program_id(0) + first_anchor
    place = tl.load(anchor_ptr + m)
    start, stop = tl.load(start_ptr + place), tl.load(stop_ptr + place)
    a_row = tl.load(order_ptr + place)
    pull_a, least_a = tl.load(pull_ptr + place), tl.load(least_row_ptr + place)
    pushed_a = tl.load(pushed_ptr + place)
    out_ptr = gradient_ptr + tl.program_id(0).to(tl.int64) * D
    for first in range(start, stop, SPAN):
        b = first + tl.arange(0, SPAN)
        ok = (b < stop) & (b != place)
        row = tl.load(order_ptr + b, mask=ok, other=0)
        S = similarities_of_one(x_ptr, a_row * D, row * D, ok, D, BLOCK_D, ACC)
        least_b = tl.load(least_row_ptr + b, mask=ok, other=-1)
        pushed_b = tl.load(pushed_ptr + b, mask=ok, other=0.0)
        G = 2 * pull_a * (S - 1)
        G -= tl.where(row == least_a, pushed_a, tl.zeros_like(pushed_a))
        G -= tl.where(least_b == a_row, pushed_b, tl.zeros_like(pushed_b))
        G = tl.where(ok, G, 0.0)
        for d in range(0, D, BLOCK_D):
            column = d + tl.arange(0, BLOCK_D)
            inside = column < D
            x = tl.load(
                x_ptr + row[:, None] * D + column[None, :], mask=ok[:, None] & inside[None, :], other=0.0
            )
            step = tl.sum(G[:, None] * x.to(ACC), 0)
            if first > start:
                step += tl.load(out_ptr + column, mask=inside, other=0.0)
            tl.store(out_ptr + column, step, mask=inside)


@triton.jit
def pairs_gradient_program(
    x_ptr, order_ptr, anchor_ptr, t_ptr, log_z_ptr, pair_place_ptr, pair_S_ptr, pair_count_ptr, gradient_ptr,
    first_anchor, D, chunks, pair_cap, BLOCK_D: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Adds the recorded pairs' sum of (w_a(b) + w_b(a)) x_b to one anchor's gradient, BLOCK_D columns of it."""
    m, d = tl.program_id(0) + first_anchor, tl.program_id(1) * BLOCK_D
    place = tl.load(anchor_ptr + m)
    t_a, log_z_a = tl.load(t_ptr + place), tl.load(log_z_ptr + place)
    column = d + tl.arange(0, BLOCK_D)
    inside = column < D
    out_ptr = gradient_ptr + tl.program_id(0).to(tl.int64) * D + column
    total = tl.load(out_ptr, mask=inside, other=0.0)
    for chunk in range(chunks):
        list_of_anchor = m.to(tl.int64) * chunks + chunk
        count = tl.load(pair_count_ptr + list_of_anchor)
        slot = list_of_anchor * pair_cap
        for first in range(0, count, SPAN):
            pair = first + tl.arange(0, SPAN)
            ok = pair < count
            b = tl.load(pair_place_ptr + slot + pair, mask=ok, other=0)
            S = tl.load(pair_S_ptr + slot + pair, mask=ok, other=float("-inf"))
            G = push_weight(S, t_a, log_z_a, ACC)
            G += push_weight(S, tl.load(t_ptr + b), tl.load(log_z_ptr + b), ACC)
            row = tl.load(order_ptr + b) * D
            x = tl.load(x_ptr + row[:, None] + column[None, :], mask=ok[:, None] & inside[None, :], other=0.0)
            total += tl.sum(G[:, None] * x.to(ACC), 0)
    tl.store(out_ptr, total, mask=inside)


@triton.jit
def dense_weights_program(
    x_ptr, order_ptr, anchor_ptr, start_ptr, stop_ptr, t_ptr, log_z_ptr, G_ptr,
    first_anchor, anchors, first_place, places, D,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, EVEN_D: tl.constexpr,
    ONE_SLAB: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """G[anchors, places] = w_a(b) + w_b(a) of negatives, 0 of positives: a band that a matrix product then takes."""
    m, ok, place, a_offset, start, stop, _low, _high = anchor_block(
        anchor_ptr + first_anchor, order_ptr, start_ptr, stop_ptr, anchors, D, tl.program_id(0), BLOCK_M
    )
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    b, b_ok = first_place + column, column < places
    b_offset = tl.load(order_ptr + b, mask=b_ok, other=0) * D
    a_slab = load_slab(x_ptr, a_offset, ok, 0, D, BLOCK_D, EVEN_D)
    S = similarity_tile(x_ptr, a_slab, a_offset, ok, b_offset, b_ok, D, BLOCK_D, EVEN_D, ONE_SLAB, DOT, ACC)
    negative = (b[None, :] < start[:, None]) | (b[None, :] >= stop[:, None])
    S = tl.where(negative, S, float("-inf"))
    t_a = tl.load(t_ptr + place, mask=ok, other=float("-inf"))
    t_b = tl.load(t_ptr + b, mask=b_ok, other=float("-inf"))
    log_z_a = tl.load(log_z_ptr + place, mask=ok, other=0.0)
    log_z_b = tl.load(log_z_ptr + b, mask=b_ok, other=0.0)
    G = push_weight(S, t_a[:, None], log_z_a[:, None], ACC) + push_weight(
        S, t_b[None, :], log_z_b[None, :], ACC
    )
    at = m.to(tl.int64)[:, None] * places + column[None, :]
    tl.store(G_ptr + at, G.to(G_ptr.dtype.element_ty), mask=ok[:, None] & b_ok[None, :])
