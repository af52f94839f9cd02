"""Batch-hard in Triton: no M x N matrix, one matrix product in the forward, O(M D) in the backward.

Forward: tiles of distances of this rank's anchors to all candidates, each reduced at once to the nearest
negative's value and place, per chunk of columns; then one program per block of anchors merges the chunks in
fixed order, finds the farthest positive in the identity's range, takes both distances again from differences,
in float32 (float64), and writes all that the backward needs of an anchor: six numbers (programs.py), which
travel over the ranks.

Backward: each pair adds w (x_k - x_o) to row k and its negative to row o (see chunked.py). A row's own two
pairs are known; those that picked it are found by sorting the pairs by picked row, and summed in that order:
no atomics, the same bits from run to run. No host sync in either: without a group a step can be captured in a
CUDA graph.

Names: B = this rank's rows, M = the same rows as sorted anchors, N = rows of all ranks, D = columns, C =
chunks.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ..fused_rows import fused_unit_rows, row_norms
from ..guards import compute_dtype, first_order_only
from ..precision import PRECISIONS, Precision
from ..ranks import RankLayout, gather_rows
from ..symmetric_tiles import symmetric_tile, triangle_of
from ..triton_tiles import (
    Chip,
    SortedRows,
    Variant,
    accumulator,
    chip_of,
    column_chunks,
    dot_rows,
    sort_by_identity,
    split_float,
    tile_options,
    tile_shape,
)
from .programs import NO_KEY, NUMBERS, negatives_program, pairs_gradient_program, picks_program
from .specialised import nearest_keys, why_not_specialised
from .specialised import variants as specialised_variants
from .symmetric_programs import symmetric_negatives_program
from .terms import BatchHardTerms

PICKS_ROWS = 8
SLAB_COLUMNS = 256


def batch_hard_loss(
    rows_BD: Tensor, labels_B: Tensor, terms: BatchHardTerms, layout: RankLayout, precision: Precision
) -> Tensor:
    """Collectives in the forward, none in the backward: rows, labels, and six numbers per anchor."""
    if terms.normalize:
        rows_BD = fused_unit_rows(rows_BD)
    loss: Tensor = _BatchHardLoss.apply(rows_BD, labels_B, terms, layout, precision)
    return loss


class Nearest(NamedTuple):
    """Of each anchor and chunk of candidates the least |a|^2 + |b|^2 - 2 a.b over negatives, and its place,
    int32, -1 without one.

    best_CM: in the compute dtype; as packed int32; or, with place_CM None, as one int64 for all candidates
    that holds the place too (symmetric_programs.py).
    """

    best_CM: Tensor
    place_CM: Tensor | None


class _BatchHardLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows_BD: Tensor,
        labels_B: Tensor,
        terms: BatchHardTerms,
        layout: RankLayout,
        precision: Precision,
    ) -> Tensor:
        x_ND = gather_rows(rows_BD, layout).contiguous()
        rows = sort_by_identity(gather_rows(labels_B, layout), layout)
        x_dot_ND = dot_rows(x_ND, precision)
        square_N = row_norms(x_dot_ND, inverse=False)
        packed = precision.rows == torch.bfloat16  # the mantissa's low bits mean little there
        nearest = nearest_negatives(
            x_dot_ND, square_N, rows, precision, packed=packed, cosine=terms.distance == "cosine"
        )
        own_B6 = anchor_numbers(x_ND, square_N, rows, nearest, terms)
        numbers_N6 = gather_rows(own_B6, layout)
        # The same sum over the same gathered numbers on every rank, so the value is equal to the last bit.
        sums_6 = numbers_N6.sum(0)
        ctx.save_for_backward(x_ND, numbers_N6, sums_6)
        ctx.cosine, ctx.layout = terms.distance == "cosine", layout
        return (sums_6[2] / sums_6[5].clamp(min=1)).to(compute_dtype(x_ND.dtype))

    @staticmethod
    @first_order_only
    def backward(ctx: Any, of_loss: Tensor) -> tuple[Tensor, None, None, None, None]:
        x_ND, numbers_N6, sums_6 = ctx.saved_tensors
        return (
            pairs_gradient(x_ND, numbers_N6, sums_6, of_loss, ctx.layout, ctx.cosine),
            None,
            None,
            None,
            None,
        )


def nearest_negatives(
    x_ND: Tensor,
    square_N: Tensor,
    rows: SortedRows,
    precision: Precision,
    *,
    packed: bool,
    cosine: bool = False,
) -> Nearest:
    """square_N: |b|^2 by row, in the compute dtype. `packed` is for float32 accumulators."""
    (places, columns), anchors = x_ND.shape, len(rows.anchor_M)
    chip, acc = chip_of(x_ND.device), accumulator(x_ND.dtype)[1]
    given = (x_ND, square_N, rows.order_N, rows.anchor_M, rows.start_N, rows.stop_N)
    if why_not_specialised(anchors, places, columns, x_ND.dtype, x_ND.device) is None:
        return Nearest(nearest_keys(x_ND, square_N, rows, cosine=cosine), None)
    options = {"COSINE": cosine, "PACKED": packed}
    tile = symmetric_tile(columns, x_ND.dtype, chip)
    triangle = (
        triangle_of(rows, tile) if x_ND.dtype != torch.float64 else None
    )  # a key holds 32 bits of a distance
    if triangle is not None:
        key_1M = rows.order_N.new_full((1, anchors), NO_KEY.value)
        symmetric_negatives_program[(triangle.programs,)](
            *given, key_1M, places, columns, triangle.side, triangle.blocks,
            **options, **tile_options(tile, columns, precision, acc),
        )  # fmt: skip
        return Nearest(key_1M, None)
    tile = tile_shape(columns, x_ND.dtype, chip=chip, wide=True)
    tiles_per_chunk, chunks = column_chunks(anchors, places, tile, x_ND.device)
    place_CM = rows.anchor_M.new_empty((chunks, anchors))
    best_CM = torch.empty_like(place_CM) if packed else square_N.new_empty((chunks, anchors))
    if anchors:
        negatives_program[(triton.cdiv(anchors, tile.block_m) * chunks,)](
            *given, best_CM, place_CM, anchors, places, columns, tiles_per_chunk, chunks,
            **options, **tile_options(tile, columns, precision, acc),
        )  # fmt: skip
    return Nearest(best_CM, place_CM)


def anchor_numbers(
    x_ND: Tensor, square_N: Tensor, rows: SortedRows, nearest: Nearest, terms: BatchHardTerms
) -> Tensor:
    """[B, 6] float64: the numbers of this rank's anchors, by row; see programs.py."""
    (chunks, anchors), (places, columns) = nearest.best_CM.shape, x_ND.shape
    numbers_B6 = x_ND.new_empty((anchors, NUMBERS.value), dtype=torch.float64)
    if anchors:
        picks_program[(triton.cdiv(anchors, PICKS_ROWS),)](
            x_ND, square_N, rows.order_N, rows.anchor_M, rows.start_N, rows.stop_N, *nearest,
            numbers_B6, anchors, places, columns, chunks, rows.own.start, *split_float(terms.margin or 0.0),
            **_picks_options(columns, terms), ACC=accumulator(x_ND.dtype)[1],
        )  # fmt: skip
    return numbers_B6


def pairs_gradient(
    x_ND: Tensor, numbers_N6: Tensor, sums_6: Tensor, of_loss: Tensor, layout: RankLayout, cosine: bool
) -> Tensor:
    """[B, D] gradient of the mean over all anchors, on the own rows; of_loss: the 0-d gradient flowing into
    it."""
    own, columns = layout.own, x_ND.shape[1]
    rows = own.stop - own.start
    gradient_BD = x_ND.new_empty((rows, columns))
    if not rows:
        return gradient_BD
    # A pair without weight has row -1, and sorts before the own rows as other ranks' picks lie around them.
    picked, pair = numbers_N6[:, :2].to(torch.int32).flatten().sort(stable=True)
    wanted = torch.arange(own.start, own.stop + 1, dtype=torch.int32, device=picked.device)
    first = torch.searchsorted(picked, wanted)
    slab = _slab(columns)
    pairs_gradient_program[(rows, triton.cdiv(columns, slab))](
        x_ND, numbers_N6, sums_6, of_loss.contiguous(), first, pair, gradient_BD, own.start,
        layout.world_size, columns, BLOCK_D=slab, COSINE=cosine, ACC=accumulator(x_ND.dtype)[1], num_warps=4,
    )  # fmt: skip
    return gradient_BD


def variants(columns: int, precision_name: str, chip: Chip = "large") -> list[Variant]:
    """What a batch of `columns` columns compiles under a preset on a chip."""
    precision = PRECISIONS[precision_name]
    rows, acc = precision.rows, accumulator(precision.rows)[1]
    tiles = tile_options(tile_shape(columns, rows, chip=chip, wide=True), columns, precision, acc)
    symmetric_tiles = tile_options(symmetric_tile(columns, rows, chip), columns, precision, acc)
    packed = rows == torch.bfloat16
    mined = {"COSINE": False, "PACKED": packed}
    best = {"best_ptr": "*i32" if packed else "*fp32", "best_place_ptr": "*i32"}
    picks = _picks_options(columns, BatchHardTerms(0.3, "euclidean", False)) | {"ACC": acc}
    slabs = {"BLOCK_D": _slab(columns), "COSINE": False, "ACC": acc, "num_warps": 4}
    specialised = specialised_variants() if chip == "wide" and packed else []
    return [
        Variant.of(negatives_program, rows, {**mined, **tiles}, **best),
        Variant.of(symmetric_negatives_program, rows, {**mined, **symmetric_tiles}, key_ptr="*i64"),
        Variant.of(picks_program, torch.float32, picks, **best),
        Variant.of(picks_program, torch.float32, picks | {"best_place_ptr": None}, best_ptr="*i64"),
        Variant.of(pairs_gradient_program, torch.float32, slabs, first_ptr="*i64", pair_ptr="*i64"),
        *specialised,
    ]


def _picks_options(columns: int, terms: BatchHardTerms) -> dict[str, Any]:
    constants = {"KIND": terms.distance, "SOFT": terms.margin is None}
    return {"BLOCK_M": PICKS_ROWS, "BLOCK_D": _slab(columns), "num_warps": 4} | constants


def _slab(columns: int) -> int:
    return min(max(int(triton.next_power_of_2(columns)), 16), SLAB_COLUMNS)
