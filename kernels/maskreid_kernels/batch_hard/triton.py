"""Batch-hard in Triton: no M x N matrix, one matrix product in the forward, O(M D) in the backward.

Forward: tiles of distances of this rank's anchors to all candidates, each reduced at once to the nearest negative's
value and place, per chunk of columns; then one program per block of anchors merges the chunks in fixed order, finds
the farthest positive in the identity's range, and takes both distances again from differences, in float32 (float64).
Over the ranks travel the five numbers per anchor of chunked.py.

Backward: each pair adds w (x_k - x_o) to row k and its negative to row o (see chunked.py). The pairs are sorted by the
row they add to and summed in that order: no atomics, the same bits from run to run. No host sync in either.

Names: B = this rank's rows, M = the same rows as sorted anchors, N = rows of all ranks, D = columns, C = chunks.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from ..first_order import first_order_only
from ..inputs import compute_dtype
from ..precision import PRECISIONS, Precision
from ..ranks import RankLayout, gather_rows
from ..triton_tiles import (
    SortedRows,
    Variant,
    accumulator,
    column_chunks,
    processors,
    sort_by_identity,
    tile_options,
    tile_shape,
)
from ..unit_rows import unit_rows
from .programs import negatives_program, pairs_gradient_program, picks_program
from .terms import BatchHardTerms, gradient_per_difference, row_squares

PICKS_ROWS = 8
SLAB_COLUMNS = 256
# Chunks that share a row block in the L2 cache, while their partial results stay small.
SIDE_BY_SIDE = 16
PARTIAL_BYTES = 64 << 20


def batch_hard_loss(
    rows_BD: Tensor, labels_B: Tensor, terms: BatchHardTerms, layout: RankLayout, precision: Precision
) -> Tensor:
    """Collectives in the forward, none in the backward: rows, labels, and five numbers per anchor."""
    if terms.normalize:
        rows_BD = unit_rows(rows_BD.to(compute_dtype(rows_BD.dtype)))
    loss: Tensor = _BatchHardLoss.apply(rows_BD, labels_B, terms, layout, precision)
    return loss


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
        numbers_M5 = _anchor_numbers(x_ND, rows, terms, precision)
        own_B5 = torch.empty_like(numbers_M5)
        own_B5[rows.anchor_row_M - layout.own.start] = numbers_M5
        positive_N, negative_N, value_N, toward_N, away_N = gather_rows(own_B5, layout).unbind(1)
        valid_anchors = _valid(rows).sum().clamp(min=1)

        other_2N = torch.stack([positive_N, negative_N]).long()
        dtype = compute_dtype(x_ND.dtype)
        weight_2N = torch.stack([toward_N, -away_N]).to(dtype)
        ctx.save_for_backward(x_ND, other_2N, weight_2N, valid_anchors)
        ctx.terms, ctx.layout = terms, layout
        # The same sum over the same gathered numbers on every rank, so the value is equal to the last bit.
        return (value_N.sum() / valid_anchors).to(dtype)

    @staticmethod
    @first_order_only
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        x_ND, other_2N, weight_2N, valid_anchors = ctx.saved_tensors
        layout: RankLayout = ctx.layout
        scale = gradients[0] * layout.world_size / valid_anchors  # W: see maskreid_kernels.ranks
        cosine = ctx.terms.distance == "cosine"
        gradient_BD = pairs_gradient(x_ND, other_2N, weight_2N * scale, layout.own, cosine)
        return gradient_BD, None, None, None, None


def _valid(rows: SortedRows) -> Tensor:
    """[N] bool by place: anchors with a positive and a negative."""
    count_N = rows.stop_N - rows.start_N
    return (count_N > 1) & (count_N < len(count_N))


def _anchor_numbers(x_ND: Tensor, rows: SortedRows, terms: BatchHardTerms, precision: Precision) -> Tensor:
    """[M, 5] float64: hardest positive, hardest negative, value, pair weights of the one and of the other."""
    x_dot_ND = x_ND.to(precision.rows)
    square_N = row_squares(x_dot_ND)
    broken = square_N.sum() * 0  # NaN where a row is not finite: a minimum over integers would hide it
    if terms.distance == "cosine":
        square_N.fill_(1)
    packed = precision.rows == torch.bfloat16  # the mantissa's low bits mean little there
    best_CM, place_CM = nearest_negatives(x_dot_ND, square_N[rows.order_N], rows, precision, packed=packed)
    row_2M, measure_2M = pick_pairs(x_ND, rows, best_CM, place_CM, terms.distance == "cosine")
    if terms.distance == "cosine":
        distance_2M = 1 + measure_2M
    else:
        distance_2M = measure_2M.sqrt() if terms.distance == "euclidean" else measure_2M
    valid_M = _valid(rows)[rows.anchor_M.long()]
    gap_M = torch.where(valid_M, distance_2M[0] - distance_2M[1], 0)
    slope_M = terms.hinge_gradient(gap_M) * valid_M + broken
    value_M = torch.where(valid_M, terms.hinge(gap_M), 0) + broken
    toward_M, away_M = (
        torch.where(valid_M, slope_M * gradient_per_difference(d_M, terms), 0) for d_M in distance_2M
    )
    return torch.stack([n.double() for n in (row_2M[0], row_2M[1], value_M, toward_M, away_M)], 1)


def nearest_negatives(
    x_ND: Tensor, square_N: Tensor, rows: SortedRows, precision: Precision, *, packed: bool
) -> tuple[Tensor, Tensor]:
    """([C, M] least |a|^2 + |b|^2 - 2 a.b, as packed int32 or in the compute dtype; [C, M] int32 place).

    square_N: |b|^2 by place, in the compute dtype. `packed` is for float32 accumulators.
    """
    (places, columns), anchors = x_ND.shape, len(rows.anchor_M)
    tile, (_, acc) = tile_shape(columns, x_ND.dtype), accumulator(x_ND.dtype)
    tiles_per_chunk, chunks = column_chunks(anchors, places, tile, processors(x_ND.device))
    if x_ND.is_cuda and chunks < SIDE_BY_SIDE and SIDE_BY_SIDE * anchors * 8 <= PARTIAL_BYTES:
        tiles_per_chunk = triton.cdiv(triton.cdiv(places, tile.block_n), SIDE_BY_SIDE)
        chunks = triton.cdiv(triton.cdiv(places, tile.block_n), tiles_per_chunk)
    place_CM = rows.anchor_M.new_empty((chunks, anchors))
    best_CM = torch.empty_like(place_CM) if packed else square_N.new_empty((chunks, anchors))
    if anchors:
        negatives_program[(triton.cdiv(anchors, tile.block_m) * chunks,)](
            x_ND, square_N, rows.order_N, rows.anchor_M, rows.start_N, rows.stop_N, best_CM, place_CM,
            anchors, places, columns, tiles_per_chunk, chunks,
            PACKED=packed, **tile_options(tile, columns, precision, acc),
        )  # fmt: skip
    return best_CM, place_CM


def pick_pairs(
    x_ND: Tensor, rows: SortedRows, best_CM: Tensor, place_CM: Tensor, cosine: bool
) -> tuple[Tensor, Tensor]:
    """[2, M] rows and measures of each anchor's farthest positive and nearest negative."""
    (chunks, anchors), columns = best_CM.shape, x_ND.shape[1]
    dtype, acc = accumulator(x_ND.dtype)
    row_2M, measure_2M = rows.order_N.new_empty((2, anchors)), x_ND.new_empty((2, anchors), dtype=dtype)
    if anchors:
        picks_program[(triton.cdiv(anchors, PICKS_ROWS),)](
            x_ND, rows.order_N, rows.anchor_M, rows.start_N, rows.stop_N, best_CM, place_CM,
            row_2M[0], row_2M[1], measure_2M[0], measure_2M[1], anchors, columns, chunks,
            BLOCK_M=PICKS_ROWS, BLOCK_D=_slab(columns), COSINE=cosine, ACC=acc, num_warps=4,
        )  # fmt: skip
    return row_2M, measure_2M


def pairs_gradient(x_ND: Tensor, other_2N: Tensor, weight_2N: Tensor, own: slice, cosine: bool) -> Tensor:
    """[B, D] gradient of sum_k weight_k d(x_k, x_other_k) of both kinds of pair, on the own rows."""
    anchor_2N = torch.arange(len(x_ND), device=x_ND.device).expand_as(other_2N)
    row, opposite = torch.cat([anchor_2N, other_2N]).flatten(), torch.cat([other_2N, anchor_2N]).flatten()
    weight = torch.cat([weight_2N, weight_2N]).flatten()
    rows = own.stop - own.start
    # An inactive hinge costs nothing: its pairs, like those of other ranks' rows, go behind the last own row.
    ours = (weight != 0) & (row >= own.start) & (row < own.stop)
    row, order = torch.where(ours, row - own.start, rows).sort(stable=True)
    first = torch.searchsorted(row, torch.arange(rows + 1, device=row.device))
    gradient_BD = x_ND.new_empty((rows, x_ND.shape[1]))
    if rows:
        slab = _slab(x_ND.shape[1])
        pairs_gradient_program[(rows, triton.cdiv(x_ND.shape[1], slab))](
            x_ND, first, opposite[order], weight[order], gradient_BD, own.start, x_ND.shape[1],
            BLOCK_D=slab, COSINE=cosine, ACC=accumulator(x_ND.dtype)[1], num_warps=4,
        )  # fmt: skip
    return gradient_BD


def variants(columns: int, precision_name: str, *, amd: bool = False) -> list[Variant]:
    """What a batch of `columns` columns compiles under a preset."""
    precision = PRECISIONS[precision_name]
    rows, acc = precision.rows, accumulator(precision.rows)[1]
    tiles = tile_options(tile_shape(columns, rows, amd=amd), columns, precision, acc)
    packed = rows == torch.bfloat16
    best = {"best_ptr": "*i32" if packed else "*fp32", "best_place_ptr": "*i32"}
    slabs = {"BLOCK_D": _slab(columns), "COSINE": False, "ACC": acc, "num_warps": 4}
    picked = dict.fromkeys(("positive_ptr", "negative_ptr"), "*i64")
    return [
        Variant.of(negatives_program, rows, {"PACKED": packed, **tiles}, **best),
        Variant.of(picks_program, torch.float32, {"BLOCK_M": PICKS_ROWS, **slabs}, **best, **picked),
        Variant.of(pairs_gradient_program, torch.float32, slabs, first_ptr="*i64", opposite_ptr="*i64"),
    ]


def _slab(columns: int) -> int:
    return min(max(int(triton.next_power_of_2(columns)), 16), SLAB_COLUMNS)
