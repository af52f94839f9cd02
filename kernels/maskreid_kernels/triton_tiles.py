"""What the Triton kernels share: rows sorted by identity, tiles of S = x x^T, tile shapes, and their
variants.

Candidates are addressed by their place in a stable sort by label, so the positives of an anchor are the
places start ... stop - 1 and a tile that no anchor's range reaches needs no labels at all. Rows are not
copied: a tile loads them through the order. What a program reads of a candidate beside its row (a norm, a
threshold) is stored by row too, so nothing is permuted between launches. Addresses are int64, places int32.

A forward kernel runs one program per (row block, chunk of columns), chunks side by side: programs that run at
the same time share few row blocks and all chunks, so both operands stay in the L2 cache. Each walks the
column tiles of its chunk and writes partial results [chunk, anchor], which are merged over the chunks in
fixed order. No atomics: results are the same bits from run to run.

Sizes that change from batch to batch are arguments that Triton does not specialise on (`do_not_specialize`):
a batch of another size compiles nothing. D is specialised: its alignment decides how rows are loaded.

Names: M anchors (this rank's rows in sorted order), N candidates (the rows of all ranks), D columns.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

from .precision import Precision
from .ranks import RankLayout

# Places are int32, and the last tile counts beyond the last place.
MAX_PLACES = 2**31 - 2**10
ALIGNED = 16  # columns
# Chunks that share a row block in the L2 cache, while their partial results stay small.
SIDE_BY_SIDE = 16
PARTIAL_BYTES = 64 << 20
# What a tile may take: 64 KB of shared memory (AMD, and NVIDIA's consumer chips, which have 99); 160 KB
# (A100); 227 KB and products that read it, which leaves registers free (from Hopper on); the same with sums
# in a memory of their own, whose rows belong to a thread each, so that a column is spread over all of them
# (from Blackwell on).
Chip = Literal["small", "large", "wide", "rows"]
LARGE_SHARED, WIDE_SHARED = 160 << 10, 227 << 10
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
    anchor_M: int32 places of this rank's rows, ascending. own: this rank's rows among the N.
    """

    order_N: Tensor
    start_N: Tensor
    stop_N: Tensor
    anchor_M: Tensor
    own: slice

    def row(self, anchors: slice = slice(None)) -> Tensor:
        """int64 row among all ranks' rows, of a slice of the anchors."""
        if len(self.anchor_M) == len(self.order_N):  # one rank: the anchors are all places
            return self.order_N[anchors]
        return self.order_N[self.anchor_M[anchors].long()]

    def own_row(self, anchors: slice = slice(None)) -> Tensor:
        """int64 row among this rank's rows, of a slice of the anchors."""
        row = self.row(anchors)
        return row - self.own.start if self.own.start else row


def sort_by_identity(labels_N: Tensor, layout: RankLayout) -> SortedRows:
    """Sort the labels once. No host sync. Raises ValueError beyond 2^31 - 2^10 candidates."""
    places = labels_N.shape[0]
    if places > MAX_PLACES:
        raise ValueError(f"{places} candidates; the Triton backend takes at most {MAX_PLACES}")
    sorted_N, order_N = torch.sort(labels_N, stable=True)
    start_N = torch.searchsorted(sorted_N, sorted_N, out_int32=True)
    stop_N = torch.searchsorted(sorted_N, sorted_N, right=True, out_int32=True)
    anchor_M = torch.arange(places, dtype=torch.int32, device=order_N.device)
    if layout.rows_per_rank[layout.rank] < places:
        place_N = torch.empty_like(anchor_M).index_copy_(0, order_N, anchor_M)
        anchor_M = place_N[layout.own].sort().values
    return SortedRows(order_N, start_N, stop_N, anchor_M, layout.own)


def tile_shape(columns: int, rows: torch.dtype, *, chip: Chip = "large", wide: bool = False) -> TileShape:
    """The tile for rows of `columns` columns stored in `rows`; small ones where programs are interpreted.

    `wide`: for a program that has registers to spare on a "wide" chip: twice the columns where rows come in
    several slabs, so that a byte from the L2 cache feeds a third more products.
    """
    depth = max(triton.next_power_of_2(columns), 16)
    if INTERPRETED:
        return TileShape(32, 64, min(depth, 64), 4, 1, one_slab=columns <= min(depth, 64))
    small = chip == "small"
    if rows == torch.bfloat16:
        whole = 64 if small else 256
        depth = depth if columns <= whole else 64
        one_slab = columns <= depth
        block_n = 256 if wide and chip in ("wide", "rows") and not one_slab else 128
        return TileShape(128, block_n, depth, 8, 2 if small else 3, one_slab)
    depth = min(depth, 32)
    return TileShape(64, 128, depth, 8, 2 if small else 3, one_slab=columns <= depth)


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

    `types`: Triton's type of each argument by name ("*bf16", "i32"); `options`: constants, num_warps,
    num_stages.
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
        known |= {"x_ptr": of_rows, "order_ptr": "*i64", "numbers_ptr": "*fp64", "sums_ptr": "*fp64"} | types
        arguments = [name for name in program.arg_names if name not in options]
        default = {name: _default_type(name, accumulated) for name in arguments}
        return cls(program, default | {name: known[name] for name in arguments if name in known}, options)


def _default_type(argument: str, accumulated: str) -> str:
    if argument.endswith("_ptr"):
        return accumulated
    return "fp32" if argument.endswith(("_high", "_low")) else "i32"


def column_chunks(
    anchors: int, candidates: int, tile: TileShape, device: torch.device, bytes_per_anchor: int = 8
) -> tuple[int, int]:
    """(tiles per chunk, chunks): enough programs for about four on each processor of the device.

    And as many chunks as share a row block in the L2 cache, while the partial results, of so many bytes per
    anchor and chunk, stay small.
    """
    row_blocks = max(triton.cdiv(anchors, tile.block_m), 1)
    tiles = max(triton.cdiv(candidates, tile.block_n), 1)
    programs = processors(device)
    wanted = triton.cdiv(4 * programs, row_blocks)
    if SIDE_BY_SIDE * anchors * bytes_per_anchor <= PARTIAL_BYTES:
        wanted = max(wanted, min(SIDE_BY_SIDE, programs))
    tiles_per_chunk = max(triton.cdiv(tiles, max(wanted, 1)), 1)
    return tiles_per_chunk, triton.cdiv(tiles, tiles_per_chunk)


def chip_of(device: torch.device) -> Chip:
    """What a tile may take on the device."""
    if device.type != "cuda":
        return "large"
    properties = torch.cuda.get_device_properties(device)
    shared = getattr(properties, "shared_memory_per_block_optin", 0)  # AMD has no such number
    if torch.version.hip is not None or shared < LARGE_SHARED:
        return "small"
    if properties.major < 9 or shared < WIDE_SHARED:
        return "large"
    return "wide" if properties.major == 9 else "rows"


def processors(device: torch.device) -> int:
    """Streaming multiprocessors of the device; few where programs are interpreted one after another."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def split_float(value: float) -> tuple[float, float]:
    """The value as a sum of two float32 numbers, to about 48 bits: a scalar argument of a program is a
    float32.

    As arguments constants are not compiled in, so that one that is learned compiles nothing.
    """
    high = ctypes.c_float(value).value
    return high, float(value - high) if math.isfinite(high) else 0.0


def dot_rows(x_ND: Tensor, precision: Precision) -> Tensor:
    """The rows as the tiles read them: in the preset's dtype, and a multiple of ALIGNED columns wide, zeros
    filled up.

    A row whose start is not aligned is loaded element by element, which costs more registers than there are.
    No copy of rows that are both already.
    """
    missing = -x_ND.shape[1] % ALIGNED
    rows_ND = x_ND.to(precision.rows)
    return torch.nn.functional.pad(rows_ND, (0, missing)) if missing else rows_ND


def add_product_(out_bD: Tensor, weight_bc: Tensor, x_cD: Tensor) -> None:
    """out += weight @ x, accumulated in out's dtype (float32 or float64) whatever the operands'.

    x may have more columns than out, see `dot_rows`.
    """
    x_cD = x_cD[:, : out_bD.shape[1]]
    if x_cD.dtype == out_bD.dtype:
        out_bD.addmm_(weight_bc, x_cD)
    else:  # CUDA only, where alone rows are of low precision
        torch.addmm(out_bD, weight_bc, x_cD, out_dtype=out_bD.dtype, out=out_bD)


@triton.jit
def anchor_block(anchor_ptr, order_ptr, start_ptr, stop_ptr, M, block, BLOCK_M: tl.constexpr):
    """A block of anchors: (index m, m < M, place, row int64, start, stop, lowest start, highest stop).

    Anchors beyond M have the empty range [0, 0) and take no part in the lowest and highest.
    """
    m = block * BLOCK_M + tl.arange(0, BLOCK_M)
    ok = m < M
    place = tl.load(anchor_ptr + m, mask=ok, other=0)
    row = tl.load(order_ptr + place, mask=ok, other=0)
    start = tl.load(start_ptr + place, mask=ok, other=0)
    stop = tl.load(stop_ptr + place, mask=ok, other=0)
    low = tl.min(tl.where(ok, start, 2147483647), 0)
    return m, ok, place, row, start, stop, low, tl.max(stop, 0)


@triton.jit
def joined(high, low, ACC: tl.constexpr):
    """The constant that `split_float` split, in ACC."""
    return tl.zeros((), ACC) + high + low


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
def load_whole_slab(x_ptr, offset, d, D, BLOCK_D: tl.constexpr, EVEN_D: tl.constexpr):
    """`load_slab` of rows that all exist, without a mask: masks cost registers and instructions in every step
    over D.
    """
    column = d + tl.arange(0, BLOCK_D)
    at = x_ptr + offset[:, None] + column[None, :]
    return tl.load(at) if EVEN_D else tl.load(at, mask=(column < D)[None, :], other=0.0)


@triton.jit
def similarity_tile(
    x_ptr, a_slab, a_offset, b_offset, D,
    BLOCK_D: tl.constexpr, EVEN_D: tl.constexpr, ONE_SLAB: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """[rows of a, rows of b] dot products in ACC; `a_slab` holds the whole rows of a when ONE_SLAB.

    All offsets are of rows that exist: beyond the last anchor or candidate any will do, row 0 say, whose
    results nobody uses.
    """
    if ONE_SLAB:
        b = load_whole_slab(x_ptr, b_offset, 0, D, BLOCK_D, EVEN_D)
        return tl.dot(a_slab, tl.trans(b), input_precision=DOT, out_dtype=ACC)
    S = tl.zeros((a_offset.shape[0], b_offset.shape[0]), ACC)
    for d in range(0, D, BLOCK_D):
        a = load_whole_slab(x_ptr, a_offset, d, D, BLOCK_D, EVEN_D)
        b = load_whole_slab(x_ptr, b_offset, d, D, BLOCK_D, EVEN_D)
        S = tl.dot(a, tl.trans(b), S, input_precision=DOT, out_dtype=ACC)
    return S
