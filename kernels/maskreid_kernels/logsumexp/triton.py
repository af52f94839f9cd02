"""The log-sum-exp losses in Triton: O(N D) memory, tiles of S = x x^T that never leave the chip. Not yet run on a GPU.

Forward: one pass over the tiles keeps a running maximum and sum per anchor and chunk of columns, merged in fixed order.
Backward: the tiles are computed again, G_ab + G_ba of negatives goes to a bounded workspace, and one matrix product per
panel of candidates turns it into the gradient. The few pairs inside an identity are walked by programs of their own,
forward and backward, on the rows as given, in full precision. Nothing is atomic: the same bits from run to run. The
algebra, the three numbers per anchor and their exchange between the ranks are those of chunked.py.

Names: places are those of `SortedRows`. B = this rank's rows, M = the same as sorted anchors, N = rows of all ranks,
D = columns, C = chunks, b = anchors of a band, c = candidates of a panel, P = rows of the largest identity.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import triton
from torch import Tensor

from ..blocks import WORKSPACE_BYTES
from ..first_order import first_order_only
from ..inputs import without_autocast
from ..precision import PRECISIONS, Precision
from ..ranks import RankLayout, gather_rows
from ..triton_tiles import (
    INTERPRETED,
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
from .exponent import Exponent
from .programs import negatives_program, pairs_program, positives_program, pulls_program
from .terms import LogSumExpTerms

LOG2_E = math.log2(math.e)
PANEL_COLUMNS = 8192
IDENTITY_ROWS = 128 if INTERPRETED else 32  # anchors per program of the two that walk identities


def log_sum_exp_loss(
    rows_BD: Tensor, labels_B: Tensor, terms: LogSumExpTerms, layout: RankLayout, precision: Precision
) -> Tensor:
    """Collectives in the forward, none in the backward: rows, labels, and three numbers per anchor."""
    if terms.normalize:
        rows_BD = unit_rows(rows_BD)
    loss: Tensor = _LogSumExpLoss.apply(rows_BD, labels_B, terms, layout, precision)
    return loss


class _LogSumExpLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows_BD: Tensor,
        labels_B: Tensor,
        terms: LogSumExpTerms,
        layout: RankLayout,
        precision: Precision,
    ) -> Tensor:
        x_ND = gather_rows(rows_BD, layout).contiguous()
        rows = sort_by_identity(gather_rows(labels_B, layout), layout)
        count_N = (rows.stop_N - rows.start_N).long()
        widest = int(count_N.max()) if len(count_N) else 0  # host sync
        valid_N = (count_N > 1) & (count_N < len(count_N))
        x_dot_ND = x_ND.to(precision.rows)
        A_M = _negatives(x_dot_ND, rows, terms.exponent, precision)
        own_B3 = x_ND.new_empty((rows_BD.shape[0], 3), dtype=torch.float64)
        for band in _bands(rows, 40 * widest):
            place_b = rows.anchor_M[band].long()
            S_bP, _, positive_bP = _positives(x_ND, rows, band, widest)
            numbers_b3 = terms.anchor_numbers(A_M[band], S_bP, positive_bP, valid_N[place_b])
            own_B3[rows.order_N[place_b] - layout.own.start] = numbers_b3
        value_N, log_weight_N, level_N = gather_rows(own_B3, layout).unbind(1)
        valid_anchors = valid_N.sum()

        dtype = rows_BD.dtype
        ctx.rows, ctx.terms, ctx.layout, ctx.precision, ctx.widest = rows, terms, layout, precision, widest
        by_place = (log_weight_N[rows.order_N].to(dtype), level_N[rows.order_N].to(dtype), valid_N)
        ctx.save_for_backward(x_ND, x_dot_ND, valid_anchors, *by_place)
        # The same sum over the same gathered numbers on every rank, so the value is equal to the last bit.
        return (value_N.sum() / valid_anchors.clamp(min=1)).to(dtype)

    @staticmethod
    @first_order_only
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        x_ND, x_dot_ND, valid_anchors, log_weight_N, level_N, valid_N = ctx.saved_tensors
        layout: RankLayout = ctx.layout
        rows: SortedRows = ctx.rows
        terms: LogSumExpTerms = ctx.terms
        scale = gradients[0] * layout.world_size / valid_anchors.clamp(min=1)  # W: see maskreid_kernels.ranks
        count_N = (rows.stop_N - rows.start_N).long()
        gradient_BD = x_ND.new_empty((layout.rows_per_rank[layout.rank], x_ND.shape[1]))
        panel_bytes = min(PANEL_COLUMNS, len(x_ND)) * x_dot_ND.element_size()
        with without_autocast(x_ND.device):
            for band in _bands(rows, panel_bytes + 40 * ctx.widest):
                place_b = rows.anchor_M[band].long()
                S_bP, place_bP, positive_bP = _positives(x_ND, rows, band, ctx.widest)
                count_b1 = count_N[place_b, None] - 1
                pull_bP = terms.pull(S_bP, level_N[place_b, None], count_b1)
                pull_bP += terms.pull(S_bP, level_N[place_bP], count_b1)
                pull_bP = torch.where(positive_bP & valid_N[place_b, None], pull_bP, 0)
                band_bD = _sum_of_pulls(x_ND, rows, band, pull_bP)
                _add_negatives_(band_bD, x_dot_ND, rows, band, log_weight_N, terms.exponent, ctx.precision)
                gradient_BD[rows.order_N[place_b] - layout.own.start] = band_bD
        return gradient_BD.mul_(scale), None, None, None, None


def _bands(rows: SortedRows, bytes_per_row: int) -> Iterator[slice]:
    """Slices covering this rank's anchors, each of at most WORKSPACE_BYTES (one anchor at least)."""
    anchors, height = len(rows.anchor_M), max(WORKSPACE_BYTES // max(bytes_per_row, 1), 1)
    for start in range(0, anchors, height):
        yield slice(start, min(start + height, anchors))


def _negatives(x_ND: Tensor, rows: SortedRows, exponent: Exponent, precision: Precision) -> Tensor:
    """A [M], very low where an anchor has no negative."""
    (N, D), M = x_ND.shape, len(rows.anchor_M)
    tile, (dtype, acc) = tile_shape(D, x_ND.dtype), accumulator(x_ND.dtype)
    tiles_per_chunk, chunks = column_chunks(M, N, tile, processors(x_ND.device))
    top_CM, sum_CM = (x_ND.new_empty((chunks, M), dtype=dtype) for _ in range(2))
    if M:
        negatives_program[(triton.cdiv(M, tile.block_m), chunks)](
            x_ND, rows.anchor_M, rows.order_N, rows.start_N, rows.stop_N, top_CM, sum_CM, M, N, D,
            tiles_per_chunk, **exponent_options(exponent), **tile_options(tile, D, precision, acc),
        )  # fmt: skip
    top_M = top_CM.amax(0)
    sum_M = (sum_CM * torch.exp2(top_CM - top_M)).sum(0)
    return (top_M + sum_M.log2()) / LOG2_E


def _positives(x_ND: Tensor, rows: SortedRows, band: slice, widest: int) -> tuple[Tensor, Tensor, Tensor]:
    """(S_bP, place_bP int64, positive_bP bool): an anchor's identity by place, itself and filled-up places not positive."""
    anchor_b, D = rows.anchor_M[band], x_ND.shape[1]
    S_bP = x_ND.new_empty((len(anchor_b), widest))
    positives_program[(triton.cdiv(len(anchor_b), IDENTITY_ROWS),)](
        x_ND, anchor_b, rows.order_N, rows.start_N, rows.stop_N, S_bP, len(anchor_b), D, widest,
        **identity_options(D, x_ND.dtype),
    )  # fmt: skip
    anchor_b1 = anchor_b.long()[:, None]
    place_bP = rows.start_N[anchor_b1] + torch.arange(widest, device=x_ND.device)
    positive_bP = (place_bP < rows.stop_N[anchor_b1]) & (place_bP != anchor_b1)
    return S_bP, torch.where(positive_bP, place_bP, anchor_b1), positive_bP


def _sum_of_pulls(x_ND: Tensor, rows: SortedRows, band: slice, pull_bP: Tensor) -> Tensor:
    """sum_i pull_bP x_i over each anchor's identity, [b, D]."""
    anchor_b, D = rows.anchor_M[band], x_ND.shape[1]
    sum_bD = x_ND.new_empty((len(anchor_b), D))
    options = identity_options(D, x_ND.dtype)
    pulls_program[(triton.cdiv(len(anchor_b), IDENTITY_ROWS), triton.cdiv(D, options["BLOCK_D"]))](
        x_ND, anchor_b, rows.order_N, rows.start_N, rows.stop_N, pull_bP, sum_bD, len(anchor_b), D,
        pull_bP.shape[1], **options,
    )  # fmt: skip
    return sum_bD


def _add_negatives_(
    band_bD: Tensor,
    x_ND: Tensor,
    rows: SortedRows,
    band: slice,
    log_weight_N: Tensor,
    exponent: Exponent,
    precision: Precision,
) -> None:
    """Add sum_b (G_ab + G_ba) x_b over the negatives b of the band's anchors a, panel by panel of candidates."""
    anchor_b, (N, D) = rows.anchor_M[band], x_ND.shape
    tile, acc = tile_shape(D, x_ND.dtype), accumulator(x_ND.dtype)[1]
    weight_N = log_weight_N * LOG2_E
    for start in range(0, N, PANEL_COLUMNS):
        stop = min(start + PANEL_COLUMNS, N)
        G_bc = x_ND.new_empty((len(anchor_b), stop - start))
        pairs_program[(triton.cdiv(len(anchor_b), tile.block_m), triton.cdiv(stop - start, tile.block_n))](
            x_ND, anchor_b, rows.order_N, rows.start_N, rows.stop_N, weight_N, G_bc, len(anchor_b), start, stop,
            D, SLOPE=exponent.scale, **exponent_options(exponent), **tile_options(tile, D, precision, acc),
        )  # fmt: skip
        x_cD = x_ND.index_select(0, rows.order_N[start:stop])
        if x_ND.dtype == band_bD.dtype:
            band_bD.addmm_(G_bc, x_cD)
        else:
            band_bD += torch.mm(G_bc, x_cD, out_dtype=band_bD.dtype)


def exponent_options(exponent: Exponent) -> dict[str, float | None]:
    """The constants of f to the base 2."""
    return {"SCALE": exponent.scale * LOG2_E, "MARGIN": exponent.margin}


def identity_options(columns: int, rows: torch.dtype) -> dict[str, Any]:
    """The constants of the programs that walk identities."""
    depth = min(triton.next_power_of_2(columns), 64)
    return {"BLOCK_M": IDENTITY_ROWS, "BLOCK_D": depth, "ACC": accumulator(rows)[1], "num_warps": 4}


def variants(columns: int, precision_name: str, *, amd: bool = False) -> list[Variant]:
    """What a batch of `columns` columns compiles under a preset: linear exponents, then circle's."""
    precision = PRECISIONS[precision_name]
    rows, acc = precision.rows, accumulator(precision.rows)[1]
    tiles = tile_options(tile_shape(columns, rows, amd=amd), columns, precision, acc)
    identity = identity_options(columns, torch.float32)
    own = {"G_ptr": "*bf16" if rows == torch.bfloat16 else "*fp32"}
    compiled = [
        Variant.of(program, torch.float32, identity) for program in (positives_program, pulls_program)
    ]
    for exponent in (Exponent(10.0), Exponent(128.0, 0.25)):
        constants = {**exponent_options(exponent), **tiles}
        compiled.append(Variant.of(negatives_program, rows, constants))
        compiled.append(Variant.of(pairs_program, rows, {"SLOPE": exponent.scale, **constants}, **own))
    return compiled
