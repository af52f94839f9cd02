"""The ranking loss's pass over the upper triangle of S, for rows of length 1; names are those of programs.py,
the walk is that of symmetric_tiles.py.

|S| <= 1 bounds what is summed, so exp(S) alone is: both roles of a pair take the same, and exp(t) follows per
anchor (`anchors_program`). Sums are integers in units of 2^-36, added atomically: the same in any order.
MAX_ROWS = 2^24 terms of at most e are below 2^26, so that sums stay below 2^63, and a tile's part is rounded
by less than 2^-34 of its least term, e^-1. A number that is not finite counts as 0 there; its own anchor's
value shows it (`positives_program`).

Pairs inside the margin, in either role, go into one list in no order, once from each side: int64 keys of the
anchor's place, the candidate's place, and two bits, whether the pair is inside the candidate's margin and the
anchor's. Keys differ, so sorted there is one order, whichever tile came first; sorted they are every anchor's
pairs side by side.

What a tile says element by element is put together in the order in which NVIDIA's matrix instructions leave
it: of each 8 columns two lie side by side in one of 4 threads. Reductions over the others stay within a
thread; for another chip's order the result is the same.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..symmetric_tiles import tiles_of_pair
from ..triton_tiles import anchor_block, load_whole_slab, similarity_tile
from .programs import LOG2_E, PLACE_BITS, UNITS

KEY_BITS = tl.constexpr(2 + PLACE_BITS.value)  # of a key, those below the anchor's place


@triton.jit
def fixed_point(total):
    """A sum in units of 2^-36, int64."""
    finite = tl.where(total == total, total, 0.0)
    return (finite * UNITS).to(tl.int64)


@triton.jit
def bits_set(x):
    """How many of the bits 0 to 15; there are no others."""
    x -= (x >> 1) & 0x5555
    x = (x & 0x3333) + ((x >> 2) & 0x3333)
    x = (x + (x >> 4)) & 0x0F0F
    return (x + (x >> 8)) & 0x1F


@triton.jit
def in_thread(values, ROWS: tl.constexpr, GROUPS: tl.constexpr, EIGHTS: tl.constexpr):
    """[ROWS, GROUPS * EIGHTS * 8] summed over the columns that a thread holds of each group, [ROWS, GROUPS,
    4].
    """
    return tl.sum(tl.sum(tl.reshape(values, (ROWS, GROUPS, EIGHTS, 4, 2)), 4), 2)


@triton.jit
def counts_of_columns(inside, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """[BLOCK_N] int32 number of true in each column: four columns a word, a byte each."""
    lane = tl.arange(0, BLOCK_N)
    byte = 8 * ((lane // 8 % 2) * 2 + lane % 2)
    words = tl.sum(in_thread(tl.where(inside, (1 << byte)[None, :], 0), BLOCK_M, BLOCK_N // 16, 2), 0)
    two = tl.arange(0, 2)
    shift = (16 * two)[:, None, None] + (8 * two)[None, None, :]
    return tl.reshape((words[:, None, :, None] >> shift[None, :, :, :]) & 0xFF, (BLOCK_N,))


@triton.jit
def record_pairs(
    pair_ptr, found_ptr, mark, m, n0, most_pairs,
    BLOCK_M: tl.constexpr, GROUPS: tl.constexpr, EIGHTS: tl.constexpr,
):  # fmt: skip
    """Append a tile's marked pairs right of the diagonal; counted beyond the list's end too.

    mark [BLOCK_M, GROUPS, 4], of the columns that a thread holds in ascending order: in bits 0 to 15 whether
    the pair is inside the margin of its row m, in bits 16 to 31 whether of the column.
    """
    first = n0 + (tl.arange(0, GROUPS) * 8 * EIGHTS)[:, None] + (2 * tl.arange(0, 4))[None, :]
    a, first = m[:, None, None].to(tl.int64), first[None, :, :]
    gone = m[:, None, None] - first  # columns up to the row's own place
    before = tl.where(gone < 0, 0, tl.minimum(2 * (gone >> 3) + 1 + ((gone & 7) > 0).to(tl.int32), 16))
    own, other = mark & 0xFFFF, (mark >> 16) & 0xFFFF
    left = (own | other) & (0xFFFF << before)
    count = bits_set(left)
    flat = tl.reshape(count, (BLOCK_M * GROUPS * 4,))
    many = tl.sum(flat, 0)
    if many > 0:
        begin = tl.atomic_add(found_ptr, 2 * many.to(tl.int64), sem="relaxed")
        at = begin + 2 * tl.reshape(tl.cumsum(flat, 0) - flat, (BLOCK_M, GROUPS, 4))
        for _ in range(tl.max(flat, 0)):  # the lowest pair of each thread's at a time
            bit = left & -left
            # A power of two's exponent, read off its float32.
            index = (bit.to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 127
            b = (first + 8 * (index >> 1) + (index & 1)).to(tl.int64)
            of_a, of_b = ((own & bit) != 0).to(tl.int64), ((other & bit) != 0).to(tl.int64)
            keep = (bit != 0) & (at + 1 < most_pairs)
            tl.store(pair_ptr + at, (a << KEY_BITS) | (b << 2) | (of_b << 1) | of_a, mask=keep)
            tl.store(pair_ptr + at + 1, (b << KEY_BITS) | (a << 2) | (of_a << 1) | of_b, mask=keep)
            at += 2
            left -= bit


@triton.jit(do_not_specialize=["N", "side", "blocks", "most_pairs"])
def symmetric_forward_program(
    x_ptr, scale_ptr, order_ptr, anchor_ptr, start_ptr, stop_ptr, least_ptr, sum_ptr, active_ptr, pair_ptr,
    found_ptr, N, D, side, blocks, most_pairs,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, EVEN_D: tl.constexpr,
    ONE_SLAB: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """By place, added to what is there: sum [N] int64 of exp(S) over violating negatives in units of 2^-36,
    active [N] int32 their number. pair [most_pairs]: the list; found: how many it would hold, one int64.

    scale, least: by place, see `positives_program`; readable, whatever stands there, up to the end of the
    last tile.
    """
    _row_block, _column_block, first_row, last_row, first_tile, last_tile = tiles_of_pair(
        tl.program_id(0), N, side, blocks, BLOCK_M, BLOCK_N
    )
    EIGHTS: tl.constexpr = min(BLOCK_N // 8, 8)
    GROUPS: tl.constexpr = BLOCK_N // (8 * EIGHTS)
    lane = tl.arange(0, BLOCK_N)
    bit = 1 << ((lane // 8 % EIGHTS) * 2 + lane % 2)
    for row in range(first_row, last_row):
        m, ok, _, a_row, start, stop, low, high = anchor_block(
            anchor_ptr, order_ptr, start_ptr, stop_ptr, N, row, BLOCK_M
        )
        a_offset = a_row * D
        a_least = tl.load(least_ptr + m, mask=ok, other=float("inf"))
        a_scale = tl.load(scale_ptr + m, mask=ok, other=0.0) * LOG2_E
        a_slab = load_whole_slab(x_ptr, a_offset, 0, D, BLOCK_D, EVEN_D)
        total = tl.zeros((BLOCK_M, 1, 4), ACC)
        active = tl.zeros((BLOCK_M, GROUPS, 4), tl.int32)
        for tile in range(tl.maximum(first_tile, row * BLOCK_M // BLOCK_N), last_tile):
            n0 = tile * BLOCK_N
            n = n0 + lane
            b_offset = tl.load(order_ptr + n, mask=n < N, other=0) * D
            b_least = tl.load(least_ptr + n)
            S = similarity_tile(x_ptr, a_slab, a_offset, b_offset, D, BLOCK_D, EVEN_D, ONE_SLAB, DOT, ACC)
            S = S * tl.load(scale_ptr + n)[None, :] * a_scale[:, None]  # times log2(e), as least is
            if ((n0 < high) & (n0 + BLOCK_N > low)) | (n0 + BLOCK_N > N):
                own = (n[None, :] >= start[:, None]) & (n[None, :] < stop[:, None])
                S = tl.where(own | (n >= N)[None, :], float("-inf"), S)
                b_least = tl.where(n < N, b_least, float("inf"))
            power = tl.exp2(S)
            inside, b_inside = ~(S <= a_least[:, None]), ~(S <= b_least[None, :])  # NaN is inside
            total += in_thread(tl.where(inside, power, 0.0), BLOCK_M, 1, BLOCK_N // 8)
            # A tile on the diagonal holds both roles of its pairs by rows alone.
            counts = (n < N) & (n0 >= (row + 1) * BLOCK_M)
            b_total = tl.sum(tl.where(b_inside, power, 0.0), 0)
            tl.atomic_add(sum_ptr + n, fixed_point(b_total), mask=counts, sem="relaxed")
            b_active = counts_of_columns(b_inside, BLOCK_M, BLOCK_N)
            tl.atomic_add(active_ptr + n, b_active, mask=counts & (b_active > 0), sem="relaxed")
            # Each bit once: a union.
            mark = tl.where(inside, bit[None, :], 0) + tl.where(b_inside, (bit << 16)[None, :], 0)
            mark = in_thread(mark, BLOCK_M, GROUPS, EIGHTS)
            active += bits_set(mark & 0xFFFF)
            if tl.load(found_ptr, volatile=True) <= most_pairs:
                record_pairs(pair_ptr, found_ptr, mark, m, n0, most_pairs, BLOCK_M, GROUPS, EIGHTS)
        of_row = tl.sum(tl.sum(total, 2), 1)
        tl.atomic_add(sum_ptr + m, fixed_point(of_row), mask=ok, sem="relaxed")
        tl.atomic_add(active_ptr + m, tl.sum(tl.sum(active, 2), 1), mask=ok, sem="relaxed")
