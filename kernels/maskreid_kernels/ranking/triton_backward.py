"""Launches of the ranking loss's backward programs: sparse by marks where an anchor's marks are complete and
few, else dense by bands of weights and matrix products. No collective.

Names: b = anchors of a band, D = columns; listed = which of this rank's anchors.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from ..precision import Precision
from ..ranks import RankLayout
from ..triton_tiles import (
    SortedRows,
    TileShape,
    accumulator,
    add_product_,
    chip_of,
    split_float,
    tile_options,
)
from .gradient_programs import dense_weights_program, gradient_program
from .terms import RankingTerms
from .triton_forward import Marks, most_marks, ranking_tile, row_options
from .triton_pairs import Pairs

# What all anchors are pushed, where a band serves both of its sides: at most so much, in the compute dtype.
PUSHED_BYTES = 512 << 20
GRADIENT_BYTES = 48 << 20  # a band of gradient rows; gathered rows of a panel
BAND_BYTES = 48 << 20  # a band of weights
BAND_ROWS = 8192


@dataclass(frozen=True)
class Listed:
    """The pairs that the backward visits: in slots with their counts (`Marks`), or sorted keys with the first
    of each anchor (`Pairs`).
    """

    entry: Tensor
    first: Tensor | None
    count_CM: Tensor | None = None


@dataclass(frozen=True)
class Saved:
    """What the forward leaves to the backward beside the rows; tensors by row of all ranks unless named
    otherwise."""

    sorted_rows: SortedRows
    inverse_N: Tensor | None  # inverse norms, None where rows are not normalised
    t_N: Tensor
    numbers_N9: Tensor
    sums_9: Tensor
    marks: Marks | Pairs
    terms: RankingTerms
    layout: RankLayout


def gradient(x_ND: Tensor, x_dot_ND: Tensor, saved: Saved, of_loss: Tensor, precision: Precision) -> Tensor:
    """[B, D] gradient of this rank's rows, in their dtype. of_loss: the 0-d gradient flowing into the loss.

    One host sync or two, to choose each anchor's way: where all take the marks, one launch does everything.
    """
    rows = saved.sorted_rows
    anchors = len(rows.anchor_M)
    gradient_BD = x_ND.new_empty((anchors, x_ND.shape[1]))
    if not anchors:
        return gradient_BD
    many_M, listed = _ways(saved.marks, anchors)
    many = anchors if many_M is None else int(many_M.sum())
    if many == 0 and listed is not None:
        _finish_(gradient_BD, x_ND, saved, of_loss, None, listed)
    elif many_M is None and gradient_BD.numel() * saved.t_N.element_size() <= PUSHED_BYTES:
        pushed_ND = _push_both_sides(x_dot_ND, saved, precision, x_ND.shape[1])
        _finish_(gradient_BD, x_ND, saved, of_loss, None, pushed_ND)
    else:
        listed_M = (torch.ones_like(rows.anchor_M) if many_M is None else many_M).argsort(stable=True)
        if many < anchors and listed is not None:
            _finish_(gradient_BD, x_ND, saved, of_loss, listed_M[: anchors - many], listed)
        for listed_b in listed_M[anchors - many :].split(_height(x_ND.shape[1], saved)):
            pushed_bD = gradient_BD.new_zeros((len(listed_b), x_ND.shape[1]), dtype=saved.t_N.dtype)
            _push_(pushed_bD, x_dot_ND, saved, rows.anchor_M[listed_b], precision)
            _finish_(gradient_BD, x_ND, saved, of_loss, listed_b, pushed_bD)
    return gradient_BD


def _ways(marks: Marks | Pairs, anchors: int) -> tuple[Tensor | None, Listed | None]:
    """(int32 [M], 1 where an anchor takes dense weights, None where all do for both sides at once; the pairs
    of the others).
    """
    if isinstance(marks, Marks):
        return marks.many_M, Listed(marks.entry, None, marks.count_CM)
    found = marks.sorted(anchors)
    if found is None:
        return None, None
    key, first = found
    many_M = (first.diff() > most_marks(anchors)).int()
    # Half of the work for all is no more than all of it for half of them. Asked by size first: no host sync.
    if len(key) > most_marks(anchors) * (anchors // 2) and 2 * int(many_M.sum()) >= anchors:
        return None, None
    return many_M, Listed(key, first)


def _height(columns: int, saved: Saved) -> int:
    """Anchors of a band."""
    return min(BAND_ROWS, max(GRADIENT_BYTES // (columns * saved.t_N.element_size()), 1))


def _finish_(
    gradient_BD: Tensor,
    x_ND: Tensor,
    saved: Saved,
    of_loss: Tensor,
    listed_b: Tensor | None,
    from_negatives: Tensor | Listed,
) -> None:
    """Write the listed anchors' rows (None: all): positives, then the listed pairs or what was pushed, norm
    and scale.
    """
    rows, (places, columns) = saved.sorted_rows, x_ND.shape
    anchors, chunks, cap = len(rows.anchor_M), 1, 0
    count = anchors if listed_b is None else len(listed_b)
    left: tuple[Tensor | None, ...]
    if isinstance(from_negatives, Tensor):
        left = None, None, None, from_negatives
    else:
        left = from_negatives.entry, from_negatives.count_CM, from_negatives.first, None
        if from_negatives.first is None:
            _, chunks, cap = from_negatives.entry.shape
    gradient_program[(count,)](
        x_ND, saved.inverse_N, rows.order_N, rows.anchor_M, listed_b, rows.start_N, rows.stop_N, saved.t_N,
        saved.numbers_N9, saved.sums_9, of_loss.contiguous(), *left, gradient_BD, anchors, places, columns,
        chunks, cap, rows.own.start, saved.layout.world_size, *split_float(saved.terms.pull),
        **row_options(columns, x_ND.dtype),
    )  # fmt: skip


def _push_(pushed_bD: Tensor, x_ND: Tensor, saved: Saved, anchor_b: Tensor, precision: Precision) -> None:
    """Add what negatives push the anchors, times the anchors' inverse norms: bands of weights, in the rows'
    dtype, and a product each."""
    order_N, places = saved.sorted_rows.order_N, len(x_ND)
    for first, stop in _panels(0, places, len(anchor_b), x_ND):
        G_bc = _weights(x_ND, saved, anchor_b, first, stop, precision)
        add_product_(pushed_bD, G_bc, x_ND[order_N[first:stop]])


def _push_both_sides(x_ND: Tensor, saved: Saved, precision: Precision, columns: int) -> Tensor:
    """[N, columns] by place, what `_push_` adds for all anchors, where these are the candidates: bands on and
    right of the diagonal, those right of it multiplied for both of their sides.
    """
    rows, places = saved.sorted_rows, len(x_ND)
    pushed_ND = saved.t_N.new_zeros((places, columns))
    for begin in range(0, places, _height(columns, saved)):
        end = min(begin + _height(columns, saved), places)
        x_bD = x_ND[rows.order_N[begin:end]]
        for own, limits in ((True, (begin, end)), (False, (end, places))):
            for first, stop in _panels(*limits, end - begin, x_ND):
                G_bc = _weights(x_ND, saved, rows.anchor_M[begin:end], first, stop, precision)
                add_product_(pushed_ND[begin:end], G_bc, x_ND[rows.order_N[first:stop]])
                if not own:
                    add_product_(pushed_ND[first:stop], G_bc.t(), x_bD)
    return pushed_ND


def _panels(first: int, stop: int, anchors: int, x_ND: Tensor) -> Iterator[tuple[int, int]]:
    """(first, last place and one) of panels whose weights of so many anchors, and whose rows, fit."""
    fits = min(BAND_BYTES // anchors, GRADIENT_BYTES // x_ND.shape[1]) // x_ND.element_size()
    width = max(min(stop - first, fits), _tile(x_ND).block_n)
    for begin in range(first, stop, width):
        yield begin, min(begin + width, stop)


def _tile(x_ND: Tensor) -> TileShape:
    return ranking_tile(x_ND.shape[1], x_ND.dtype, chip=chip_of(x_ND.device))


def _weights(
    x_ND: Tensor, saved: Saved, anchor_b: Tensor, first: int, stop: int, precision: Precision
) -> Tensor:
    """[anchors, places of a panel], see `dense_weights_program`."""
    rows, columns, tile = saved.sorted_rows, x_ND.shape[1], _tile(x_ND)
    G_bc = x_ND.new_empty((len(anchor_b), stop - first))
    tiles = triton.cdiv(len(anchor_b), tile.block_m) * triton.cdiv(stop - first, tile.block_n)
    dense_weights_program[(tiles,)](
        x_ND, saved.inverse_N, rows.order_N, anchor_b, rows.start_N, rows.stop_N, saved.t_N, saved.numbers_N9,
        G_bc, len(anchor_b), first, stop - first, columns,
        **tile_options(tile, columns, precision, accumulator(x_ND.dtype)[1]),
    )  # fmt: skip
    return G_bc
