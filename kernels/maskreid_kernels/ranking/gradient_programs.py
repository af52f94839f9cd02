"""The ranking loss's Triton programs of the backward; names and marks are those of programs.py.

`log_z` is the log of the loss's argument, by place. A gradient row belongs to one program, which adds to it in a fixed
order; it is that of the unit row where rows are normalised.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..triton_tiles import anchor_block, load_slab, similarity_tile
from .programs import GROUP, SPAN, similarities_of_one


@triton.jit
def add_rows(
    out_ptr, x_ptr, inverse_ptr, G, b, b_offset, b_ok, D, BLOCK_D: tl.constexpr, ACC: tl.constexpr
):  # fmt: skip
    """out += sum_b G_b x_b over [SPAN] rows."""
    if inverse_ptr is not None:
        G *= tl.load(inverse_ptr + b, mask=b_ok, other=0.0)
    for d in range(0, D, BLOCK_D):
        column = d + tl.arange(0, BLOCK_D)
        inside = column < D
        ok = b_ok[:, None] & inside[None, :]
        x = tl.load(x_ptr + b_offset[:, None] + column[None, :], mask=ok, other=0.0).to(ACC)
        total = tl.load(out_ptr + column, mask=inside, other=0.0) + tl.sum(G[:, None] * x, 0)
        tl.store(out_ptr + column, total, mask=inside)


@triton.jit
def positives_gradient_program(
    x_ptr, inverse_ptr, order_ptr, anchor_ptr, start_ptr, stop_ptr, pull_ptr, least_row_ptr, pushed_ptr,
    gradient_ptr, D, BLOCK_D: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Adds sum over positives b of (G_ab + G_ba) x_b to an anchor's row; pull, least_row and pushed by place.

    One identity has one |B+|, so both roles of a pair pull alike.
    """
    m = tl.program_id(0)
    place = tl.load(anchor_ptr + m)
    start, stop = tl.load(start_ptr + place), tl.load(stop_ptr + place)
    a_row = tl.load(order_ptr + place)
    pull_a, least_a = tl.load(pull_ptr + place), tl.load(least_row_ptr + place)
    pushed_a = tl.load(pushed_ptr + place)
    out_ptr = gradient_ptr + m.to(tl.int64) * D
    for first in range(start, stop, SPAN):
        b = first + tl.arange(0, SPAN)
        ok = (b < stop) & (b != place)
        row = tl.load(order_ptr + b, mask=ok, other=0)
        S = similarities_of_one(x_ptr, inverse_ptr, place, a_row * D, b, row * D, ok, D, BLOCK_D, ACC)
        least_b = tl.load(least_row_ptr + b, mask=ok, other=-1)
        pushed_b = tl.load(pushed_ptr + b, mask=ok, other=0.0)
        G = 2 * pull_a * (S - 1)
        G -= tl.where(row == least_a, pushed_a, tl.zeros_like(pushed_a))
        G -= tl.where(least_b == a_row, pushed_b, tl.zeros_like(pushed_b))
        G = tl.where(ok, G, 0.0)
        add_rows(out_ptr, x_ptr, inverse_ptr, G, b, row * D, ok, D, BLOCK_D, ACC)


@triton.jit
def marks_gradient_program(
    x_ptr, inverse_ptr, order_ptr, anchor_ptr, listed_ptr, t_ptr, log_z_ptr, mark_ptr, mark_count_ptr,
    gradient_ptr, D, chunks, mark_cap, BLOCK_D: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Adds sum over the marked pairs of (w_a(b) + w_b(a)) x_b to an anchor's row; listed: which anchors (m).

    The marks say which pairs count, as the forward decided; their similarities are computed again in ACC.
    """
    m = tl.load(listed_ptr + tl.program_id(0))
    place = tl.load(anchor_ptr + m)
    a_offset = tl.load(order_ptr + place) * D
    level_a = tl.load(t_ptr + place) - tl.load(log_z_ptr + place)
    out_ptr = gradient_ptr + tl.program_id(0).to(tl.int64) * D
    for chunk in range(chunks):
        slots = m * chunks + chunk
        count = tl.load(mark_count_ptr + slots)
        for first in range(0, count, SPAN):
            at = first + tl.arange(0, SPAN)
            entry = tl.load(mark_ptr + slots * mark_cap + at, mask=at < count, other=0)
            place_0 = (entry >> 32).to(tl.int32) * GROUP
            of_anchor, of_candidate = (entry & 0xFFFF).to(tl.int32), ((entry >> GROUP) & 0xFFFF).to(tl.int32)
            left = of_anchor | of_candidate
            while tl.max(left, 0) > 0:  # the lowest pair of each of the SPAN marks at a time
                bit = left & -left
                ok = bit != 0
                # A power of two's exponent, read off its float32.
                index = (bit.to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 127
                b = tl.where(ok, place_0 + index, 0)
                b_offset = tl.load(order_ptr + b, mask=ok, other=0) * D
                S = similarities_of_one(x_ptr, inverse_ptr, place, a_offset, b, b_offset, ok, D, BLOCK_D, ACC)
                level_b = tl.load(t_ptr + b, mask=ok, other=0.0) - tl.load(log_z_ptr + b, mask=ok, other=0.0)
                G = tl.where((of_anchor & bit) != 0, tl.exp(S + level_a), 0.0)
                G += tl.where((of_candidate & bit) != 0, tl.exp(S + level_b), 0.0)
                add_rows(out_ptr, x_ptr, inverse_ptr, G, b, b_offset, ok, D, BLOCK_D, ACC)
                left -= bit


@triton.jit
def push_weight(S, t, log_z):
    """1[S + t > 0] exp(S + t) / Z: dL/dS of a negative."""
    gap = S + t
    return tl.where(gap <= 0, 0.0, tl.exp(gap - log_z))


@triton.jit
def dense_weights_program(
    x_ptr, inverse_ptr, order_ptr, anchor_ptr, start_ptr, stop_ptr, t_ptr, log_z_ptr, G_ptr,
    anchors, first_place, places, D,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, EVEN_D: tl.constexpr,
    ONE_SLAB: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """G[anchors, places] = w_a(b) + w_b(a) of negatives, 0 of positives, times the inverse norm of b: a band of
    weights that a matrix product with the rows then takes.
    """
    m, ok, place, a_offset, start, stop, _low, _high = anchor_block(
        anchor_ptr, order_ptr, start_ptr, stop_ptr, anchors, D, tl.program_id(0), BLOCK_M
    )
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    b, b_ok = first_place + column, column < places
    b_offset = tl.load(order_ptr + b, mask=b_ok, other=0) * D
    a_slab = load_slab(x_ptr, a_offset, ok, 0, D, BLOCK_D, EVEN_D)
    S = similarity_tile(x_ptr, a_slab, a_offset, ok, b_offset, b_ok, D, BLOCK_D, EVEN_D, ONE_SLAB, DOT, ACC)
    if inverse_ptr is not None:
        b_inverse = tl.load(inverse_ptr + b, mask=b_ok, other=0.0)
        S = S * b_inverse[None, :] * tl.load(inverse_ptr + place, mask=ok, other=0.0)[:, None]
    negative = (b[None, :] < start[:, None]) | (b[None, :] >= stop[:, None])
    S = tl.where(negative, S, float("-inf"))
    t_a = tl.load(t_ptr + place, mask=ok, other=float("-inf"))
    t_b = tl.load(t_ptr + b, mask=b_ok, other=float("-inf"))
    log_z_a = tl.load(log_z_ptr + place, mask=ok, other=0.0)
    log_z_b = tl.load(log_z_ptr + b, mask=b_ok, other=0.0)
    G = push_weight(S, t_a[:, None], log_z_a[:, None]) + push_weight(S, t_b[None, :], log_z_b[None, :])
    if inverse_ptr is not None:
        G *= b_inverse[None, :]
    at = m.to(tl.int64)[:, None] * places + column[None, :]
    tl.store(G_ptr + at, G.to(G_ptr.dtype.element_ty), mask=ok[:, None] & b_ok[None, :])
