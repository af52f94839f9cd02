"""Launches of the ranking loss's backward programs: sparse by marks where an anchor's marks are complete and
few, else dense by bands of weights and matrix products. No collective.

Names: b = anchors of a band, D = columns; listed = which of this rank's anchors.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from ..precision import Precision
from ..ranks import RankLayout
from ..triton_tiles import SortedRows, accumulator, add_product_, chip_of, split_float, tile_options
from .gradient_programs import dense_weights_program, gradient_program
from .terms import RankingTerms
from .triton_forward import Marks, ranking_tile, row_options

GRADIENT_BYTES = 48 << 20  # a band of gradient rows; gathered rows of a panel
BAND_BYTES = 48 << 20  # a band of weights
BAND_ROWS = 8192


@dataclass(frozen=True)
class Saved:
    """What the forward leaves to the backward beside the rows; tensors by row of all ranks unless named
    otherwise."""

    sorted_rows: SortedRows
    inverse_N: Tensor | None  # inverse norms, None where rows are not normalised
    t_N: Tensor
    numbers_N9: Tensor
    sums_9: Tensor
    marks: Marks
    terms: RankingTerms
    layout: RankLayout


def gradient(x_ND: Tensor, x_dot_ND: Tensor, saved: Saved, of_loss: Tensor, precision: Precision) -> Tensor:
    """[B, D] gradient of this rank's rows, in their dtype. of_loss: the 0-d gradient flowing into the loss.

    One host sync, to choose each anchor's way: where all take the marks, one launch does everything.
    """
    rows = saved.sorted_rows
    anchors = len(rows.anchor_M)
    gradient_BD = x_ND.new_empty((anchors, x_ND.shape[1]))
    if not anchors:
        return gradient_BD
    many = int(saved.marks.many_M.sum())
    if many == 0:
        _finish_(gradient_BD, x_ND, saved, of_loss, None, None)
        return gradient_BD
    listed_M = torch.argsort(saved.marks.many_M, stable=True)
    if many < anchors:
        _finish_(gradient_BD, x_ND, saved, of_loss, listed_M[: anchors - many], None)
    height = min(BAND_ROWS, max(GRADIENT_BYTES // (x_ND.shape[1] * saved.t_N.element_size()), 1))
    for listed_b in listed_M[anchors - many :].split(height):
        pushed_bD = gradient_BD.new_zeros((len(listed_b), x_ND.shape[1]), dtype=saved.t_N.dtype)
        _push_(pushed_bD, x_dot_ND, saved, rows.anchor_M[listed_b], precision)
        _finish_(gradient_BD, x_ND, saved, of_loss, listed_b, pushed_bD)
    return gradient_BD


def _finish_(
    gradient_BD: Tensor,
    x_ND: Tensor,
    saved: Saved,
    of_loss: Tensor,
    listed_b: Tensor | None,
    pushed_bD: Tensor | None,
) -> None:
    """Write the listed anchors' rows (None: all): positives, then marks or what was pushed, norm and
    scale."""
    rows, (places, columns), marks = saved.sorted_rows, x_ND.shape, saved.marks
    anchors, chunks, cap = marks.entry.shape
    count = anchors if listed_b is None else len(listed_b)
    gradient_program[(count,)](
        x_ND, saved.inverse_N, rows.order_N, rows.anchor_M, listed_b, rows.start_N, rows.stop_N, saved.t_N,
        saved.numbers_N9, saved.sums_9, of_loss.contiguous(), marks.entry, marks.count_CM, pushed_bD,
        gradient_BD, anchors, places, columns, chunks, cap, rows.own.start, saved.layout.world_size,
        *split_float(saved.terms.pull), **row_options(columns, x_ND.dtype),
    )  # fmt: skip


def _push_(pushed_bD: Tensor, x_ND: Tensor, saved: Saved, anchor_b: Tensor, precision: Precision) -> None:
    """Add what negatives push the anchors' unit rows: bands of weights, in the rows' dtype, and a product
    each."""
    rows, (places, columns) = saved.sorted_rows, x_ND.shape
    tile, acc = ranking_tile(columns, x_ND.dtype, chip=chip_of(x_ND.device)), accumulator(x_ND.dtype)[1]
    fits = min(BAND_BYTES // len(anchor_b), GRADIENT_BYTES // columns) // x_ND.element_size()
    width = max(min(places, fits), tile.block_n)
    for first in range(0, places, width):
        stop = min(first + width, places)
        G_bc = x_ND.new_empty((len(anchor_b), stop - first))
        tiles = triton.cdiv(len(anchor_b), tile.block_m) * triton.cdiv(stop - first, tile.block_n)
        dense_weights_program[(tiles,)](
            x_ND, saved.inverse_N, rows.order_N, anchor_b, rows.start_N, rows.stop_N, saved.t_N,
            saved.numbers_N9, G_bc, len(anchor_b), first, stop - first, columns,
            **tile_options(tile, columns, precision, acc),
        )  # fmt: skip
        add_product_(pushed_bD, G_bc, x_ND[rows.order_N[first:stop]])
