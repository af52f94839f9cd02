"""The Triton program that counts; triton.py says how it is launched.

A query is m, a gallery row n, a threshold r: the r-th farthest good image of a query.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..triton_tiles import load_whole_slab

NO_ROW = tl.constexpr(2**31 - 1)


@triton.jit
def measure_tile(
    q_ptr, g_ptr, label, q_offset, g_label_ptr, slope_ptr, offset_ptr, tile, N, D,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, EVEN_D: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """[queries, BLOCK_N] measures, infinite for pairs of one label and beyond the last row; the rows'
    numbers.

    Every slab is multiplied from zero and added by a product of its own with `slope`, which the compiler
    cannot take for one more sum inside the matrix instruction: `bounds.py` counts on it.
    """
    n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    n_ok = n < N
    row = tl.where(n_ok, n, 0)
    g_offset = row.to(tl.int64) * D
    slope = tl.load(slope_ptr + row)
    offset = tl.load(offset_ptr + n, mask=n_ok, other=float("inf"))
    t = tl.zeros((q_offset.shape[0], BLOCK_N), ACC) + offset[None, :]
    for d in range(0, D, BLOCK_D):
        a = load_whole_slab(q_ptr, q_offset, d, D, BLOCK_D, EVEN_D)
        b = load_whole_slab(g_ptr, g_offset, d, D, BLOCK_D, EVEN_D)
        t += tl.dot(a, tl.trans(b), input_precision=DOT, out_dtype=ACC) * slope[None, :]
    g_label = tl.load(g_label_ptr + row)
    return tl.where(label[:, None] == g_label[None, :], float("inf"), t), n


@triton.jit(do_not_specialize=["M", "N", "thresholds", "tiles_per_chunk", "chunks", "capacity"])
def counts_program(
    q_ptr, g_ptr, q_label_ptr, g_label_ptr, slope_ptr, offset_ptr, low_ptr, high_ptr, below_ptr, total_ptr,
    open_ptr, M, N, D, thresholds, tiles_per_chunk, chunks, capacity,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, EVEN_D: tl.constexpr,
    DOT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Adds to below [thresholds, M] and to total, and writes open [3, capacity]: query, row, threshold.

    Thresholds descend, so the first that no row of the tile lies below ends the walk. A pair is written at
    the first threshold that it is open for: it lies below all lows before that one.
    """
    block, chunk = tl.program_id(0) // chunks, tl.program_id(0) % chunks
    m = block * BLOCK_M + tl.arange(0, BLOCK_M)
    m_ok = m < M
    query = tl.where(m_ok, m, 0)
    label = tl.load(q_label_ptr + query)
    q_offset = query.to(tl.int64) * D
    first = chunk * tiles_per_chunk
    for tile in range(first, tl.minimum(first + tiles_per_chunk, tl.cdiv(N, BLOCK_N))):
        t, n = measure_tile(
            q_ptr, g_ptr, label, q_offset, g_label_ptr, slope_ptr, offset_ptr, tile, N, D,
            BLOCK_N, BLOCK_D, EVEN_D, DOT, ACC,
        )  # fmt: skip
        nearest = tl.min(t, 1)
        farther_low = tl.full((BLOCK_M,), float("inf"), ACC)
        r = 0
        at = m.to(tl.int64)
        high = tl.load(high_ptr + at, mask=m_ok & (r < thresholds), other=float("-inf"))
        more = tl.max((nearest < high).to(tl.int32), 0)
        while more > 0:
            low = tl.load(low_ptr + at, mask=m_ok, other=float("-inf"))
            below = tl.sum((t < low[:, None]).to(tl.int32), 1)
            tl.atomic_add(below_ptr + at, below, mask=m_ok & (below > 0), sem="relaxed")
            limit = tl.minimum(high, farther_low)
            left = tl.sum((t < limit[:, None]).to(tl.int32), 1) - below
            if tl.max(left, 0) > 0:
                place = tl.atomic_add(total_ptr + m * 0, left, mask=left > 0, sem="relaxed")
                last = tl.full((BLOCK_M,), -1, tl.int32)
                while tl.max(left, 0) > 0:  # the next one of every row
                    found = (t >= low[:, None]) & (t < limit[:, None]) & (n[None, :] > last[:, None])
                    last = tl.min(tl.where(found, n[None, :], NO_ROW), 1)
                    kept = (left > 0) & (place < capacity)
                    to = open_ptr + place.to(tl.int64)
                    tl.store(to, m, mask=kept)
                    tl.store(to + capacity, last, mask=kept)
                    tl.store(to + 2 * capacity, tl.zeros((BLOCK_M,), tl.int32) + r, mask=kept)
                    place += 1
                    left -= 1
            farther_low = low
            r += 1
            at += M
            high = tl.load(high_ptr + at, mask=m_ok & (r < thresholds), other=float("-inf"))
            more = tl.max((nearest < high).to(tl.int32), 0)
