"""Launches of the ranking loss's backward programs: sparse by marks where an anchor's marks are complete and few, else
dense by bands of weights and matrix products. No collective.

Names: b = anchors of a band, D = columns; listed = which of this rank's anchors.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
from torch import Tensor

from ..precision import Precision
from ..triton_tiles import accumulator, tile_options
from .gradient_programs import dense_weights_program, marks_gradient_program, positives_gradient_program
from .triton_forward import FEW_MARKS, SPARSE_UP_TO, Saved, ranking_tile, row_options

GRADIENT_BYTES = 48 << 20  # a band of gradient rows; gathered rows of a band
BAND_BYTES = 96 << 20  # a band of weights


def gradient_bands(
    x_ND: Tensor, x_dot_ND: Tensor, saved: Saved, precision: Precision
) -> Iterator[tuple[Tensor, Tensor]]:
    """(row among the N [b], gradient with respect to the unit row [b, D]) until every anchor had its turn.

    Not yet divided by the number of valid anchors. One host sync, to choose each anchor's way.
    """
    bytes_per_row = x_ND.shape[1] * saved.t_N.element_size()
    few, many = choose(saved)
    for listed, dense in ((few, False), (many, True)):
        for band in listed.split(max(GRADIENT_BYTES // bytes_per_row, 1)):
            if not len(band):
                continue
            anchor_b = saved.sorted_rows.anchor_M[band]
            gradient_bD = x_ND.new_zeros((len(band), x_ND.shape[1]), dtype=saved.t_N.dtype)
            _add_positives(gradient_bD, x_ND, saved, anchor_b)
            if dense:
                _add_dense(gradient_bD, x_dot_ND, saved, anchor_b, precision)
            else:
                _add_marked(gradient_bD, x_ND, saved, band)
            yield saved.sorted_rows.order_N[anchor_b.long()], gradient_bD


def choose(saved: Saved) -> tuple[Tensor, Tensor]:
    """Anchors whose marks all fitted and are few, and the other anchors; int64, ascending. A host sync."""
    count_MC, cap = saved.marks.count_MC, saved.marks.entry.shape[2]
    most = max(int(SPARSE_UP_TO * len(saved.t_N)), FEW_MARKS)
    many_M = (count_MC > cap).any(1) | (count_MC.sum(1) > most)
    listed_M = torch.argsort(many_M.to(torch.uint8), stable=True)
    few = len(listed_M) - int(many_M.sum())
    return listed_M[:few], listed_M[few:]


def _add_positives(gradient_bD: Tensor, x_ND: Tensor, saved: Saved, anchor_b: Tensor) -> None:
    rows, columns = saved.sorted_rows, x_ND.shape[1]
    positives_gradient_program[(len(anchor_b),)](
        x_ND, saved.inverse_N, rows.order_N, anchor_b, rows.start_N, rows.stop_N, saved.pull_N,
        saved.least_row_N, saved.pushed_N, gradient_bD, columns, **row_options(columns, x_ND.dtype),
    )  # fmt: skip


def _add_marked(gradient_bD: Tensor, x_ND: Tensor, saved: Saved, listed_b: Tensor) -> None:
    rows, columns = saved.sorted_rows, x_ND.shape[1]
    _, chunks, cap = saved.marks.entry.shape
    marks_gradient_program[(len(listed_b),)](
        x_ND, saved.inverse_N, rows.order_N, rows.anchor_M, listed_b, saved.t_N, saved.log_z_N,
        saved.marks.entry, saved.marks.count_MC, gradient_bD, columns, chunks, cap,
        **row_options(columns, x_ND.dtype),
    )  # fmt: skip


def _add_dense(
    gradient_bD: Tensor, x_ND: Tensor, saved: Saved, anchor_b: Tensor, precision: Precision
) -> None:
    """Bands of weights and a matrix product each; the weights stand in the rows' own dtype."""
    rows, (places, columns) = saved.sorted_rows, x_ND.shape
    tile, acc = ranking_tile(columns, x_ND.dtype), accumulator(x_ND.dtype)[1]
    fits = min(BAND_BYTES // len(anchor_b), GRADIENT_BYTES // columns) // x_ND.element_size()
    width = max(min(places, fits), tile.block_n)
    for first in range(0, places, width):
        stop = min(first + width, places)
        G_bc = x_ND.new_empty((len(anchor_b), stop - first))
        grid = (triton.cdiv(len(anchor_b), tile.block_m), triton.cdiv(stop - first, tile.block_n))
        dense_weights_program[grid](
            x_ND, saved.inverse_N, rows.order_N, anchor_b, rows.start_N, rows.stop_N, saved.t_N, saved.log_z_N,
            G_bc, len(anchor_b), first, stop - first, columns, **tile_options(tile, columns, precision, acc),
        )  # fmt: skip
        x_cD = x_ND[rows.order_N[first:stop]]
        if x_ND.dtype == gradient_bD.dtype:
            gradient_bD.addmm_(G_bc, x_cD)
        else:
            gradient_bD += torch.mm(G_bc, x_cD, out_dtype=gradient_bD.dtype)
