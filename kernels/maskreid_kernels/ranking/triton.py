"""The ranking loss in Triton: no N x N matrix, one pass over S forward, and a backward that is exact and sparse.

Forward: the least similar positives (O(N K D)), their thresholds gathered over the ranks, then one pass over tiles of
S = x x^T that sums the violating negatives and records the pairs inside the margin in either role. The weight of any
other pair of negatives is exactly 0, so the backward needs only the recorded pairs; where they do not fit their slots
it computes bands of weights again and multiplies them (dense). Sums run in a fixed order and nothing is atomic: the
same bits from run to run. Collectives in the forward only; see chunked.py for the algebra.

Names: B = this rank's rows, M = the same rows as sorted anchors, N = rows of all ranks, D = columns, C = chunks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
from torch import Tensor

from ..first_order import first_order_only
from ..inputs import compute_dtype
from ..precision import PRECISIONS, Precision
from ..ranks import RankLayout, gather_rows
from ..triton_tiles import (
    INTERPRETED,
    SortedRows,
    TileShape,
    Variant,
    accumulator,
    column_chunks,
    processors,
    sort_by_identity,
    tile_options,
    tile_shape,
)
from ..unit_rows import unit_rows
from .programs import (
    dense_weights_program,
    forward_program,
    pairs_gradient_program,
    positives_gradient_program,
    positives_program,
)
from .terms import RankingStatistics, RankingTerms, ranking_statistics

# Bounds of what stands in memory beside rows and gradient: recorded pairs (8 bytes each in float32); a band of
# weights; a band of gradient rows.
PAIR_BYTES = 192 << 20
BAND_BYTES = 128 << 20
GRADIENT_BYTES = 64 << 20
# Beyond this share of all pairs, gathering rows pair by pair is slower than two matrix products (an estimate).
SPARSE_UP_TO = 1 / 64
FEW_PAIRS = 1 << 16
SLAB_COLUMNS = 256


@dataclass(frozen=True)
class Saved:
    """What the forward leaves to the backward beside the rows; [N] by place unless named otherwise."""

    sorted_rows: SortedRows
    t_N: Tensor
    log_z_N: Tensor
    pushed_N: Tensor
    least_row_N: Tensor
    pull_N: Tensor
    pair_place: Tensor  # [M, C, cap] int32
    pair_S: Tensor  # [M, C, cap]
    pair_count_MC: Tensor  # int32, beyond the cap where pairs did not fit


def ranking_loss(
    rows_BD: Tensor, labels_B: Tensor, terms: RankingTerms, layout: RankLayout, precision: Precision
) -> tuple[Tensor, RankingStatistics]:
    """Collectives in the forward, none in the backward: rows, labels, one number per anchor, then six.

    One host sync in the backward, to choose between the recorded pairs and the dense band.
    """
    if terms.normalize:
        rows_BD = unit_rows(rows_BD.to(compute_dtype(rows_BD.dtype)))
    loss, floor, fraction, valid = _RankingLoss.apply(rows_BD, labels_B, terms, layout, precision)
    return loss, RankingStatistics(floor, fraction, valid)


class _RankingLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows_BD: Tensor,
        labels_B: Tensor,
        terms: RankingTerms,
        layout: RankLayout,
        precision: Precision,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x_ND = gather_rows(rows_BD, layout).contiguous()
        sorted_rows = sort_by_identity(gather_rows(labels_B, layout), layout)
        order_N, own_M = sorted_rows.order_N, sorted_rows.anchor_row_M - layout.own.start
        count_N = sorted_rows.stop_N - sorted_rows.start_N
        valid_N = (count_N > 1) & (count_N < len(order_N))

        least_M, least_row_M, squares_M = _positives(x_ND, sorted_rows)
        least_N = gather_rows(_to_own_rows(least_M, own_M), layout)[order_N]
        t_N = torch.where(valid_N, terms.margin - least_N, -torch.inf)
        x_dot_ND = x_ND.to(precision.rows)
        push_M, shift_M, active_M, pairs = _push(x_dot_ND, sorted_rows, t_N, terms, precision)

        place_M = sorted_rows.anchor_M.long()
        valid_M, positives_M = valid_N[place_M], count_N[place_M] - 1
        ones_M = 1 + (len(order_N) - count_N[place_M] - active_M if terms.negatives == "all" else 0)
        z_M = push_M + ones_M * torch.exp(-shift_M)
        log_z_M = shift_M + torch.log(z_M)
        pull_M = squares_M * (terms.pull / 2) / positives_M.clamp(min=1)
        value_M = torch.where(valid_M, log_z_M + pull_M, 0)
        numbers_M5 = torch.stack(
            [n.double() for n in (log_z_M, push_M / z_M, least_row_M, value_M, active_M)], 1
        )
        numbers_N5 = gather_rows(_to_own_rows(numbers_M5, own_M), layout)
        # Summed in row order, as every rank does, so the value is equal to the last bit.
        valid_by_row_N = torch.empty_like(valid_N).index_copy_(0, order_N, valid_N)
        negatives_N = torch.empty_like(count_N).index_copy_(0, order_N, len(order_N) - count_N)
        dtype = compute_dtype(rows_BD.dtype)
        statistics = ranking_statistics(valid_by_row_N, negatives_N, numbers_N5[:, 4], terms, dtype)
        loss = numbers_N5[:, 3].sum() / statistics.valid_anchors.clamp(min=1)

        log_z_N, pushed_N, least_row_N = numbers_N5[order_N, :3].t().contiguous()
        pull_N = torch.where(valid_N, terms.pull / (count_N - 1).clamp(min=1).to(dtype), 0)
        ctx.saved = Saved(
            sorted_rows,
            t_N,
            log_z_N.to(dtype),
            pushed_N.to(dtype),
            least_row_N.long(),
            pull_N,
            *pairs,
        )
        ctx.layout, ctx.precision = layout, precision
        ctx.save_for_backward(x_ND, x_dot_ND, statistics.valid_anchors)
        outputs = (statistics.floor, statistics.active_negative_fraction, statistics.valid_anchors)
        ctx.mark_non_differentiable(*outputs)
        return (loss.to(dtype), *outputs)

    @staticmethod
    @first_order_only
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        x_ND, x_dot_ND, valid_anchors = ctx.saved_tensors
        saved: Saved = ctx.saved
        layout: RankLayout = ctx.layout
        scale = gradients[0] * layout.world_size / valid_anchors.clamp(min=1)  # W: see maskreid_kernels.ranks
        own_M = saved.sorted_rows.anchor_row_M - layout.own.start
        gradient_BD = x_ND.new_empty((len(own_M), x_ND.shape[1]))
        with torch.autocast(x_ND.device.type, enabled=False):
            sparse = _pairs_fit(saved)
            for band in _bands(len(own_M), x_ND.shape[1] * saved.t_N.element_size(), GRADIENT_BYTES):
                band_D = _positives_gradient(x_ND, saved, band)
                if sparse:
                    _add_pairs(band_D, x_dot_ND, saved, band)
                else:
                    _add_dense(band_D, x_dot_ND, saved, band, ctx.precision)
                gradient_BD[own_M[band]] = band_D.mul_(scale).to(gradient_BD.dtype)
        return gradient_BD, None, None, None, None


def _to_own_rows(values_M: Tensor, own_M: Tensor) -> Tensor:
    """Values of sorted anchors [M, ...] in the order of the rank's rows [B, ...]."""
    return torch.empty_like(values_M).index_copy_(0, own_M, values_M)


def _slab(columns: int) -> int:
    return min(max(int(triton.next_power_of_2(columns)), 16), SLAB_COLUMNS)


def _positives(x_ND: Tensor, rows: SortedRows) -> tuple[Tensor, Tensor, Tensor]:
    anchors, (dtype, acc) = len(rows.anchor_M), accumulator(x_ND.dtype)
    least_M, squares_M = (x_ND.new_empty(anchors, dtype=dtype) for _ in range(2))
    least_row_M = rows.order_N.new_empty(anchors)
    if anchors:
        positives_program[(anchors,)](
            x_ND, rows.order_N, rows.anchor_M, rows.start_N, rows.stop_N, least_M, least_row_M, squares_M,
            x_ND.shape[1], BLOCK_D=_slab(x_ND.shape[1]), ACC=acc, num_warps=4,
        )  # fmt: skip
    return least_M, least_row_M, squares_M


def _push(
    x_ND: Tensor, rows: SortedRows, t_N: Tensor, terms: RankingTerms, precision: Precision
) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Per anchor: pushed sum and its shift, negatives inside the margin; and the recorded pairs."""
    (places, columns), anchors = x_ND.shape, len(rows.anchor_M)
    tile, (dtype, acc) = _forward_tile(columns, x_ND.dtype), accumulator(x_ND.dtype)
    tiles_per_chunk, chunks = column_chunks(anchors, places, tile, processors(x_ND.device))
    cap = pair_cap(anchors, chunks, tiles_per_chunk * tile.block_n, 4 + dtype.itemsize)
    sum_CM, shift_CM = (x_ND.new_empty((chunks, anchors), dtype=dtype) for _ in range(2))
    active_CM, pair_count_MC = (
        rows.anchor_M.new_empty(shape) for shape in ((chunks, anchors), (anchors, chunks))
    )
    pair_place = rows.anchor_M.new_empty((anchors, chunks, cap))
    pair_S = x_ND.new_empty((anchors, chunks, cap), dtype=dtype)
    if anchors:
        forward_program[(triton.cdiv(anchors, tile.block_m), chunks)](
            x_ND, rows.order_N, rows.anchor_M, rows.start_N, rows.stop_N, t_N, sum_CM, shift_CM, active_CM,
            pair_place, pair_S, pair_count_MC, anchors, places, columns, tiles_per_chunk, cap,
            BOUNDED=terms.bounded, **tile_options(tile, columns, precision, acc),
        )  # fmt: skip
    shift_M = shift_CM.amax(0)
    push_M = (sum_CM * torch.exp(shift_CM - shift_M)).sum(0)
    return push_M, shift_M, active_CM.sum(0), (pair_place, pair_S, pair_count_MC)


def pair_cap(anchors: int, chunks: int, chunk_places: int, bytes_per_pair: int) -> int:
    """Slots per anchor and chunk: PAIR_BYTES in all, and no more than the sparse backward would be chosen for."""
    fits = PAIR_BYTES // (max(anchors, 1) * chunks * bytes_per_pair)
    # Chunks differ in how many pairs they hold: four times the average share.
    return max(min(fits, max(int(4 * SPARSE_UP_TO * chunk_places), 64), chunk_places), 1)


def _pairs_fit(saved: Saved) -> bool:
    """Whether the recorded pairs are all of them, and few enough. A host sync."""
    count_MC, cap = saved.pair_count_MC, saved.pair_place.shape[2]
    few = max(int(SPARSE_UP_TO * len(saved.t_N) * len(count_MC)), FEW_PAIRS)
    fits = (count_MC <= cap).all() & (count_MC.sum(dtype=torch.int64) <= few)
    return bool(fits)


def _bands(rows: int, bytes_per_row: int, limit: int) -> Iterator[slice]:
    height = max(limit // max(bytes_per_row, 1), 1)
    for first in range(0, rows, height):
        yield slice(first, min(first + height, rows))


def _positives_gradient(x_ND: Tensor, saved: Saved, band: slice) -> Tensor:
    rows, columns = saved.sorted_rows, x_ND.shape[1]
    dtype, acc = accumulator(x_ND.dtype)
    gradient = x_ND.new_empty((band.stop - band.start, columns), dtype=dtype)
    positives_gradient_program[(len(gradient),)](
        x_ND, rows.order_N, rows.anchor_M, rows.start_N, rows.stop_N, saved.pull_N, saved.least_row_N,
        saved.pushed_N, gradient, band.start, columns, BLOCK_D=_slab(columns), ACC=acc, num_warps=4,
    )  # fmt: skip
    return gradient


def _add_pairs(gradient: Tensor, x_ND: Tensor, saved: Saved, band: slice) -> None:
    rows, columns, slab = saved.sorted_rows, x_ND.shape[1], _slab(x_ND.shape[1])
    _, chunks, cap = saved.pair_place.shape
    pairs_gradient_program[(len(gradient), triton.cdiv(columns, slab))](
        x_ND, rows.order_N, rows.anchor_M, saved.t_N, saved.log_z_N, saved.pair_place, saved.pair_S,
        saved.pair_count_MC, gradient, band.start, columns, chunks, cap,
        BLOCK_D=slab, ACC=accumulator(x_ND.dtype)[1], num_warps=4,
    )  # fmt: skip


def _add_dense(gradient: Tensor, x_ND: Tensor, saved: Saved, band: slice, precision: Precision) -> None:
    """Bands of weights and a matrix product each; the weights stand in the rows' own dtype."""
    rows, (places, columns) = saved.sorted_rows, x_ND.shape
    tile, acc = tile_shape(columns, x_ND.dtype), accumulator(x_ND.dtype)[1]
    width = max(min(places, BAND_BYTES // (len(gradient) * x_ND.element_size())), tile.block_n)
    for first in range(0, places, width):
        stop = min(first + width, places)
        G = x_ND.new_empty((len(gradient), stop - first))
        dense_weights_program[
            (triton.cdiv(len(gradient), tile.block_m), triton.cdiv(stop - first, tile.block_n))
        ](
            x_ND, rows.order_N, rows.anchor_M, rows.start_N, rows.stop_N, saved.t_N, saved.log_z_N, G,
            band.start, len(gradient), first, stop - first, columns,
            **tile_options(tile, columns, precision, acc),
        )  # fmt: skip
        x_places = x_ND[rows.order_N[first:stop]]
        if x_ND.dtype == gradient.dtype:
            gradient.addmm_(G, x_places)
        else:
            gradient += torch.mm(G, x_places, out_dtype=gradient.dtype)


def _forward_tile(columns: int, rows: torch.dtype, *, amd: bool = torch.version.hip is not None) -> TileShape:
    """Recording pairs takes registers and shared memory: the forward's tile is half the others' and never whole rows."""
    tile = tile_shape(columns, rows, amd=amd)
    if INTERPRETED:
        return tile
    depth = min(tile.block_d, 64)
    block_n = tile.block_n if tile.block_m > 64 else 64
    return replace(tile, block_m=64, block_n=block_n, block_d=depth, one_slab=columns <= depth)


def variants(columns: int, precision_name: str, *, amd: bool = False) -> list[Variant]:
    """What a batch of `columns` columns compiles under a preset."""
    precision = PRECISIONS[precision_name]
    acc = accumulator(precision.rows)[1]
    tiles = tile_options(tile_shape(columns, precision.rows, amd=amd), columns, precision, acc)
    forward = tile_options(_forward_tile(columns, precision.rows, amd=amd), columns, precision, acc)
    slabs = {"BLOCK_D": _slab(columns), "ACC": acc, "num_warps": 4}
    counts = {"least_row_ptr": "*i64"}
    pairs = dict.fromkeys(("active_ptr", "pair_place_ptr", "pair_count_ptr"), "*i32")
    rows = precision.rows
    weights = {"G_ptr": "*bf16" if rows == torch.bfloat16 else "*fp32"}
    return [
        Variant.of(positives_program, torch.float32, slabs, **counts),
        Variant.of(forward_program, rows, {"BOUNDED": True, **forward}, **pairs),
        Variant.of(forward_program, rows, {"BOUNDED": False, **forward}, **pairs),
        Variant.of(positives_gradient_program, torch.float32, slabs, **counts),
        Variant.of(pairs_gradient_program, rows, slabs, **pairs),
        Variant.of(dense_weights_program, rows, tiles, **weights),
    ]
