"""`count_below` on a GPU: one launch, tiles of measures that never leave the chip, one host sync.

A program takes a block of queries and a chunk of the gallery's tiles. Its counts are added to those of the
other chunks by integer atomics, which give the same sum in any order; the undecided pairs are written where
an integer counter says, so their order is that of the run, and their number is not.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from ..backends import check_device
from ..guards import on_their_device
from ..precision import PRECISIONS, Precision, choose_precision
from ..triton_tiles import (
    INTERPRETED,
    MAX_PLACES,
    Chip,
    TileShape,
    Variant,
    accumulator,
    chip_of,
    column_chunks,
    dot_rows,
    tile_options,
)
from .bounds import SLAB_COLUMNS
from .programs import counts_program

PRESETS = ("bf16", "tf32x3", "ieee")  # for which bounds.py holds


def count_below(
    query_QD: Tensor,
    gallery_GD: Tensor,
    query_labels_Q: Tensor,
    gallery_labels_G: Tensor,
    slope_G: Tensor,
    offset_G: Tensor,
    low_RQ: Tensor,
    high_RQ: Tensor,
    *,
    capacity: int,
) -> tuple[Tensor, int, Tensor]:
    """below_RQ of `Counts`, the number of undecided pairs, and (3, capacity) of them."""
    check_device(query_QD.device)
    queries, rows, thresholds = len(query_QD), len(gallery_GD), len(low_RQ)
    if max(queries, rows, queries * rows) > MAX_PLACES:
        raise ValueError(f"{queries} x {rows} pairs; at most {MAX_PLACES} at once")
    below_RQ = query_labels_Q.new_zeros((thresholds, queries), dtype=torch.int32)
    total_1 = query_labels_Q.new_zeros(1, dtype=torch.int32)
    open_3C = query_labels_Q.new_empty((3, capacity), dtype=torch.int32)
    if not (queries and rows and thresholds):
        return below_RQ, 0, open_3C
    precision = _precision(query_QD.dtype)
    q_QD, g_GD = dot_rows(query_QD, precision), dot_rows(gallery_GD, precision)
    columns = q_QD.shape[1]
    tile = count_tile(columns, q_QD.dtype, chip_of(query_QD.device))
    tiles_per_chunk, chunks = column_chunks(queries, rows, tile, query_QD.device)
    with on_their_device(query_QD, launches=True):
        counts_program[(triton.cdiv(queries, tile.block_m) * chunks,)](
            q_QD, g_GD, query_labels_Q, gallery_labels_G, slope_G, offset_G, low_RQ.contiguous(),
            high_RQ.contiguous(), below_RQ, total_1, open_3C, queries, rows, columns, thresholds,
            tiles_per_chunk, chunks, capacity, **_options(tile, columns, precision),
        )  # fmt: skip
    return below_RQ, int(total_1), open_3C


def count_tile(columns: int, rows: torch.dtype, chip: Chip) -> TileShape:
    """Slabs of a fixed length, which the bound counts on; small tiles where programs are interpreted."""
    depth = SLAB_COLUMNS[rows]
    if INTERPRETED:
        return TileShape(32, 64, depth, 4, 1, one_slab=False)
    stages = 2 if chip == "small" else 3
    if rows != torch.float32:  # the slab's sums beside the measures: at 128 x 128 registers spill
        return TileShape(128, 64, depth, 8, stages, one_slab=False)
    return TileShape(64, 128 if chip in ("wide", "rows") else 64, depth, 8, stages, one_slab=False)


def variants(columns: int, precision_name: str, chip: Chip = "large") -> list[Variant]:
    """What rows of `columns` columns compile under a preset on a chip."""
    if precision_name not in PRESETS:
        return []
    precision = PRECISIONS[precision_name]
    options = _options(count_tile(columns, precision.rows, chip), columns, precision)
    of_rows = {torch.bfloat16: "*bf16", torch.float32: "*fp32"}[precision.rows]
    integers = dict.fromkeys(("q_label_ptr", "g_label_ptr", "below_ptr", "total_ptr", "open_ptr"), "*i32")
    return [Variant.of(counts_program, precision.rows, options, q_ptr=of_rows, g_ptr=of_rows, **integers)]


def _precision(rows: torch.dtype) -> Precision:
    """Whatever torch's own products may round to: the bound is for these."""
    if rows == torch.float16:
        return Precision(rows, "ieee")  # as bf16: products of 16-bit floats are exact in float32
    exact = "ieee" if torch.version.hip is not None else "tf32x3"  # AMD's compiler has no tf32x3
    return choose_precision("bf16" if rows == torch.bfloat16 else exact, rows)


def _options(tile: TileShape, columns: int, precision: Precision) -> dict[str, Any]:
    options = tile_options(tile, columns, precision, accumulator(precision.rows)[1])
    del options["ONE_SLAB"]
    return options
