"""The bands of weights of the log-sum-exp losses' backward, and their products; triton.py says how they fit
in. Names are those of triton.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
import triton
from torch import Tensor

from ..precision import Precision
from ..triton_tiles import (
    Chip,
    SortedRows,
    TileShape,
    accumulator,
    add_product_,
    chip_of,
    split_float,
    tile_options,
    tile_shape,
)
from .exponent import Exponent
from .programs import pairs_program
from .terms import LogSumExpTerms

PANEL_COLUMNS = 8192


def add_negatives_(
    band_bD: Tensor,
    x_ND: Tensor,
    rows: SortedRows,
    band: slice,
    numbers_N4: Tensor,
    terms: LogSumExpTerms,
    precision: Precision,
    below_ND: Tensor | None,
) -> None:
    """Add sum_b (G_ab + G_ba) x_b over the negatives b of the band's anchors a, panel by panel of candidates.

    below_ND: the gradient by row, where anchors and candidates are the same: then the panels are the band
    itself and what comes after it, and a panel after it is multiplied for its own rows too.
    """
    anchor_b, (N, D), exponent = rows.anchor_M[band], x_ND.shape, terms.exponent
    exact, acc = not terms.normalize, accumulator(x_ND.dtype)[1]
    tile = pairs_tile(D, x_ND.dtype, chip_of(x_ND.device), exact=exact)
    for start, stop in _panels(N) if below_ND is None else _panels_from(band, N):
        G_bc = x_ND.new_empty((len(anchor_b), stop - start))
        tiles = triton.cdiv(len(anchor_b), tile.block_m) * triton.cdiv(stop - start, tile.block_n)
        pairs_program[(tiles,)](
            x_ND, anchor_b, rows.order_N, rows.start_N, rows.stop_N, numbers_N4, G_bc, len(anchor_b), start,
            stop, D, *exponent_constants(exponent), CIRCLE=exponent.margin is not None, EXACT=exact,
            **tile_options(tile, D, precision, acc),
        )  # fmt: skip
        row_c = rows.order_N[start:stop]
        add_product_(band_bD, G_bc, x_ND.index_select(0, row_c))
        if below_ND is not None and start >= band.stop:
            panel_cD = below_ND.index_select(0, row_c)
            add_product_(panel_cD, G_bc.t(), x_ND.index_select(0, rows.row(band)))
            below_ND.index_copy_(0, row_c, panel_cD)


def _panels(stop: int, start: int = 0) -> Iterator[tuple[int, int]]:
    for first in range(start, stop, PANEL_COLUMNS):
        yield first, min(first + PANEL_COLUMNS, stop)


def _panels_from(band: slice, N: int) -> Iterator[tuple[int, int]]:
    """Those of the band itself, then those after it."""
    yield from _panels(band.stop, band.start)
    yield from _panels(N, band.stop)


def pairs_tile(columns: int, rows: torch.dtype, chip: Chip, *, exact: bool) -> TileShape:
    """The tile of the pairs: half as wide where log weights come in two parts, whose columns take registers
    too."""
    tile = tile_shape(columns, rows, chip=chip)
    return replace(tile, block_n=tile.block_n // 2) if exact else tile


def exponent_constants(exponent: Exponent) -> tuple[float, ...]:
    """The exponent's scale and margin, each in two halves."""
    return *split_float(exponent.scale), *split_float(exponent.margin or 0.0)
