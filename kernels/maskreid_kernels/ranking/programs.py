"""The ranking loss's Triton programs of the forward. chunked.py derives what they compute; here S is never
stored.

One anchor (m) is a row of this rank, in sorted order; a place (b) is a candidate. Rows come as they were
given, and a product is multiplied by both rows' inverse norms (by row; None: it is not). `t` is margin - min
S_ki by row, -inf for anchors that are not valid; `shift` the running maximum that keeps exp finite (0 where
|S| <= 1 bounds it).

Pairs of an anchor and a negative inside the margin are recorded as marks, one int64 per 16 consecutive
places: the places' number / 16 in the upper half, then 16 bits for the candidate as anchor and 16 bits for
the anchor itself.

The numbers of an anchor, float64, by row: [log of the loss's argument, share of it that is pushed, row of the
least similar positive, value, floor, active negatives, valid, valid, negatives]; of an anchor that is not
valid the last six are 0. So the sums of columns 3 to 5 over those of 6 to 8 are the loss and its statistics.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..triton_tiles import anchor_block, joined, load_whole_slab, similarity_tile

GROUP = tl.constexpr(16)  # places of one mark
NUMBERS = tl.constexpr(9)
DIGITS = 36  # binary, behind the point of the sums in symmetric_programs.py
UNITS = tl.constexpr(float(2**DIGITS))
PLACE_BITS = tl.constexpr(24)  # of a place in its keys: MAX_ROWS
PLACES = tl.constexpr(2**24 - 1)
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def load_row(x_ptr, row, D, BLOCK_D: tl.constexpr, ACC: tl.constexpr):
    """[BLOCK_D] a whole row in ACC, 0 beyond D."""
    column = tl.arange(0, BLOCK_D)
    return tl.load(x_ptr + row * D + column, mask=column < D, other=0.0).to(ACC)


@triton.jit
def load_whole_rows(x_ptr, row, ok, D, BLOCK_D: tl.constexpr, ACC: tl.constexpr):
    """[rows, BLOCK_D] whole rows in ACC, 0 beyond D and for rows that are not `ok`."""
    column = tl.arange(0, BLOCK_D)
    inside = ok[:, None] & (column < D)[None, :]
    return tl.load(x_ptr + row[:, None] * D + column[None, :], mask=inside, other=0.0).to(ACC)


@triton.jit
def similarities_of_one(a, x, inverse_ptr, a_row, row, ok):
    """[rows] similarities of the row `a` with the rows x, each product taken in their dtype."""
    S = tl.sum(a[None, :] * x, 1)
    if inverse_ptr is not None:
        S *= tl.load(inverse_ptr + row, mask=ok, other=0.0)
        S *= tl.load(inverse_ptr + a_row)
    return S


@triton.jit(do_not_specialize=["N", "own_start"])
def positives_program(
    x_ptr, inverse_ptr, order_ptr, anchor_ptr, start_ptr, stop_ptr, least_row_ptr, squares_ptr, t_ptr,
    scale_ptr, least_ptr, N, D, own_start, margin_high, margin_low,
    BLOCK_D: tl.constexpr, SPAN: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Per anchor: the row of its least similar positive (lowest of equals, -1 without one), sum (S_ki - 1)^2,
    and at its row among the rank's own, t.
    """
    m = tl.program_id(0)
    place = tl.load(anchor_ptr + m)
    start, stop = tl.load(start_ptr + place), tl.load(stop_ptr + place)
    a_row = tl.load(order_ptr + place)
    a = load_row(x_ptr, a_row, D, BLOCK_D, ACC)
    least = tl.full((), float("inf"), ACC)
    least_row = tl.full((), -1, tl.int64)
    squares = tl.sum(0 * a, 0)
    for first in range(start, stop, SPAN):
        b = first + tl.arange(0, SPAN)
        ok = (b < stop) & (b != place)
        row = tl.load(order_ptr + b, mask=ok, other=0)
        x = load_whole_rows(x_ptr, row, ok, D, BLOCK_D, ACC)
        S = similarities_of_one(a, x, inverse_ptr, a_row, row, ok)
        squares += tl.sum(tl.where(ok, (S - 1) * (S - 1), 0.0), 0)
        S = tl.where(ok, S, float("inf"))
        lowest = tl.min(S, 0)
        # Rows ascend within an identity: the first of equals is the lowest row.
        lowest_row = tl.min(tl.where(ok & (S == lowest), row, 9223372036854775807), 0)
        nearer = lowest < least
        least_row = tl.where(nearer, lowest_row, least_row)
        least = tl.where(nearer, lowest, least)
    valid = (stop - start > 1) & (stop - start < N)
    tl.store(least_row_ptr + m, least_row)
    tl.store(squares_ptr + m, squares)
    t = tl.where(valid, joined(margin_high, margin_low, ACC) - least, float("-inf"))
    tl.store(t_ptr + (a_row - own_start), t)
    if scale_ptr is not None:
        tl.store(scale_ptr + m, tl.load(inverse_ptr + a_row))
        tl.store(least_ptr + m, -t * LOG2_E)


@triton.jit(do_not_specialize=["M", "N", "tiles_per_chunk", "chunks", "mark_cap"])
def forward_program(
    x_ptr, inverse_ptr, order_ptr, anchor_ptr, start_ptr, stop_ptr, t_ptr, sum_ptr, shift_ptr, active_ptr,
    mark_ptr, mark_count_ptr, M, N, D, tiles_per_chunk, chunks, mark_cap,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, EVEN_D: tl.constexpr,
    ONE_SLAB: tl.constexpr, BOUNDED: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Per anchor and chunk: sum of exp(S + t - shift) over violating negatives, their number, and marks of
    the pairs inside the margin in either role, in the anchor's own slots [anchor, chunk, mark_cap], counted
    beyond the cap.
    """
    block, chunk = tl.program_id(0) // chunks, tl.program_id(0) % chunks
    m, ok, _, a_row, start, stop, low, high = anchor_block(
        anchor_ptr, order_ptr, start_ptr, stop_ptr, M, block, BLOCK_M
    )
    a_offset = a_row * D
    t = tl.load(t_ptr + a_row, mask=ok, other=float("-inf"))
    if inverse_ptr is not None:
        a_inverse = tl.load(inverse_ptr + a_row, mask=ok, other=0.0)
    a_slab = load_whole_slab(x_ptr, a_offset, 0, D, BLOCK_D, EVEN_D)
    total, shift = tl.zeros((BLOCK_M,), ACC), tl.zeros((BLOCK_M,), ACC)
    active, recorded = tl.zeros((BLOCK_M,), tl.int32), tl.zeros((BLOCK_M,), tl.int32)
    slots = m.to(tl.int64) * chunks + chunk
    bit = 1 << (tl.arange(0, BLOCK_N) % GROUP)
    first = chunk * tiles_per_chunk
    for tile in range(first, tl.minimum(first + tiles_per_chunk, tl.cdiv(N, BLOCK_N))):
        b = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        b_ok = b < N
        b_row = tl.load(order_ptr + b, mask=b_ok, other=0)
        t_b = tl.load(t_ptr + b_row, mask=b_ok, other=float("-inf"))
        S = similarity_tile(x_ptr, a_slab, a_offset, b_row * D, D, BLOCK_D, EVEN_D, ONE_SLAB, DOT, ACC)
        if inverse_ptr is not None:
            S = S * tl.load(inverse_ptr + b_row, mask=b_ok, other=0.0)[None, :] * a_inverse[:, None]
        # A threshold of -inf keeps anchors that are not valid, and what lies beyond M and N, outside the
        # margin.
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
    tl.store(mark_count_ptr + out, recorded, mask=ok)


@triton.jit
def merged_chunks(
    sum_ptr, shift_ptr, active_ptr, mark_count_ptr, m, ok, M, chunks, mark_cap,
    BLOCK_M: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """(shift, sum in float64, active, marks, whether a chunk's did not fit) over the chunks in fixed
    order."""
    shift = tl.zeros((BLOCK_M,), ACC)
    at = shift_ptr
    for _ in range(chunks):
        shift = tl.maximum(shift, tl.load(at + m, mask=ok, other=0.0), propagate_nan=tl.PropagateNan.ALL)
        at += M
    push, active = tl.zeros((BLOCK_M,), tl.float64), tl.zeros((BLOCK_M,), tl.int32)
    marks, full = tl.zeros((BLOCK_M,), tl.int32), tl.zeros((BLOCK_M,), tl.int32)
    for _ in range(chunks):
        partial = tl.load(sum_ptr + m, mask=ok, other=0.0).to(tl.float64)
        push += partial * tl.exp((tl.load(shift_ptr + m, mask=ok, other=0.0) - shift).to(tl.float64))
        active += tl.load(active_ptr + m, mask=ok, other=0)
        count = tl.load(mark_count_ptr + m, mask=ok, other=0)
        marks += count
        full |= (count > mark_cap).to(tl.int32)
        sum_ptr += M
        shift_ptr += M
        active_ptr += M
        mark_count_ptr += M
    return shift, push, active, marks, full


@triton.jit
def of_upper_triangle(sum_ptr, active_ptr, t_ptr, m, ok, a_row, BLOCK_M: tl.constexpr, ACC: tl.constexpr):
    """The same of what a pass over the upper triangle leaves (symmetric_programs.py), which counts no
    anchor's marks.
    """
    push = tl.load(sum_ptr + m, mask=ok, other=0).to(tl.float64) * (1.0 / UNITS)
    push *= tl.exp(tl.load(t_ptr + a_row, mask=ok, other=float("-inf")).to(tl.float64))
    active, none = tl.load(active_ptr + m, mask=ok, other=0), tl.zeros((BLOCK_M,), tl.int32)
    return tl.zeros((BLOCK_M,), ACC), push, active, none, none


@triton.jit(do_not_specialize=["M", "N", "chunks", "mark_cap", "most_marks", "own_start"])
def anchors_program(
    order_ptr, anchor_ptr, start_ptr, stop_ptr, least_row_ptr, squares_ptr, t_ptr, sum_ptr, shift_ptr,
    active_ptr, mark_count_ptr, numbers_ptr, many_ptr, M, N, chunks, mark_cap, most_marks, own_start,
    pull_high, pull_low, BLOCK_M: tl.constexpr, ALL: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Merge the chunks in fixed order; write each anchor's numbers at its row among the rank's own, and by m
    whether its marks are many (or did not all fit): the backward then takes dense weights. ALL: negatives
    outside the margin count.

    After a pass over the upper triangle there is neither shift, mark_count nor many, and t is read.
    """
    m, ok, _, a_row, start, stop, _low, _high = anchor_block(
        anchor_ptr, order_ptr, start_ptr, stop_ptr, M, tl.program_id(0), BLOCK_M
    )
    if shift_ptr is None:
        shift, push, active, marks, full = of_upper_triangle(
            sum_ptr, active_ptr, t_ptr, m, ok, a_row, BLOCK_M, ACC
        )
    else:
        shift, push, active, marks, full = merged_chunks(
            sum_ptr, shift_ptr, active_ptr, mark_count_ptr, m, ok, M, chunks, mark_cap, BLOCK_M, ACC
        )
    count = stop - start
    valid = (count > 1) & (count < N)
    negatives = (N - count).to(tl.float64)
    # What the negatives outside the margin and the 1 in the logarithm add: exp(0) each, before the shift.
    ones = negatives - active.to(tl.float64) + 1 if ALL else tl.full((BLOCK_M,), 1.0, tl.float64)
    z = push + ones * tl.exp(-shift.to(tl.float64))
    log_z = shift.to(tl.float64) + tl.log(z)
    positives = tl.maximum(count - 1, 1).to(tl.float64)
    squares = tl.load(squares_ptr + m, mask=ok, other=0.0).to(tl.float64)
    value = log_z + squares * (joined(pull_high, pull_low, tl.float64) / 2) / positives
    floor = tl.log(1 + negatives) if ALL else tl.zeros((BLOCK_M,), tl.float64)
    # Of an anchor that is not valid too: integers and comparisons may have hidden that its row is not finite.
    shown = tl.where(valid, value, 0.0) + 0 * squares
    out = numbers_ptr + (a_row - own_start) * NUMBERS
    tl.store(out, log_z, mask=ok)
    tl.store(out + 1, push / z, mask=ok)
    tl.store(out + 2, tl.load(least_row_ptr + m, mask=ok, other=-1).to(tl.float64), mask=ok)
    tl.store(out + 3, shown, mask=ok)
    tl.store(out + 4, tl.where(valid, floor, 0.0), mask=ok)
    tl.store(out + 5, tl.where(valid, active.to(tl.float64), 0.0), mask=ok)
    tl.store(out + 6, valid.to(tl.float64), mask=ok)
    tl.store(out + 7, valid.to(tl.float64), mask=ok)
    tl.store(out + 8, tl.where(valid, negatives, 0.0), mask=ok)
    if many_ptr is not None:
        tl.store(many_ptr + m, ((full > 0) | (marks > most_marks)).to(tl.int32), mask=ok)
