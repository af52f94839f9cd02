"""What the Triton kernels share: rows sorted by identity, tiles of S = x x^T, precision presets, tile shapes.

Candidates are addressed by their place in a stable sort by label, so the positives of an anchor are the
places start ... stop - 1 and a tile that no anchor's range reaches needs no labels at all. Rows are not
copied: a tile loads them through the order. Addresses are int64, places int32.

A forward kernel runs on a grid of (row blocks, column chunks); each program walks the column tiles of its
chunk and writes partial results [chunk, anchor], which are merged over the chunks in fixed order. No atomics:
results are the same bits from run to run.

Names: M anchors (this rank's rows in sorted order), N candidates (the rows of all ranks), D columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .ranks import RankLayout

MAX_PLACES = 2**31 - 1
INTERPRETED = triton.knobs.runtime.interpret


@dataclass(frozen=True)
class Precision:
    """How a tile's dot product is computed: the dtype rows are stored in, and tl.dot's input_precision."""

    rows: torch.dtype
    dot: str


# Prices and errors stand in kernels/README.md. "ieee" takes the rows as they are, float64 included.
PRECISIONS = {
    "bf16": Precision(torch.bfloat16, "ieee"),  # products of bfloat16 are exact in float32
    "bf16x3": Precision(torch.float32, "bf16x3"),
    "tf32": Precision(torch.float32, "tf32"),
    "tf32x3": Precision(torch.float32, "tf32x3"),
    "ieee": Precision(torch.float32, "ieee"),
}


@dataclass(frozen=True)
class TileShape:
    """Rows, columns and depth of a tile, warps and pipeline stages; `one_slab`: the depth covers all of D."""

    block_m: int
    block_n: int
    block_d: int
    warps: int
    stages: int
    one_slab: bool


@dataclass(frozen=True)
class SortedRows:
    """Candidates and anchors by place in the sort.

    order_N: int64 row of each place. start_N, stop_N: int32 range of places of the place's identity.
    anchor_M: int32 places of this rank's rows, ascending.
    """

    order_N: Tensor
    start_N: Tensor
    stop_N: Tensor
    anchor_M: Tensor

    @property
    def anchor_row_M(self) -> Tensor:
        """int64 row of each anchor among all ranks' rows."""
        return self.order_N[self.anchor_M.long()]


def sort_by_identity(labels_N: Tensor, layout: RankLayout) -> SortedRows:
    """Sort the labels once. No host sync. Raises ValueError beyond 2^31 - 1 candidates."""
    if labels_N.shape[0] > MAX_PLACES:
        raise ValueError(f"{labels_N.shape[0]} candidates; the Triton backend takes at most {MAX_PLACES}")
    sorted_N, order_N = torch.sort(labels_N, stable=True)
    start_N = torch.searchsorted(sorted_N, sorted_N, out_int32=True)
    stop_N = torch.searchsorted(sorted_N, sorted_N, right=True, out_int32=True)
    place_N = torch.empty_like(order_N)
    place_N[order_N] = torch.arange(len(order_N), device=order_N.device)
    anchor_M = place_N[layout.own].sort().values.to(torch.int32)
    return SortedRows(order_N, start_N, stop_N, anchor_M)


def tile_shape(columns: int, dtype: torch.dtype, *, block_m: int = 128, block_n: int = 128) -> TileShape:
    """The tile for rows of `columns` columns stored in `dtype`; small ones where programs are interpreted."""
    if INTERPRETED:
        depth = min(max(triton.next_power_of_2(columns), 16), 64)
        return TileShape(32, 64, depth, 4, 1, one_slab=columns <= depth)
    if dtype == torch.bfloat16:
        depth = max(triton.next_power_of_2(columns), 16) if columns <= 256 else 64
        return TileShape(block_m, block_n, depth, 8, 3, one_slab=columns <= depth)
    depth = max(min(triton.next_power_of_2(columns), 32), 16)
    return TileShape(block_m // 2, block_n, depth, 8, 3, one_slab=columns <= depth)


def column_chunks(anchors: int, candidates: int, tile: TileShape, processors: int) -> tuple[int, int]:
    """(tiles per chunk, chunks): enough programs for about four on each of the `processors`."""
    row_blocks, tiles = (
        max(triton.cdiv(anchors, tile.block_m), 1),
        max(triton.cdiv(candidates, tile.block_n), 1),
    )
    wanted = max(triton.cdiv(4 * processors, row_blocks), 1)
    tiles_per_chunk = max(triton.cdiv(tiles, wanted), 1)
    return tiles_per_chunk, triton.cdiv(tiles, tiles_per_chunk)


def processors(device: torch.device) -> int:
    """Streaming multiprocessors of the device; few where programs are interpreted one after another."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


@triton.jit
def anchor_block(anchor_ptr, order_ptr, start_ptr, stop_ptr, M, D, block, BLOCK_M: tl.constexpr):
    """A block of anchors: (index m, m < M, place, row offset in elements, start, stop, lowest start, highest stop).

    Anchors beyond M have the empty range [0, 0) and take no part in the lowest and highest.
    """
    m = block * BLOCK_M + tl.arange(0, BLOCK_M)
    ok = m < M
    place = tl.load(anchor_ptr + m, mask=ok, other=0)
    offset = tl.load(order_ptr + place, mask=ok, other=0) * D
    start = tl.load(start_ptr + place, mask=ok, other=0)
    stop = tl.load(stop_ptr + place, mask=ok, other=0)
    low = tl.min(tl.where(ok, start, 2147483647), 0)
    return m, ok, place, offset, start, stop, low, tl.max(stop, 0)


@triton.jit
def load_slab(x_ptr, offset, ok, d, D, BLOCK_D: tl.constexpr, EVEN_D: tl.constexpr):
    """Columns d ... d + BLOCK_D - 1 of the rows at `offset`, 0 beyond D and for rows that are not `ok`."""
    column = d + tl.arange(0, BLOCK_D)
    if EVEN_D:
        return tl.load(x_ptr + offset[:, None] + column[None, :], mask=ok[:, None], other=0.0)
    return tl.load(
        x_ptr + offset[:, None] + column[None, :], mask=ok[:, None] & (column < D)[None, :], other=0.0
    )


@triton.jit
def similarity_tile(
    x_ptr, a_slab, a_offset, a_ok, b_offset, b_ok, D,
    BLOCK_D: tl.constexpr, EVEN_D: tl.constexpr, ONE_SLAB: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """[rows of a, rows of b] dot products in ACC; `a_slab` holds the whole rows of a when ONE_SLAB."""
    if ONE_SLAB:
        b = load_slab(x_ptr, b_offset, b_ok, 0, D, BLOCK_D, EVEN_D)
        return tl.dot(a_slab, tl.trans(b), input_precision=DOT, out_dtype=ACC)
    S = tl.zeros((a_offset.shape[0], b_offset.shape[0]), ACC)
    for d in range(0, D, BLOCK_D):
        a = load_slab(x_ptr, a_offset, a_ok, d, D, BLOCK_D, EVEN_D)
        b = load_slab(x_ptr, b_offset, b_ok, d, D, BLOCK_D, EVEN_D)
        S = tl.dot(a, tl.trans(b), S, input_precision=DOT, out_dtype=ACC)
    return S
