"""The log-sum-exp losses in Triton: O(N D) memory, tiles of S = x x^T that never leave the chip. Not yet run
on a GPU.

Forward: one pass over the tiles keeps a running maximum and sum per anchor and chunk of columns, merged in
fixed order. Backward: the tiles are computed again, G_ab + G_ba of negatives goes to a bounded workspace, and
one matrix product per panel of candidates turns it into the gradient. The few pairs inside an identity are
walked by programs of their own, forward and backward, on the rows as given, in full precision. Nothing is
atomic: the same bits from run to run. Where `symmetric_tiles.why_rectangular` has no reason, both go over the
upper triangle of S alone (symmetric_programs.py, triton_bands.py). The algebra, the numbers of an anchor and
their exchange between the ranks are those of chunked.py.

Names: places are those of `SortedRows`. B = this rank's rows, M = the same as sorted anchors, N = rows of all
ranks, D = columns, C = chunks, b = anchors of a band, c = candidates of a panel, P = rows of the largest
identity.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
import triton
from torch import Tensor

from ..blocks import WORKSPACE_BYTES
from ..fused_rows import fused_unit_rows
from ..guards import compute_dtype, first_order_only
from ..precision import PRECISIONS, Precision
from ..ranks import RankLayout, gather_rows
from ..symmetric_tiles import symmetric_tile, triangle_of, why_rectangular
from ..triton_tiles import (
    INTERPRETED,
    Chip,
    SortedRows,
    TileShape,
    Variant,
    accumulator,
    chip_of,
    column_chunks,
    dot_rows,
    sort_by_identity,
    tile_options,
    tile_shape,
)
from .exponent import Exponent
from .programs import (
    NUMBERS,
    merge_program,
    negatives_program,
    numbers_program,
    pairs_program,
    positives_program,
    pulls_program,
)
from .symmetric_programs import symmetric_negatives_program
from .terms import LogSumExpTerms
from .triton_bands import PANEL_COLUMNS, add_negatives_, exponent_constants, pairs_tile

IDENTITY_ROWS = 128 if INTERPRETED else 32  # anchors per program of the two that walk identities
MERGE_ROWS = 128
PARTIAL_BYTES_PER_ANCHOR = 8  # top, sum


def log_sum_exp_loss(
    rows_BD: Tensor, labels_B: Tensor, terms: LogSumExpTerms, layout: RankLayout, precision: Precision
) -> Tensor:
    """Collectives in the forward, none in the backward: rows, labels, and four numbers per anchor.

    One host sync in the forward: how many rows the largest identity has.
    """
    if terms.normalize:
        rows_BD = fused_unit_rows(rows_BD)
    else:
        rows_BD = rows_BD.to(compute_dtype(rows_BD.dtype))
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
        widest = int((rows.stop_N - rows.start_N).max()) if len(x_ND) else 0  # host sync
        x_dot_ND = dot_rows(x_ND, precision)
        # Exponents of rows that are not normalised may be long: what is done with them per anchor is in
        # float64.
        exact = not terms.normalize
        dtype = torch.float64 if exact else x_ND.dtype
        A_M = _negatives(x_dot_ND, rows, terms.exponent, precision, dtype, bounded=terms.bounded)
        own_B4 = x_ND.new_empty((rows_BD.shape[0], NUMBERS.value), dtype=torch.float64)
        for band in _bands(rows, 40 * widest):
            S_bP, _, positive_bP = _positives(x_ND, rows, band, widest)
            numbers = terms.anchor(A_M[band], S_bP.to(A_M.dtype), positive_bP)
            _write_numbers_(own_B4, rows, band, *numbers)
        numbers_N4 = gather_rows(own_B4, layout)
        # The same sum over the same gathered numbers on every rank, so the value is equal to the last bit.
        sums_2 = numbers_N4[:, :2].sum(0)
        valid_anchors = sums_2[1].clamp(min=1)
        ctx.rows, ctx.terms, ctx.layout, ctx.precision, ctx.widest = rows, terms, layout, precision, widest
        ctx.save_for_backward(x_ND, x_dot_ND, numbers_N4, valid_anchors)
        return (sums_2[0] / valid_anchors).to(rows_BD.dtype)

    @staticmethod
    @first_order_only
    def backward(ctx: Any, of_loss: Tensor) -> tuple[Tensor, None, None, None, None]:
        x_ND, x_dot_ND, numbers_N4, valid_anchors = ctx.saved_tensors
        layout: RankLayout = ctx.layout
        rows: SortedRows = ctx.rows
        terms: LogSumExpTerms = ctx.terms
        scale = (of_loss * layout.world_size) / valid_anchors  # W: see maskreid_kernels.ranks
        level_N = numbers_N4[:, 3].to(torch.float64 if not terms.normalize else x_ND.dtype)
        size = (layout.rows_per_rank[layout.rank], x_ND.shape[1])
        half = why_rectangular(size[0], len(x_ND), x_ND.device) is None
        gradient_BD = x_ND.new_zeros(size) if half else x_ND.new_empty(size)
        panel_bytes = min(PANEL_COLUMNS, len(x_ND)) * x_dot_ND.element_size()
        for band in _bands(rows, panel_bytes + 56 * ctx.widest):
            S_bP, row_bP, positive_bP = _positives(x_ND, rows, band, ctx.widest)
            level_2bP = torch.stack([level_N[rows.row(band), None].expand_as(S_bP), level_N[row_bP]])
            pull_2bP = terms.pull(S_bP.to(level_N.dtype), level_2bP, positive_bP.sum(1, keepdim=True))
            band_bD = _sum_of_pulls(x_ND, rows, band, pull_2bP.sum(0).to(x_ND.dtype))  # both roles
            below_ND = gradient_BD if half else None
            add_negatives_(band_bD, x_dot_ND, rows, band, numbers_N4, terms, ctx.precision, below_ND)
            if half:  # what the bands before this one left there
                band_bD += gradient_BD.index_select(0, rows.own_row(band))
            gradient_BD.index_copy_(0, rows.own_row(band), band_bD)
        return gradient_BD.mul_(scale), None, None, None, None


def _bands(rows: SortedRows, bytes_per_row: int) -> Iterator[slice]:
    """Slices covering this rank's anchors, each of at most WORKSPACE_BYTES (one anchor at least)."""
    anchors, height = len(rows.anchor_M), max(WORKSPACE_BYTES // max(bytes_per_row, 1), 1)
    for start in range(0, anchors, height):
        yield slice(start, min(start + height, anchors))


def _negatives(
    x_ND: Tensor,
    rows: SortedRows,
    exponent: Exponent,
    precision: Precision,
    dtype: torch.dtype,
    *,
    bounded: bool,
) -> Tensor:
    """A [M] in `dtype`, -inf where an anchor has no negative."""
    top_CM, sum_CM = negative_partials(x_ND, rows, exponent, precision, bounded=bounded)
    chunks, M = sum_CM.shape
    A_M = sum_CM.new_empty(M, dtype=dtype)
    if M:
        options = _merge_options(x_ND.dtype)
        merge_program[(triton.cdiv(M, MERGE_ROWS),)](top_CM, sum_CM, A_M, M, chunks, **options)
    return A_M


def _write_numbers_(
    own_B4: Tensor, rows: SortedRows, band: slice, value_b: Tensor, log_weight_b: Tensor, level_b: Tensor
) -> None:
    anchor_b = rows.anchor_M[band]
    numbers_program[(triton.cdiv(len(anchor_b), MERGE_ROWS),)](
        value_b, log_weight_b, level_b, anchor_b, rows.order_N, rows.start_N, rows.stop_N, own_B4,
        len(anchor_b), len(rows.order_N), rows.own.start, BLOCK_M=MERGE_ROWS, num_warps=4,
    )  # fmt: skip


def negative_partials(
    x_ND: Tensor, rows: SortedRows, exponent: Exponent, precision: Precision, *, bounded: bool = False
) -> tuple[Tensor | None, Tensor]:
    """top, sum [C, M]: the one pass over the tiles; sum over a chunk's negatives of 2^(f log2(e) - top), top
    None for 0.

    bounded: no exponential overflows, see `LogSumExpTerms`.
    """
    (N, D), M = x_ND.shape, len(rows.anchor_M)
    chip, (dtype, acc) = chip_of(x_ND.device), accumulator(x_ND.dtype)
    options: dict[str, Any] = {"CIRCLE": exponent.margin is not None}
    given = (x_ND, rows.anchor_M, rows.order_N, rows.start_N, rows.stop_N)
    tile = sums_tile(D, x_ND.dtype, chip, bounded=bounded)
    triangle = triangle_of(rows, tile, PARTIAL_BYTES_PER_ANCHOR)
    if triangle is not None:
        sum_CM = x_ND.new_empty((triangle.blocks, M), dtype=dtype)
        top_CM = None if bounded else torch.empty_like(sum_CM)
        symmetric_negatives_program[(triangle.programs,)](
            *given, top_CM, sum_CM, N, D, triangle.side, triangle.blocks, *exponent_constants(exponent),
            BOUNDED=bounded, **options, **tile_options(tile, D, precision, acc),
        )  # fmt: skip
        return top_CM, sum_CM
    tile = tile_shape(D, x_ND.dtype, chip=chip, wide=True)
    tiles_per_chunk, chunks = column_chunks(M, N, tile, x_ND.device, PARTIAL_BYTES_PER_ANCHOR)
    top_CM, sum_CM = (x_ND.new_empty((chunks, M), dtype=dtype) for _ in range(2))
    if M:
        negatives_program[(triton.cdiv(M, tile.block_m) * chunks,)](
            *given, top_CM, sum_CM, M, N, D, tiles_per_chunk, chunks, *exponent_constants(exponent),
            **options, **tile_options(tile, D, precision, acc),
        )  # fmt: skip
    return top_CM, sum_CM


def _positives(x_ND: Tensor, rows: SortedRows, band: slice, widest: int) -> tuple[Tensor, Tensor, Tensor]:
    """(S_bP, row_bP int64, positive_bP bool): an anchor's identity by row, itself and filled-up columns not
    positive."""
    anchor_b, D = rows.anchor_M[band], x_ND.shape[1]
    S_bP = x_ND.new_empty((len(anchor_b), widest))
    row_bP = rows.order_N.new_empty((len(anchor_b), widest))
    positives_program[(triton.cdiv(len(anchor_b), IDENTITY_ROWS),)](
        x_ND, anchor_b, rows.order_N, rows.start_N, rows.stop_N, S_bP, row_bP, len(anchor_b), D, widest,
        **identity_options(D, x_ND.dtype),
    )  # fmt: skip
    return S_bP, row_bP, row_bP != rows.row(band)[:, None]


def _sum_of_pulls(x_ND: Tensor, rows: SortedRows, band: slice, pull_bP: Tensor) -> Tensor:
    """sum_i pull_bP x_i over each anchor's identity, [b, D]."""
    anchor_b, D = rows.anchor_M[band], x_ND.shape[1]
    sum_bD = x_ND.new_empty((len(anchor_b), D))
    options = identity_options(D, x_ND.dtype)
    pulls_program[(triton.cdiv(len(anchor_b), IDENTITY_ROWS), triton.cdiv(D, options["BLOCK_D"]))](
        x_ND, anchor_b, rows.order_N, rows.start_N, rows.stop_N, pull_bP, sum_bD, len(anchor_b),
        len(x_ND), D, pull_bP.shape[1], **options,
    )  # fmt: skip
    return sum_bD


def sums_tile(columns: int, rows: torch.dtype, chip: Chip, *, bounded: bool) -> TileShape:
    """The tile of the symmetric pass: rows in steps where whole ones and two tops leave too few registers."""
    tile = symmetric_tile(columns, rows, chip)
    in_steps = chip == "rows" and not bounded and tile.block_d > 64
    return replace(tile, block_d=64, one_slab=False) if in_steps else tile


def identity_options(columns: int, rows: torch.dtype) -> dict[str, Any]:
    """The constants of the programs that walk identities."""
    depth = min(triton.next_power_of_2(columns), 64)
    return {"BLOCK_M": IDENTITY_ROWS, "BLOCK_D": depth, "ACC": accumulator(rows)[1], "num_warps": 4}


def _merge_options(rows: torch.dtype) -> dict[str, Any]:
    return {"BLOCK_M": MERGE_ROWS, "ACC": accumulator(rows)[1], "num_warps": 4}


def variants(columns: int, precision_name: str, chip: Chip = "large") -> list[Variant]:
    """What a batch of `columns` columns compiles under a preset: linear exponents, then circle's."""
    precision = PRECISIONS[precision_name]
    rows, acc = precision.rows, accumulator(precision.rows)[1]
    wide_tiles = tile_options(tile_shape(columns, rows, chip=chip, wide=True), columns, precision, acc)
    identity = identity_options(columns, torch.float32)
    types = {"row_ptr": "*i64", "G_ptr": "*bf16" if rows == torch.bfloat16 else "*fp32"}
    compiled = [
        Variant.of(merge_program, torch.float32, _merge_options(torch.float32)),
        Variant.of(numbers_program, torch.float32, {"BLOCK_M": MERGE_ROWS, "num_warps": 4}),
        Variant.of(positives_program, torch.float32, identity, **types),
        Variant.of(pulls_program, torch.float32, identity),
    ]
    for circle in (False, True):
        compiled.append(Variant.of(negatives_program, rows, {"CIRCLE": circle, **wide_tiles}))
        linear = {"BOUNDED": not circle} | ({} if circle else {"top_ptr": None})
        tile = sums_tile(columns, rows, chip, bounded=not circle)
        symmetric = {"CIRCLE": circle, **linear, **tile_options(tile, columns, precision, acc)}
        compiled.append(Variant.of(symmetric_negatives_program, rows, symmetric))
        for exact in (False, True):
            tiles = tile_options(pairs_tile(columns, rows, chip, exact=exact), columns, precision, acc)
            constants = {"CIRCLE": circle, "EXACT": exact, **tiles}
            compiled.append(Variant.of(pairs_program, rows, constants, **types))
    return compiled
