"""The ranking loss's Triton programs of the backward; names, marks and numbers are those of programs.py.

A gradient row belongs to one program, which keeps it in registers, adds to it in a fixed order and writes it
once: no row is read back from memory, and each candidate's row is read once, for its similarity and for its
share.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..triton_tiles import anchor_block, joined, load_whole_slab, similarity_tile
from .programs import GROUP, NUMBERS, PLACES, load_row, load_whole_rows, similarities_of_one


@triton.jit
def weighted_sum(x, G, inverse_ptr, row, ok):
    """[BLOCK_D] sum over the rows x of G times the (unit) row."""
    if inverse_ptr is not None:
        G *= tl.load(inverse_ptr + row, mask=ok, other=0.0)
    return tl.sum(G[:, None] * x, 0)


@triton.jit
def number(numbers_ptr, row, which: tl.constexpr, ok, other: tl.constexpr, ACC: tl.constexpr):
    """One of the numbers of the anchors at `row`, in ACC; `other` where not ok."""
    return tl.load(numbers_ptr + row * NUMBERS + which, mask=ok, other=other).to(ACC)


@triton.jit
def sum_over_positives(
    a, x_ptr, inverse_ptr, order_ptr, numbers_ptr, place, a_row, start, stop, pull, N, D,
    BLOCK_D: tl.constexpr, SPAN: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """[BLOCK_D] sum over positives b of (G_ab + G_ba) x_b. One identity has one |B+|, so both roles pull
    alike."""
    total = tl.zeros((BLOCK_D,), ACC)
    count = stop - start
    pull_a = tl.where((count > 1) & (count < N), pull / tl.maximum(count - 1, 1).to(ACC), 0.0)
    least_a = tl.load(numbers_ptr + a_row * NUMBERS + 2).to(tl.int64)
    pushed_a = tl.load(numbers_ptr + a_row * NUMBERS + 1).to(ACC)
    for first in range(start, stop, SPAN):
        b = first + tl.arange(0, SPAN)
        ok = (b < stop) & (b != place)
        row = tl.load(order_ptr + b, mask=ok, other=0)
        x = load_whole_rows(x_ptr, row, ok, D, BLOCK_D, ACC)
        S = similarities_of_one(a, x, inverse_ptr, a_row, row, ok)
        least_b = number(numbers_ptr, row, 2, ok, -1.0, tl.float64).to(tl.int64)
        pushed_b = number(numbers_ptr, row, 1, ok, 0.0, ACC)
        G = 2 * pull_a * (S - 1)
        G -= tl.where(row == least_a, pushed_a, tl.zeros_like(pushed_a))
        G -= tl.where(least_b == a_row, pushed_b, tl.zeros_like(pushed_b))
        total += weighted_sum(x, tl.where(ok, G, 0.0), inverse_ptr, row, ok)
    return total


@triton.jit
def sum_over_marks(
    a, x_ptr, inverse_ptr, order_ptr, t_ptr, numbers_ptr, mark_ptr, mark_count_ptr, m, M, a_row, D, chunks,
    mark_cap, BLOCK_D: tl.constexpr, SPAN: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """[BLOCK_D] sum over the marked pairs of (w_a(b) + w_b(a)) x_b.

    The marks say which pairs count, as the forward decided; their similarities are computed again in ACC.
    """
    total = tl.zeros((BLOCK_D,), ACC)
    level_a = tl.load(t_ptr + a_row) - tl.load(numbers_ptr + a_row * NUMBERS).to(ACC)
    entry_ptr = mark_ptr + m * chunks * mark_cap
    for _ in range(chunks):
        count = tl.load(mark_count_ptr + m)
        for first in range(0, count, SPAN):
            at = first + tl.arange(0, SPAN)
            entry = tl.load(entry_ptr + at, mask=at < count, other=0)
            place_0 = (entry >> 32).to(tl.int32) * GROUP
            of_anchor, of_candidate = (entry & 0xFFFF).to(tl.int32), ((entry >> GROUP) & 0xFFFF).to(tl.int32)
            left = of_anchor | of_candidate
            while tl.max(left, 0) > 0:  # the lowest pair of each of the SPAN marks at a time
                bit = left & -left
                ok = bit != 0
                # A power of two's exponent, read off its float32.
                index = (bit.to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 127
                row = tl.load(order_ptr + tl.where(ok, place_0 + index, 0), mask=ok, other=0)
                x = load_whole_rows(x_ptr, row, ok, D, BLOCK_D, ACC)
                S = similarities_of_one(a, x, inverse_ptr, a_row, row, ok)
                level_b = tl.load(t_ptr + row, mask=ok, other=0.0) - number(numbers_ptr, row, 0, ok, 0.0, ACC)
                G = tl.where((of_anchor & bit) != 0, tl.exp(S + level_a), 0.0)
                G += tl.where((of_candidate & bit) != 0, tl.exp(S + level_b), 0.0)
                total += weighted_sum(x, G, inverse_ptr, row, ok)
                left -= bit
        entry_ptr += mark_cap
        mark_count_ptr += M
    return total


@triton.jit
def sum_over_pairs(
    a, x_ptr, inverse_ptr, order_ptr, t_ptr, numbers_ptr, pair_ptr, first, last, a_row, D,
    BLOCK_D: tl.constexpr, SPAN: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """`sum_over_marks` of the anchor's pairs, which lie side by side from `first` on
    (symmetric_programs.py)."""
    total = tl.zeros((BLOCK_D,), ACC)
    level_a = tl.load(t_ptr + a_row) - tl.load(numbers_ptr + a_row * NUMBERS).to(ACC)
    for begin in range(first, last, SPAN):
        at = begin + tl.arange(0, SPAN)
        ok = at < last
        key = tl.load(pair_ptr + at, mask=ok, other=0)
        row = tl.load(order_ptr + ((key >> 2) & PLACES), mask=ok, other=0)
        x = load_whole_rows(x_ptr, row, ok, D, BLOCK_D, ACC)
        S = similarities_of_one(a, x, inverse_ptr, a_row, row, ok)
        level_b = tl.load(t_ptr + row, mask=ok, other=0.0) - number(numbers_ptr, row, 0, ok, 0.0, ACC)
        G = tl.where((key & 1) != 0, tl.exp(S + level_a), 0.0)
        G += tl.where((key & 2) != 0, tl.exp(S + level_b), 0.0)
        total += weighted_sum(x, G, inverse_ptr, row, ok)
    return total


@triton.jit(do_not_specialize=["M", "N", "chunks", "mark_cap", "own_start", "world_size"])
def gradient_program(
    x_ptr, inverse_ptr, order_ptr, anchor_ptr, listed_ptr, start_ptr, stop_ptr, t_ptr, numbers_ptr, sums_ptr,
    of_loss_ptr, mark_ptr, mark_count_ptr, first_ptr, pushed_ptr, gradient_ptr, M, N, D, chunks, mark_cap,
    own_start, world_size, pull_high, pull_low,
    BLOCK_D: tl.constexpr, SPAN: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """One anchor's whole row of the gradient, at its row among the rank's own.

    listed: which anchors (None: all, in order). pushed: what the negatives add, one row a program, where
    dense weights made it (None: from the marks); of rows that are normalised here times their inverse norm,
    see `dense_weights_program`. first: where the anchors' pairs lie among sorted ones, which `mark` then is
    (None: marks in slots).
    """
    m = tl.program_id(0).to(tl.int64)
    if listed_ptr is not None:
        m = tl.load(listed_ptr + m)
    place = tl.load(anchor_ptr + m)
    start, stop = tl.load(start_ptr + place), tl.load(stop_ptr + place)
    a_row = tl.load(order_ptr + place)
    a = load_row(x_ptr, a_row, D, BLOCK_D, ACC)
    pull = joined(pull_high, pull_low, ACC)
    total = sum_over_positives(
        a,
        x_ptr,
        inverse_ptr,
        order_ptr,
        numbers_ptr,
        place,
        a_row,
        start,
        stop,
        pull,
        N,
        D,
        BLOCK_D,
        SPAN,
        ACC,
    )
    column = tl.arange(0, BLOCK_D)
    if pushed_ptr is not None:
        pushed = load_row(pushed_ptr, tl.program_id(0).to(tl.int64), D, BLOCK_D, ACC)
        if inverse_ptr is not None:
            by = tl.load(inverse_ptr + a_row)
            pushed *= tl.where(by > 0, 1 / tl.where(by > 0, by, 1.0), 0.0)
        total += pushed
    elif first_ptr is not None:
        total += sum_over_pairs(
            a, x_ptr, inverse_ptr, order_ptr, t_ptr, numbers_ptr, mark_ptr, tl.load(first_ptr + m),
            tl.load(first_ptr + m + 1), a_row, D, BLOCK_D, SPAN, ACC,
        )  # fmt: skip
    else:
        total += sum_over_marks(
            a, x_ptr, inverse_ptr, order_ptr, t_ptr, numbers_ptr, mark_ptr, mark_count_ptr, m, M, a_row, D,
            chunks, mark_cap, BLOCK_D, SPAN, ACC,
        )  # fmt: skip
    if inverse_ptr is not None:  # from the unit row's gradient to the row's
        inverse = tl.load(inverse_ptr + a_row)
        unit = a * inverse
        total = (total - unit * tl.sum(unit * total, 0)) * inverse
    # The mean's divisor, times W (see maskreid_kernels.ranks).
    scale = tl.load(of_loss_ptr).to(tl.float64) * world_size / tl.maximum(tl.load(sums_ptr + 6), 1.0)
    out = gradient_ptr + (a_row - own_start) * D + column
    tl.store(out, (total * scale.to(ACC)).to(gradient_ptr.dtype.element_ty), mask=column < D)


@triton.jit
def push_weight(S, t, log_z):
    """1[S + t > 0] exp(S + t) / Z: dL/dS of a negative."""
    gap = S + t
    return tl.where(gap <= 0, 0.0, tl.exp(gap - log_z))


@triton.jit(do_not_specialize=["M", "first_place", "places"])
def dense_weights_program(
    x_ptr, inverse_ptr, order_ptr, anchor_ptr, start_ptr, stop_ptr, t_ptr, numbers_ptr, G_ptr,
    M, first_place, places, D,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, EVEN_D: tl.constexpr,
    ONE_SLAB: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """G[M anchors, places] = w_a(b) + w_b(a) of negatives, 0 of positives, times both inverse norms: a band
    of weights that a matrix product with the rows then takes, for the anchors or, transposed, for the
    places.
    """
    tiles = tl.cdiv(places, BLOCK_N)
    m, ok, _, a_row, start, stop, _low, _high = anchor_block(
        anchor_ptr, order_ptr, start_ptr, stop_ptr, M, tl.program_id(0) // tiles, BLOCK_M
    )
    a_offset = a_row * D
    column = tl.program_id(0) % tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    b, b_ok = first_place + column, column < places
    b_row = tl.load(order_ptr + b, mask=b_ok, other=0)
    a_slab = load_whole_slab(x_ptr, a_offset, 0, D, BLOCK_D, EVEN_D)
    S = similarity_tile(x_ptr, a_slab, a_offset, b_row * D, D, BLOCK_D, EVEN_D, ONE_SLAB, DOT, ACC)
    if inverse_ptr is not None:
        a_inverse = tl.load(inverse_ptr + a_row, mask=ok, other=0.0)
        b_inverse = tl.load(inverse_ptr + b_row, mask=b_ok, other=0.0)
        S = S * b_inverse[None, :] * a_inverse[:, None]
    negative = (b[None, :] < start[:, None]) | (b[None, :] >= stop[:, None])
    S = tl.where(negative, S, float("-inf"))
    t_a = tl.load(t_ptr + a_row, mask=ok, other=float("-inf"))
    t_b = tl.load(t_ptr + b_row, mask=b_ok, other=float("-inf"))
    log_z_a = number(numbers_ptr, a_row, 0, ok, 0.0, ACC)
    log_z_b = number(numbers_ptr, b_row, 0, b_ok, 0.0, ACC)
    G = push_weight(S, t_a[:, None], log_z_a[:, None]) + push_weight(S, t_b[None, :], log_z_b[None, :])
    if inverse_ptr is not None:
        G = G * b_inverse[None, :] * a_inverse[:, None]
    at = m.to(tl.int64)[:, None] * places + column[None, :]
    tl.store(G_ptr + at, G.to(G_ptr.dtype.element_ty), mask=ok[:, None] & b_ok[None, :])
