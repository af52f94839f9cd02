"""The Triton programs of the log-sum-exp losses; chunked.py derives what they compute. Not yet run on a GPU.

One anchor (m) is a row of this rank, in sorted order; a place (n) is a candidate. Exponents are to the base 2, the one
that the hardware has: SCALE holds the factor. A loss's constants are compiled in.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..triton_tiles import anchor_block, load_slab, similarity_tile

LOWEST = tl.constexpr(-3.0e38)  # below every exponent, and finite: -inf minus -inf would be no number


@triton.jit
def exponent_tile(S, SCALE: tl.constexpr, MARGIN: tl.constexpr):
    """`Exponent.value_` of a tile."""
    if MARGIN is None:
        return S * SCALE
    else:
        bracket = tl.maximum(S, -MARGIN, propagate_nan=tl.PropagateNan.ALL)
        return (bracket * bracket - MARGIN * MARGIN) * SCALE


@triton.jit
def slope_tile(S, SCALE: tl.constexpr, MARGIN: tl.constexpr):
    """`Exponent.slope` of a tile."""
    if MARGIN is None:
        return SCALE
    else:
        return (tl.maximum(S, -MARGIN, propagate_nan=tl.PropagateNan.ALL) + MARGIN) * SCALE


@triton.jit
def negatives_program(
    x_ptr, anchor_ptr, order_ptr, start_ptr, stop_ptr, top_ptr, sum_ptr, M, N, D, tiles_per_chunk,
    SCALE: tl.constexpr, MARGIN: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, EVEN_D: tl.constexpr, ONE_SLAB: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """top, sum [chunks, M]: sum over the chunk's negatives of 2^(f - top); SCALE is to the base 2."""
    m, ok, _, a_offset, start, stop, low, high = anchor_block(
        anchor_ptr, order_ptr, start_ptr, stop_ptr, M, D, tl.program_id(0), BLOCK_M
    )
    a_slab = load_slab(x_ptr, a_offset, ok, 0, D, BLOCK_D, EVEN_D)
    top = tl.full((BLOCK_M,), LOWEST, ACC)
    total = tl.zeros((BLOCK_M,), ACC)
    first = tl.program_id(1) * tiles_per_chunk * BLOCK_N
    last = tl.minimum(first + tiles_per_chunk * BLOCK_N, N)
    for n0 in range(first, last, BLOCK_N):
        n = n0 + tl.arange(0, BLOCK_N)
        n_ok = n < N
        b_offset = tl.load(order_ptr + n, mask=n_ok, other=0) * D
        S = similarity_tile(
            x_ptr, a_slab, a_offset, ok, b_offset, n_ok, D, BLOCK_D, EVEN_D, ONE_SLAB, DOT, ACC
        )
        f = exponent_tile(S, SCALE, MARGIN)
        if ((n0 < high) & (n0 + BLOCK_N > low)) | (n0 + BLOCK_N > N):  # else: negatives of every anchor here
            own = (n[None, :] >= start[:, None]) & (n[None, :] < stop[:, None])
            f = tl.where(own | (n >= N)[None, :], float("-inf"), f)
        higher = tl.maximum(top, tl.max(f, 1))
        total = total * tl.exp2(top - higher) + tl.sum(tl.exp2(f - higher[:, None]), 1)
        top = higher
    out = tl.program_id(1).to(tl.int64) * M + m
    tl.store(top_ptr + out, top, mask=ok)
    tl.store(sum_ptr + out, total, mask=ok)


@triton.jit
def positives_program(
    x_ptr, anchor_ptr, order_ptr, start_ptr, stop_ptr, S_ptr, M, D, P,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """S [M, P]: similarities to the places start ... stop - 1; what lies beyond an anchor's range is not written."""
    m, ok, _, a_offset, start, stop, _low, _high = anchor_block(
        anchor_ptr, order_ptr, start_ptr, stop_ptr, M, D, tl.program_id(0), BLOCK_M
    )
    for p in range(tl.max(stop - start, 0)):
        inside = ok & (start + p < stop)
        b_offset = tl.load(order_ptr + start + p, mask=inside, other=0) * D
        S = tl.zeros((BLOCK_M,), ACC)
        for d in range(0, D, BLOCK_D):
            a = load_slab(x_ptr, a_offset, inside, d, D, BLOCK_D, False)
            b = load_slab(x_ptr, b_offset, inside, d, D, BLOCK_D, False)
            S += tl.sum(a * b, 1)
        tl.store(S_ptr + m.to(tl.int64) * P + p, S, mask=inside)


@triton.jit
def pairs_program(
    x_ptr, anchor_ptr, order_ptr, start_ptr, stop_ptr, weight_ptr, G_ptr, M, panel_start, panel_stop, D,
    SCALE: tl.constexpr, SLOPE: tl.constexpr, MARGIN: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, EVEN_D: tl.constexpr, ONE_SLAB: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """G [M, panel]: both roles of every negative pair, 0 on positives; weight [N] by place, to the base 2 as SCALE is."""
    m, ok, place, a_offset, start, stop, low, high = anchor_block(
        anchor_ptr, order_ptr, start_ptr, stop_ptr, M, D, tl.program_id(0), BLOCK_M
    )
    a_slab = load_slab(x_ptr, a_offset, ok, 0, D, BLOCK_D, EVEN_D)
    n0 = panel_start + tl.program_id(1) * BLOCK_N
    n = n0 + tl.arange(0, BLOCK_N)
    n_ok = n < panel_stop
    b_offset = tl.load(order_ptr + n, mask=n_ok, other=0) * D
    S = similarity_tile(x_ptr, a_slab, a_offset, ok, b_offset, n_ok, D, BLOCK_D, EVEN_D, ONE_SLAB, DOT, ACC)
    f = exponent_tile(S, SCALE, MARGIN)
    as_anchor = tl.exp2(f + tl.load(weight_ptr + place, mask=ok, other=0.0)[:, None])
    as_negative = tl.exp2(f + tl.load(weight_ptr + n, mask=n_ok, other=0.0)[None, :])
    G = (as_anchor + as_negative) * slope_tile(S, SLOPE, MARGIN)
    if (n0 < high) & (n0 + BLOCK_N > low):
        G = tl.where((n[None, :] >= start[:, None]) & (n[None, :] < stop[:, None]), 0.0, G)
    out = (
        m[:, None] * (panel_stop - panel_start) + (n - panel_start)[None, :]
    )  # the workspace is small: int32
    tl.store(G_ptr + out, G.to(G_ptr.dtype.element_ty), mask=ok[:, None] & n_ok[None, :])


@triton.jit
def pulls_program(
    x_ptr, anchor_ptr, order_ptr, start_ptr, stop_ptr, pull_ptr, out_ptr, M, D, P,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """out [M, D]: sum over an anchor's identity of pull [M, P] times the row."""
    m, ok, _, _, start, stop, _low, _high = anchor_block(
        anchor_ptr, order_ptr, start_ptr, stop_ptr, M, D, tl.program_id(0), BLOCK_M
    )
    d = tl.program_id(1) * BLOCK_D
    m = m.to(tl.int64)
    total = tl.zeros((BLOCK_M, BLOCK_D), ACC)
    for p in range(tl.max(stop - start, 0)):
        inside = ok & (start + p < stop)
        b_offset = tl.load(order_ptr + start + p, mask=inside, other=0) * D
        pull = tl.load(pull_ptr + m * P + p, mask=inside, other=0.0)
        total += pull[:, None] * load_slab(x_ptr, b_offset, inside, d, D, BLOCK_D, False)
    column = d + tl.arange(0, BLOCK_D)
    tl.store(out_ptr + m[:, None] * D + column[None, :], total, mask=ok[:, None] & (column < D)[None, :])
