"""Batch-hard's pass over the upper triangle of S with specialised warps, for Hopper, in Gluon; names and keys
are those of symmetric_programs.py.

Rows come sorted by identity, one after another, so that the copy engine (TMA) fetches them: warps of its own
fill a ring of slabs, two others multiply and reduce half of a tile's rows each, and wait for nothing but
their slabs. While they reduce a tile the ring already holds the next one's slabs. Programs go through the
tiles one by one, in strips that stay in the L2 cache (`block_pair`).

Gluon is experimental: only `specialised.py` imports this, where it may be run. Not yet run on a GPU.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

STRIP = gl.constexpr(8)  # pairs of columns of tiles
CONSUMERS = gl.constexpr(2)  # of BLOCK_N rows each: BLOCK_M is both
WARPS = gl.constexpr(4)  # of each consumer, and of the producer
CONSUMER_REGISTERS, PRODUCER_REGISTERS = gl.constexpr(232), gl.constexpr(40)


def slab_layout(rows: int, columns: int) -> gl.NVMMASharedLayout:
    """How a slab of bfloat16 lies in shared memory."""
    return gl.NVMMASharedLayout.get_default_for([rows, columns], gl.bfloat16)


@gluon.jit
def root(t):
    """The largest r with r (r + 1) / 2 <= t."""
    r = ((gl.sqrt(8.0 * t + 1.0) - 1.0) / 2.0).to(gl.int32)
    r = gl.where(r * (r + 1) // 2 > t, r - 1, r)
    return gl.where((r + 1) * (r + 2) // 2 <= t, r + 1, r)


@gluon.jit
def tile_at(t, blocks):
    """Row of tiles and column of tiles, of which two are as wide as a row is high; the first tile whose
    number is t or more and that the walk has: strips of STRIP columns of pairs from the left, within a strip
    row by row.
    """
    pair = t // 2
    first = root(pair) // STRIP * STRIP  # of the strip
    width = gl.minimum(STRIP, blocks - first)
    at = pair - first * (first + 1) // 2
    corner = gl.maximum(at - first * width, 0)  # the strip ends in a triangle of its own
    column = root(corner)
    row = corner - column * (column + 1) // 2
    above = at < first * width
    row = gl.where(above, at // width, first + row)
    column = gl.where(above, first + at % width, first + column)
    return row, 2 * column + t % 2


@gluon.jit
def produce(
    x_desc, a_ring, b_ring, full, empty, tiles, blocks, D,
    BLOCK_N: gl.constexpr, BLOCK_D: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Fill the ring: of each slab both halves of the tile's rows and its columns."""
    stage, phase = 0, 1
    for t in range(gl.program_id(0), tiles, gl.num_programs(0)):
        row, column = tile_at(t, blocks)
        for d in range(0, D, BLOCK_D):
            mbarrier.wait(empty.index(stage), phase)
            arrived = full.index(stage)
            mbarrier.expect(arrived, 3 * BLOCK_N * BLOCK_D * 2)
            first, second = a_ring.index(2 * stage), a_ring.index(2 * stage + 1)
            tma.async_copy_global_to_shared(x_desc, [2 * row * BLOCK_N, d], arrived, first)
            tma.async_copy_global_to_shared(x_desc, [(2 * row + 1) * BLOCK_N, d], arrived, second)
            tma.async_copy_global_to_shared(x_desc, [column * BLOCK_N, d], arrived, b_ring.index(stage))
            stage += 1
            if stage == STAGES:
                stage = 0
                phase ^= 1


@gluon.jit
def offer(key_ptr, place, ok, least, first_place, BLOCK_N: gl.constexpr):
    """Lower the places' keys to (a distance's bits, first_place + the lane in their low bits)."""
    both = gl.convert_layout(least, gl.BlockedLayout([1], [32], [WARPS], [0])).to(gl.int64)
    key = ((both & -BLOCK_N) << 32) | (first_place + (both & (BLOCK_N - 1)))
    gl.atomic_min(key_ptr + place, key, mask=ok, sem="relaxed")


@gluon.jit
def consume(
    half: gl.constexpr, a_ring, b_ring, full, empty, square_ptr, start_ptr, stop_ptr, key_ptr, tiles, blocks,
    N, D, BLOCK_N: gl.constexpr, BLOCK_D: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Distances of one half of each tile's rows, reduced by rows and, right of the diagonal, by columns."""
    sums: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[WARPS, 1], instr_shape=[16, BLOCK_N, 16]
    )
    row_lane = gl.arange(0, BLOCK_N, layout=gl.SliceLayout(1, sums))
    lane = gl.arange(0, BLOCK_N, layout=gl.SliceLayout(0, sums))
    each = gl.arange(0, BLOCK_N, layout=gl.BlockedLayout([1], [32], [WARPS], [0]))
    stage, phase = 0, 0
    for t in range(gl.program_id(0), tiles, gl.num_programs(0)):
        row, column = tile_at(t, blocks)
        S = gl.zeros((BLOCK_N, BLOCK_N), gl.float32, layout=sums)
        before = stage
        for d in range(0, D, BLOCK_D):
            mbarrier.wait(full.index(stage), phase)
            b = b_ring.index(stage).permute((1, 0))
            S = warpgroup_mma(a_ring.index(2 * stage + half), b, S, is_async=True)
            S = warpgroup_mma_wait(num_outstanding=1, deps=(S,))
            if d > 0:  # the product before this one has read its slabs
                mbarrier.arrive(empty.index(before), count=1)
            before = stage
            stage += 1
            if stage == STAGES:
                stage = 0
                phase ^= 1
        S = warpgroup_mma_wait(num_outstanding=0, deps=(S,))
        mbarrier.arrive(empty.index(before), count=1)
        m0, n0 = (2 * row + half) * BLOCK_N, column * BLOCK_N
        a_square = gl.load(square_ptr + m0 + row_lane)
        b_square = gl.load(square_ptr + n0 + lane)
        distance = (gl.expand_dims(a_square, 1) + gl.expand_dims(b_square, 0)) - 2 * S
        # Identities ascend: the rows' places reach from the first one's start to the last one's stop.
        low = gl.load(start_ptr + gl.minimum(m0, N - 1))
        high = gl.load(stop_ptr + gl.minimum(m0 + BLOCK_N, N) - 1)
        if (n0 < high) & (n0 + BLOCK_N > low) | (n0 + BLOCK_N > N):
            start = gl.expand_dims(gl.load(start_ptr + m0 + row_lane), 1)
            stop = gl.expand_dims(gl.load(stop_ptr + m0 + row_lane), 1)
            place = gl.expand_dims(n0 + lane, 0)
            own = (place >= start) & (place < stop) | (place >= N)
            distance = gl.where(own, float("inf"), distance)
        keys = distance.to(gl.int32, bitcast=True) & -BLOCK_N
        m, n = m0 + each, n0 + each
        offer(key_ptr, m, m < N, gl.min(keys | gl.expand_dims(lane, 0), 1), n0, BLOCK_N)
        # A tile on the diagonal holds both roles of its pairs by rows alone.
        counts = (n < N) & (n0 >= 2 * (row + 1) * BLOCK_N)
        offer(key_ptr, n, counts, gl.min(keys | gl.expand_dims(row_lane, 1), 0), m0, BLOCK_N)


@gluon.jit(do_not_specialize=["tiles", "blocks", "N"])
def specialised_negatives_program(
    x_desc, square_ptr, start_ptr, stop_ptr, key_ptr, tiles, blocks, N, D,
    BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr, BLOCK_D: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """`symmetric_negatives_program` packed, for bfloat16 rows that x_desc has sorted, boxes of BLOCK_N x
    BLOCK_D. square (of cosine 1), start and stop by place, readable up to the end of the last tile.
    """
    slab: gl.constexpr = gl.NVMMASharedLayout.get_default_for([BLOCK_N, BLOCK_D], gl.bfloat16)
    gl.static_assert(BLOCK_M == 2 * BLOCK_N)
    a_ring = gl.allocate_shared_memory(gl.bfloat16, [2 * STAGES, BLOCK_N, BLOCK_D], slab)
    b_ring = gl.allocate_shared_memory(gl.bfloat16, [STAGES, BLOCK_N, BLOCK_D], slab)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(full.index(stage), count=1)
        mbarrier.init(empty.index(stage), count=CONSUMERS)
    fence_async_shared()
    gl.warp_specialize(
        [
            (consume, (0, a_ring, b_ring, full, empty, square_ptr, start_ptr, stop_ptr, key_ptr, tiles,
                       blocks, N, D, BLOCK_N, BLOCK_D, STAGES)),
            (consume, (1, a_ring, b_ring, full, empty, square_ptr, start_ptr, stop_ptr, key_ptr, tiles,
                       blocks, N, D, BLOCK_N, BLOCK_D, STAGES)),
            (produce, (x_desc, a_ring, b_ring, full, empty, tiles, blocks, D, BLOCK_N, BLOCK_D, STAGES)),
        ],
        [WARPS, WARPS],
        [CONSUMER_REGISTERS, PRODUCER_REGISTERS],
    )  # fmt: skip
