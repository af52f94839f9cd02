"""How the chunked backends cut rows into blocks of bounded memory."""

from __future__ import annotations

from collections.abc import Iterator

# Large enough for a full-speed GEMM, small enough that a block and its copy stay in a CPU's cache for the
# passes after the GEMM. Wide rows may exceed it (a GEMM needs a hundred rows to be fast), never the second
# bound.
CACHE_BYTES = 8 << 20
WORKSPACE_BYTES = 64 << 20
FAST_ROWS = 128
# Candidates that are not the batch may be many more than its rows: so many columns leave a block FAST_ROWS.
TILE_COLUMNS = 32768


def row_blocks(rows: int, bytes_per_row: int) -> Iterator[slice]:
    """Slices covering range(rows) in order, each of at most WORKSPACE_BYTES (one row at least)."""
    bytes_per_row = max(bytes_per_row, 1)
    height = max(CACHE_BYTES // bytes_per_row, FAST_ROWS)
    height = max(min(height, WORKSPACE_BYTES // bytes_per_row), 1)
    for start in range(0, rows, height):
        yield slice(start, min(start + height, rows))


def own_and_global_blocks(own: slice, bytes_per_row: int) -> list[tuple[slice, slice]]:
    """Blocks of a rank's rows, each as (rows among its own, the same rows among those of all ranks)."""
    return [
        (block, slice(own.start + block.start, own.start + block.stop))
        for block in row_blocks(own.stop - own.start, bytes_per_row)
    ]


def tile_width(columns: int) -> int:
    """Columns of the widest tile of so many."""
    return min(columns, TILE_COLUMNS)


def own_and_global_tiles(own: slice) -> list[tuple[slice, slice]]:
    """Columns in tiles, each as (among a rank's own, the same among those of all ranks)."""
    columns = own.stop - own.start
    starts = range(0, columns, max(tile_width(columns), 1))
    local = [slice(start, min(start + tile_width(columns), columns)) for start in starts]
    return [(tile, slice(own.start + tile.start, own.start + tile.stop)) for tile in local]
