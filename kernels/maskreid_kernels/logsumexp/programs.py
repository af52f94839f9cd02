"""The Triton programs of the log-sum-exp losses; chunked.py derives what they compute. Not yet run on a GPU.

One anchor (m) is a row of this rank, in sorted order; a place (n) is a candidate. Exponents are to the base
2, the one that the hardware has: `scale` holds the factor. A loss's constants are arguments, so that a
learned temperature compiles nothing; CIRCLE says which of the two exponents it has.

The numbers of an anchor, float64, by row: [value, 1 if the anchor is valid, log weight, level], see terms.py.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..triton_tiles import anchor_block, joined, load_slab, load_whole_slab, similarity_tile

LOWEST = tl.constexpr(-3.0e38)  # below every exponent, and finite: -inf minus -inf would be no number
LOG2_E = tl.constexpr(1.4426950408889634)
NUMBERS = tl.constexpr(4)


@triton.jit
def exponent_tile(S, scale, margin, CIRCLE: tl.constexpr):
    """`Exponent.value_` of a tile."""
    if not CIRCLE:
        return S * scale
    else:
        bracket = tl.maximum(S, -margin, propagate_nan=tl.PropagateNan.ALL)
        return (bracket * bracket - margin * margin) * scale


@triton.jit
def slope_tile(S, scale, margin, CIRCLE: tl.constexpr):
    """`Exponent.slope` of a tile."""
    if not CIRCLE:
        return scale
    else:
        return (tl.maximum(S, -margin, propagate_nan=tl.PropagateNan.ALL) + margin) * scale


@triton.jit(do_not_specialize=["M", "N", "tiles_per_chunk", "chunks"])
def negatives_program(
    x_ptr, anchor_ptr, order_ptr, start_ptr, stop_ptr, top_ptr, sum_ptr, M, N, D, tiles_per_chunk, chunks,
    scale_high, scale_low, margin_high, margin_low,
    CIRCLE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, EVEN_D: tl.constexpr, ONE_SLAB: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """top, sum [chunks, M]: sum over the chunk's negatives of 2^(f - top)."""
    block, chunk = tl.program_id(0) // chunks, tl.program_id(0) % chunks
    m, ok, _, a_row, start, stop, low, high = anchor_block(
        anchor_ptr, order_ptr, start_ptr, stop_ptr, M, block, BLOCK_M
    )
    scale, margin = joined(scale_high, scale_low, ACC) * LOG2_E, joined(margin_high, margin_low, ACC)
    a_offset = a_row * D
    a_slab = load_whole_slab(x_ptr, a_offset, 0, D, BLOCK_D, EVEN_D)
    top = tl.full((BLOCK_M,), LOWEST, ACC)
    total = tl.zeros((BLOCK_M,), ACC)
    first = chunk * tiles_per_chunk
    for tile in range(first, tl.minimum(first + tiles_per_chunk, tl.cdiv(N, BLOCK_N))):
        n0 = tile * BLOCK_N
        n = n0 + tl.arange(0, BLOCK_N)
        n_ok = n < N
        b_offset = tl.load(order_ptr + n, mask=n_ok, other=0) * D
        S = similarity_tile(x_ptr, a_slab, a_offset, b_offset, D, BLOCK_D, EVEN_D, ONE_SLAB, DOT, ACC)
        f = exponent_tile(S, scale, margin, CIRCLE)
        if ((n0 < high) & (n0 + BLOCK_N > low)) | (n0 + BLOCK_N > N):  # else: negatives of every anchor here
            own = (n[None, :] >= start[:, None]) & (n[None, :] < stop[:, None])
            f = tl.where(own | (n >= N)[None, :], float("-inf"), f)
        higher = tl.maximum(top, tl.max(f, 1))
        total = total * tl.exp2(top - higher) + tl.sum(tl.exp2(f - higher[:, None]), 1)
        top = higher
    out = chunk.to(tl.int64) * M + m
    tl.store(top_ptr + out, top, mask=ok)
    tl.store(sum_ptr + out, total, mask=ok)


@triton.jit(do_not_specialize=["M", "chunks"])
def merge_program(top_ptr, sum_ptr, A_ptr, M, chunks, BLOCK_M: tl.constexpr, ACC: tl.constexpr):
    """A [M]: the natural log-sum-exp over an anchor's negatives, -inf without one; top None: 0. In float64,
    if A is stored so: the log of a sum of few is nothing beside the exponents of rows as long as thousands.
    """
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    ok = m < M
    top = tl.zeros((BLOCK_M,), ACC)
    if top_ptr is not None:
        top += LOWEST
        at = top_ptr
        for _ in range(chunks):
            top = tl.maximum(top, tl.load(at + m, mask=ok, other=LOWEST))
            at += M
    total = tl.zeros((BLOCK_M,), ACC)
    for _ in range(chunks):
        partial = tl.load(sum_ptr + m, mask=ok, other=0.0)
        if top_ptr is not None:
            partial *= tl.exp2(tl.load(top_ptr + m, mask=ok, other=LOWEST) - top)
            top_ptr += M
        total += partial
        sum_ptr += M
    A = (top.to(tl.float64) + tl.log2(total).to(tl.float64)) / LOG2_E
    tl.store(A_ptr + m, A.to(A_ptr.dtype.element_ty), mask=ok)


@triton.jit(do_not_specialize=["M", "N", "own_start"])
def numbers_program(
    value_ptr, log_weight_ptr, level_ptr, anchor_ptr, order_ptr, start_ptr, stop_ptr, numbers_ptr, M, N,
    own_start,
    BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Write the numbers of a band of anchors at their rows among the rank's own; 0, 0, -inf, 0 of one that is
    not valid."""
    m, ok, _, a_row, start, stop, _low, _high = anchor_block(
        anchor_ptr, order_ptr, start_ptr, stop_ptr, M, tl.program_id(0), BLOCK_M
    )
    valid = (stop - start > 1) & (stop - start < N)
    out = numbers_ptr + (a_row - own_start) * NUMBERS
    value = tl.load(value_ptr + m, mask=ok, other=0.0).to(tl.float64)
    log_weight = tl.load(log_weight_ptr + m, mask=ok, other=0.0).to(tl.float64)
    level = tl.load(level_ptr + m, mask=ok, other=0.0).to(tl.float64)
    tl.store(out, tl.where(valid, value, 0.0), mask=ok)
    tl.store(out + 1, valid.to(tl.float64), mask=ok)
    tl.store(out + 2, tl.where(valid, log_weight, float("-inf")), mask=ok)
    tl.store(out + 3, tl.where(valid, level, 0.0), mask=ok)


@triton.jit(do_not_specialize=["M", "P"])
def positives_program(
    x_ptr, anchor_ptr, order_ptr, start_ptr, stop_ptr, S_ptr, row_ptr, M, D, P,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """S, row [M, P]: similarities to the rows of the anchor's identity, and which they are; beyond its range
    0 and the anchor's own row, which is not a positive.
    """
    m, ok, _, a_row, start, stop, _low, _high = anchor_block(
        anchor_ptr, order_ptr, start_ptr, stop_ptr, M, tl.program_id(0), BLOCK_M
    )
    out = m.to(tl.int64) * P
    for p in range(P):
        inside = ok & (start + p < stop)
        b_row = tl.load(order_ptr + start + p, mask=inside, other=0)
        S = tl.zeros((BLOCK_M,), ACC)
        for d in range(0, D, BLOCK_D):
            a = load_slab(x_ptr, a_row * D, inside, d, D, BLOCK_D, False)
            b = load_slab(x_ptr, b_row * D, inside, d, D, BLOCK_D, False)
            S += tl.sum(a * b, 1)
        tl.store(S_ptr + out + p, S, mask=ok)
        tl.store(row_ptr + out + p, tl.where(inside, b_row, a_row), mask=ok)


@triton.jit
def rest_of(value, ACC: tl.constexpr):
    """What ACC leaves out of float64 values; 0 of -inf."""
    return tl.where(value > LOWEST, value - value.to(ACC).to(tl.float64), 0.0).to(ACC)


@triton.jit(do_not_specialize=["M", "panel_start", "panel_stop"])
def pairs_program(
    x_ptr, anchor_ptr, order_ptr, start_ptr, stop_ptr, numbers_ptr, G_ptr, M, panel_start, panel_stop, D,
    scale_high, scale_low, margin_high, margin_low,
    CIRCLE: tl.constexpr, EXACT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, EVEN_D: tl.constexpr, ONE_SLAB: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """G [M, panel]: both roles of every negative pair, 0 on positives.

    EXACT: exponents may be so long that ACC drops what matters of a log weight; it is added in two parts.
    """
    tiles = tl.cdiv(panel_stop - panel_start, BLOCK_N)
    m, ok, _, a_row, start, stop, low, high = anchor_block(
        anchor_ptr, order_ptr, start_ptr, stop_ptr, M, tl.program_id(0) // tiles, BLOCK_M
    )
    scale, margin = joined(scale_high, scale_low, ACC), joined(margin_high, margin_low, ACC)
    a_offset = a_row * D
    a_slab = load_whole_slab(x_ptr, a_offset, 0, D, BLOCK_D, EVEN_D)
    n0 = panel_start + tl.program_id(0) % tiles * BLOCK_N
    n = n0 + tl.arange(0, BLOCK_N)
    n_ok = n < panel_stop
    b_row = tl.load(order_ptr + n, mask=n_ok, other=0)
    S = similarity_tile(x_ptr, a_slab, a_offset, b_row * D, D, BLOCK_D, EVEN_D, ONE_SLAB, DOT, ACC)
    f = exponent_tile(S, scale * LOG2_E, margin, CIRCLE)
    a_log = tl.load(numbers_ptr + a_row * NUMBERS + 2, mask=ok, other=0.0) * LOG2_E
    b_log = tl.load(numbers_ptr + b_row * NUMBERS + 2, mask=n_ok, other=0.0) * LOG2_E
    as_anchor, as_negative = f + a_log.to(ACC)[:, None], f + b_log.to(ACC)[None, :]
    if EXACT:
        as_anchor += rest_of(a_log, ACC)[:, None]
        as_negative += rest_of(b_log, ACC)[None, :]
    G = (tl.exp2(as_anchor) + tl.exp2(as_negative)) * slope_tile(S, scale, margin, CIRCLE)
    if (n0 < high) & (n0 + BLOCK_N > low):
        G = tl.where((n[None, :] >= start[:, None]) & (n[None, :] < stop[:, None]), 0.0, G)
    out = m.to(tl.int64)[:, None] * (panel_stop - panel_start) + (n - panel_start)[None, :]
    tl.store(G_ptr + out, G.to(G_ptr.dtype.element_ty), mask=ok[:, None] & n_ok[None, :])


@triton.jit(do_not_specialize=["M", "N", "P"])
def pulls_program(
    x_ptr, anchor_ptr, order_ptr, start_ptr, stop_ptr, pull_ptr, out_ptr, M, N, D, P,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """out [M, D]: sum over a valid anchor's positives of pull [M, P] times the row; 0 of an anchor that is
    not valid."""
    m, ok, place, _, start, stop, _low, _high = anchor_block(
        anchor_ptr, order_ptr, start_ptr, stop_ptr, M, tl.program_id(0), BLOCK_M
    )
    d = tl.program_id(1) * BLOCK_D
    m = m.to(tl.int64)
    valid = ok & (stop - start > 1) & (stop - start < N)
    total = tl.zeros((BLOCK_M, BLOCK_D), ACC)
    for p in range(tl.max(stop - start, 0)):
        inside = valid & (start + p < stop) & (start + p != place)
        b_offset = tl.load(order_ptr + start + p, mask=inside, other=0) * D
        pull = tl.load(pull_ptr + m * P + p, mask=inside, other=0.0)
        total += pull[:, None] * load_slab(x_ptr, b_offset, inside, d, D, BLOCK_D, False)
    column = d + tl.arange(0, BLOCK_D)
    tl.store(out_ptr + m[:, None] * D + column[None, :], total, mask=ok[:, None] & (column < D)[None, :])
