"""The ranking loss in Triton: no N x N matrix, one pass over S forward, and a backward that is exact and sparse.

Forward: the least similar positives (O(N K D)), their thresholds gathered over the ranks, then one pass over tiles of
S that sums the violating negatives and marks the pairs inside the margin in either role. The weight of any other pair
of negatives is exactly 0, so the backward visits marked pairs only; for anchors whose marks are many, or did not fit
their slots, it computes bands of weights again and multiplies them (dense). Rows are read as they were given: S takes
both rows' inverse norms as factors, and no normalised copy is made. Sums run in a fixed order and nothing is atomic:
the same bits from run to run. Collectives in the forward only; see chunked.py for the algebra.

Not yet run on a GPU. Names: B = this rank's rows, M = the same rows as sorted anchors, N = rows of all ranks,
D = columns.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..first_order import first_order_only
from ..inputs import compute_dtype, without_autocast
from ..precision import PRECISIONS, Precision
from ..ranks import RankLayout, gather_rows
from ..triton_tiles import Variant, accumulator, sort_by_identity, tile_options
from ..unit_rows import inverse_norms
from .gradient_programs import dense_weights_program, marks_gradient_program, positives_gradient_program
from .programs import forward_program, positives_program
from .terms import RankingStatistics, RankingTerms, ranking_statistics
from .triton_backward import gradient_bands
from .triton_forward import Saved, least_positives, push_away, ranking_tile, row_options


def ranking_loss(
    rows_BD: Tensor, labels_B: Tensor, terms: RankingTerms, layout: RankLayout, precision: Precision
) -> tuple[Tensor, RankingStatistics]:
    """Collectives in the forward, none in the backward: rows, labels, one number per anchor, then five.

    One host sync in the backward, to choose between marks and dense bands.
    """
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
        rows = sort_by_identity(gather_rows(labels_B, layout), layout)
        order_N, own_M, dtype = (
            rows.order_N,
            rows.anchor_row_M - layout.own.start,
            compute_dtype(rows_BD.dtype),
        )
        count_N = rows.stop_N - rows.start_N
        valid_N = (count_N > 1) & (count_N < len(order_N))
        inverse_N = inverse_norms(x_ND, dtype).squeeze(1)[order_N] if terms.normalize else None

        least_M, least_row_M, squares_M = least_positives(x_ND, inverse_N, rows)
        least_N = gather_rows(_to_own_rows(least_M, own_M), layout)[order_N]
        t_N = torch.where(valid_N, terms.margin - least_N, -torch.inf)
        x_dot_ND = x_ND.to(precision.rows)  # the rows themselves where they have that dtype
        push_M, shift_M, active_M, marks = push_away(x_dot_ND, inverse_N, rows, t_N, terms, precision)

        place_M = rows.anchor_M.long()
        valid_M, positives_M = valid_N[place_M], count_N[place_M] - 1
        ones_M = 1 + (len(order_N) - count_N[place_M] - active_M if terms.negatives == "all" else 0)
        z_M = push_M + ones_M * torch.exp(-shift_M)
        log_z_M = shift_M + torch.log(z_M)
        pull_M = squares_M * (terms.pull / 2) / positives_M.clamp(min=1)
        value_M = torch.where(valid_M, log_z_M + pull_M, 0)
        numbers_M5 = torch.stack(
            [n.double() for n in (log_z_M, push_M / z_M, least_row_M, value_M, active_M)], 1
        )  # float64 holds row numbers exactly
        numbers_N5 = gather_rows(_to_own_rows(numbers_M5, own_M), layout)
        # Summed in row order, as every rank does, so the value is equal to the last bit.
        valid_by_row_N = torch.empty_like(valid_N).index_copy_(0, order_N, valid_N)
        negatives_N = torch.empty_like(count_N).index_copy_(0, order_N, len(order_N) - count_N)
        statistics = ranking_statistics(valid_by_row_N, negatives_N, numbers_N5[:, 4], terms, dtype)
        loss = numbers_N5[:, 3].sum() / statistics.valid_anchors.clamp(min=1)

        log_z_N, pushed_N, least_row_N = (numbers_N5[:, column][order_N] for column in range(3))
        pull_N = torch.where(valid_N, terms.pull / (count_N - 1).clamp(min=1).to(dtype), 0)
        ctx.saved = Saved(
            rows, inverse_N, t_N, log_z_N.to(dtype), pushed_N.to(dtype), least_row_N.long(), pull_N, marks
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
        gradient_BD = x_ND.new_empty((layout.rows_per_rank[layout.rank], x_ND.shape[1]))
        with without_autocast(x_ND.device):
            for row_b, band_bD in gradient_bands(x_ND, x_dot_ND, saved, ctx.precision):
                if saved.inverse_N is not None:
                    _through_norm_(band_bD, x_ND[row_b])
                gradient_BD[row_b - layout.own.start] = band_bD.mul_(scale).to(gradient_BD.dtype)
        return gradient_BD, None, None, None, None


def _to_own_rows(values_M: Tensor, own_M: Tensor) -> Tensor:
    """Values of sorted anchors [M, ...] in the order of the rank's rows [B, ...]."""
    return torch.empty_like(values_M).index_copy_(0, own_M, values_M)


def _through_norm_(gradient_bD: Tensor, x_bD: Tensor) -> None:
    """In place: the gradient with respect to x / |x| becomes that with respect to x."""
    inverse_b1 = inverse_norms(x_bD, gradient_bD.dtype)
    unit_bD = x_bD.to(gradient_bD.dtype) * inverse_b1
    along_b1 = torch.linalg.vecdot(gradient_bD, unit_bD).unsqueeze(1)
    gradient_bD.addcmul_(unit_bD, along_b1, value=-1).mul_(inverse_b1)


def variants(columns: int, precision_name: str, *, amd: bool = False) -> list[Variant]:
    """What a batch of `columns` columns compiles under a preset, its rows given in the preset's dtype."""
    precision = PRECISIONS[precision_name]
    rows, acc = precision.rows, accumulator(precision.rows)[1]
    tiles = tile_options(ranking_tile(columns, rows, amd=amd), columns, precision, acc)
    marks = {"mark_ptr": "*i64", "listed_ptr": "*i64", "least_row_ptr": "*i64"}
    types = marks | dict.fromkeys(("active_ptr", "mark_count_ptr"), "*i32")
    types["G_ptr"] = "*bf16" if rows == torch.bfloat16 else "*fp32"
    compiled = []
    for given in ({}, {"inverse_ptr": None}):  # normalised here, or not
        for program in (positives_program, positives_gradient_program, marks_gradient_program):
            compiled.append(Variant.of(program, rows, row_options(columns, rows) | given, **types))
        for bounded in (True, False) if not given else (False,):
            compiled.append(Variant.of(forward_program, rows, {"BOUNDED": bounded} | given | tiles, **types))
        compiled.append(Variant.of(dense_weights_program, rows, given | tiles, **types))
    return compiled
