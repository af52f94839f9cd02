"""What the Triton kernels share: rows sorted by identity, tiles of S = x x^T, tile shapes, and their variants.

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
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .precision import Precision
from .ranks import RankLayout

MAX_PLACES = 2**31 - 1
INTERPRETED = triton.knobs.runtime.interpret


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


def tile_shape(columns: int, rows: torch.dtype, *, amd: bool = torch.version.hip is not None) -> TileShape:
    """The tile for rows of `columns` columns stored in `rows`; small ones where programs are interpreted.

    AMD's compute units have 64 KB of shared memory, too little for whole rows of 256 columns.
    """
    depth = max(triton.next_power_of_2(columns), 16)
    if INTERPRETED:
        return TileShape(32, 64, min(depth, 64), 4, 1, one_slab=columns <= min(depth, 64))
    if rows == torch.bfloat16:
        whole = 64 if amd else 256
        depth = depth if columns <= whole else 64
        return TileShape(128, 128, depth, 8, 2 if amd else 3, one_slab=columns <= depth)
    depth = min(depth, 32)
    return TileShape(64, 128, depth, 8, 2 if amd else 3, one_slab=columns <= depth)


def tile_options(tile: TileShape, columns: int, precision: Precision, acc: tl.dtype) -> dict[str, Any]:
    """The constants and launch options that every program over tiles takes."""
    return {
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        "BLOCK_D": tile.block_d,
        "EVEN_D": columns % tile.block_d == 0,
        "ONE_SLAB": tile.one_slab,
        "DOT": "ieee" if INTERPRETED else precision.dot,  # the interpreter knows no other
        "ACC": acc,
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }


def accumulator(rows: torch.dtype) -> tuple[torch.dtype, tl.dtype]:
    """The dtype that sums of rows are kept in, as torch and as Triton name it."""
    return (torch.float64, tl.float64) if rows == torch.float64 else (torch.float32, tl.float32)


@dataclass(frozen=True)
class Variant:
    """One compilation of a program as real launches ask for it, to be compiled ahead of time (see aot.py).

    `types`: Triton's type of each argument by name ("*bf16", "i32"); `options`: constants, num_warps, num_stages.
    """

    program: Any
    types: dict[str, str]
    options: dict[str, Any]

    @classmethod
    def of(cls, program: Any, rows: torch.dtype, options: dict[str, Any], **types: str) -> Variant:
        """Types by the names the programs share; `types` names those that differ."""
        accumulated = "*fp64" if rows == torch.float64 else "*fp32"
        of_rows = {torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.float64: "*fp64"}[rows]
        known = dict.fromkeys(("anchor_ptr", "start_ptr", "stop_ptr"), "*i32")
        known |= {"x_ptr": of_rows, "order_ptr": "*i64"} | types
        arguments = [name for name in program.arg_names if name not in options]
        default = {name: accumulated if name.endswith("_ptr") else "i32" for name in arguments}
        return cls(program, default | {name: known[name] for name in arguments if name in known}, options)


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
