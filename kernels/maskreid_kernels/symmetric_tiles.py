"""The upper triangle of S = x x^T in Triton: where the rows are the candidates, each tile serves both of its
sides.

The places are cut into blocks of `side` tiles. A program takes one pair of blocks (row_block <= column_block)
and walks its tiles on and right of the diagonal, row by row; each is reduced by rows and, right of the
diagonal, by columns. So pairs of one row of tiles share what stays on the chip. Programs that run at the same
time are neighbours in both directions: pairs of blocks go in strips of STRIP, so that both operands stay in
the L2 cache. Which program comes when decides nothing: they lower the same integers, or each has a place of
its own in memory.

Not yet run on a GPU: off there unless the switch says otherwise or VERIFIED names the GPU. The rectangular
passes remain for ranks that have a part of the rows, and for what these do not take.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl

from .triton_tiles import INTERPRETED, PARTIAL_BYTES, Chip, SortedRows, TileShape, processors, tile_shape

SWITCH = "MASKREID_TRITON_SYMMETRIC"
# GPUs, by torch's name, on which `kernels/bench/gpu.py` found these passes right and no slower: date and
# commit.
VERIFIED: dict[str, str] = {}
STRIP = tl.constexpr(8)  # blocks
PROGRAMS = 8  # for each processor, so that the half blocks on the diagonal leave few idle
MAX_ROWS = 1 << 24  # keeps the number of a tile's row in int32


@dataclass(frozen=True)
class Triangle:
    """How a pass walks the upper triangle: blocks of `side` times the longer side of a tile."""

    side: int
    blocks: int

    @property
    def programs(self) -> int:
        return self.blocks * (self.blocks + 1) // 2


def symmetric(device: torch.device) -> bool:
    """Whether symmetric passes are on."""
    return switched_on(device, SWITCH, VERIFIED)


def switched_on(device: torch.device, switch: str, verified: dict[str, str]) -> bool:
    """By the variable of that name where it is set ("1" or "0"), else on verified GPUs."""
    asked = os.environ.get(switch, "")
    if asked:
        return asked == "1"
    if device.type != "cuda" or not verified or not torch.cuda.is_available():
        return False
    return torch.cuda.get_device_name(device) in verified


def why_rectangular(anchors: int, places: int, device: torch.device) -> str | None:
    """Why a pass over the upper triangle is not to be taken; None where it is."""
    if anchors < places:
        return "each rank has a part of the rows"
    if not symmetric(device):
        return f"passes over the upper triangle are off, no GPU has verified them ({SWITCH}=1: on)"
    return None if 0 < places <= MAX_ROWS else f"{places} rows"


def triangle_of(rows: SortedRows, tile: TileShape, bytes_per_anchor: int = 0) -> Triangle | None:
    """The walk of a batch whose candidates are its own rows; None where a rectangular pass is to be taken.

    That is where `why_rectangular` has a reason, and where partial results of so many bytes per anchor and
    block would take more than PARTIAL_BYTES.
    """
    device, places = rows.order_N.device, len(rows.order_N)
    if why_rectangular(len(rows.anchor_M), places, device):
        return None
    walk = triangle(places, tile, processors(device))
    return walk if walk.blocks * places * bytes_per_anchor <= PARTIAL_BYTES else None


def symmetric_tile(columns: int, rows: torch.dtype, chip: Chip) -> TileShape:
    """A tile that is reduced by rows and by columns: half as wide where that would take more registers than
    there are.
    """
    tile = tile_shape(columns, rows, chip=chip, wide=chip == "wide")
    narrow = chip == "rows" or (rows == torch.float32 and chip != "wide")
    return replace(tile, block_n=tile.block_n // 2) if narrow and not INTERPRETED else tile


def triangle(places: int, tile: TileShape, processors: int) -> Triangle:
    """As few blocks as make PROGRAMS programs for each processor."""
    tiles, wanted = triton.cdiv(places, max(tile.block_m, tile.block_n)), 1
    while wanted * (wanted + 1) // 2 < PROGRAMS * processors:
        wanted += 1
    side = triton.cdiv(tiles, wanted)
    return Triangle(side, triton.cdiv(tiles, side))


@triton.jit
def triangular_root(t):
    """The largest r with r (r + 1) / 2 <= t."""
    r = ((tl.sqrt(8.0 * t + 1.0) - 1.0) / 2.0).to(tl.int32)
    r -= (r * (r + 1) // 2 > t).to(tl.int32)
    return r + ((r + 1) * (r + 2) // 2 <= t).to(tl.int32)


@triton.jit
def block_pair(program, blocks):
    """(row_block, column_block) of a program: strips of columns from the left, within a strip row by row."""
    first = triangular_root(program) // STRIP * STRIP  # of the strip
    width = tl.minimum(STRIP, blocks - first)
    at = program - first * (first + 1) // 2
    corner = at - first * width  # the strip ends in a triangle of its own
    column = triangular_root(tl.maximum(corner, 0))
    row = tl.maximum(corner, 0) - column * (column + 1) // 2
    row_block = tl.where(corner < 0, at // width, first + row)
    column_block = tl.where(corner < 0, first + at % width, first + column)
    return row_block, column_block


@triton.jit
def tiles_of_pair(program, N, side, blocks, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """(row_block, column_block, first and last row of tiles, first and last column of tiles), the last ones
    beyond.
    """
    row_block, column_block = block_pair(program, blocks)
    LONGER: tl.constexpr = max(BLOCK_M, BLOCK_N)
    first_row, first_tile = row_block * side * (LONGER // BLOCK_M), column_block * side * (LONGER // BLOCK_N)
    last_row = tl.minimum(first_row + side * (LONGER // BLOCK_M), tl.cdiv(N, BLOCK_M))
    last_tile = tl.minimum(first_tile + side * (LONGER // BLOCK_N), tl.cdiv(N, BLOCK_N))
    return row_block, column_block, first_row, last_row, first_tile, last_tile
