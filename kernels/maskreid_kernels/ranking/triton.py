"""The ranking loss in Triton: no N x N matrix, one pass over S forward, and a backward that is exact and
sparse.

Forward: the least similar positives (O(N K D)), their thresholds gathered over the ranks, then one pass over
tiles of S, or of its upper triangle (triton_pairs.py), that sums the violating negatives and marks the pairs
inside the margin in either role. The weight of any other pair of negatives is exactly 0, so the backward
visits marked pairs only; for anchors whose marks are many, or did not fit their slots, it computes bands of
weights again and multiplies them (dense). Rows are read as they were given: S takes both rows' inverse norms
as factors, and no normalised copy is made. Sums of floats run in a fixed order, and only integers are atomic:
the same bits from run to run. Collectives in the forward only; see chunked.py for the algebra.

Not yet run on a GPU. Names: B = this rank's rows, M = the same rows as sorted anchors, N = rows of all ranks,
D = columns.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..fused_rows import row_norms
from ..guards import compute_dtype, first_order_only
from ..precision import PRECISIONS, Precision
from ..ranks import RankLayout, gather_rows
from ..triton_tiles import Chip, Variant, accumulator, dot_rows, sort_by_identity, tile_options
from .gradient_programs import dense_weights_program, gradient_program
from .programs import anchors_program, forward_program, positives_program
from .symmetric_programs import symmetric_forward_program
from .terms import RankingStatistics, RankingTerms
from .triton_backward import Saved, gradient
from .triton_forward import ANCHORS, anchor_numbers, least_positives, push_away, ranking_tile, row_options
from .triton_pairs import upper_pass, upper_tile


def ranking_loss(
    rows_BD: Tensor, labels_B: Tensor, terms: RankingTerms, layout: RankLayout, precision: Precision
) -> tuple[Tensor, RankingStatistics]:
    """Collectives in the forward, none in the backward: rows, labels, one number per anchor, then nine.

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
        inverse_N = row_norms(x_ND, inverse=True) if terms.normalize else None
        x_dot_ND = dot_rows(x_ND, precision)
        upper = upper_pass(rows, x_dot_ND.shape[1], terms, precision, inverse_N)
        least_row_M, squares_M, t_B = least_positives(x_ND, inverse_N, rows, terms, upper)
        t_N = gather_rows(t_B, layout)
        partials = push_away(x_dot_ND, inverse_N, rows, t_N, terms, precision, upper)
        numbers_B9, marks = anchor_numbers(rows, partials, least_row_M, squares_M, t_N, terms)
        numbers_N9 = gather_rows(numbers_B9, layout)
        # The same sum over the same gathered numbers on every rank, so the value is equal to the last bit.
        sums_9 = numbers_N9.sum(0)
        means_3 = sums_9[3:6] / sums_9[6:].clamp(min=1)
        dtype = compute_dtype(rows_BD.dtype)
        loss, floor, fraction = (means_3[which].to(dtype, copy=True) for which in range(3))
        valid_anchors = sums_9[6].long()

        ctx.saved = Saved(rows, inverse_N, t_N, numbers_N9, sums_9, marks, terms, layout)
        ctx.precision = precision
        ctx.set_materialize_grads(False)  # the statistics have none
        ctx.save_for_backward(x_ND, x_dot_ND)
        ctx.mark_non_differentiable(floor, fraction, valid_anchors)
        return loss, floor, fraction, valid_anchors

    @staticmethod
    @first_order_only
    def backward(
        ctx: Any, of_loss: Tensor | None, *of_statistics: None
    ) -> tuple[Tensor | None, None, None, None, None]:
        if of_loss is None:  # nothing flows into the loss
            return None, None, None, None, None
        x_ND, x_dot_ND = ctx.saved_tensors
        return gradient(x_ND, x_dot_ND, ctx.saved, of_loss, ctx.precision), None, None, None, None


def variants(columns: int, precision_name: str, chip: Chip = "large") -> list[Variant]:
    """What a batch of `columns` columns compiles under a preset, its rows given in the preset's dtype."""
    precision = PRECISIONS[precision_name]
    rows, acc = precision.rows, accumulator(precision.rows)[1]
    tiles = tile_options(ranking_tile(columns, rows, chip=chip), columns, precision, acc)
    types = dict.fromkeys(("mark_ptr", "listed_ptr", "least_row_ptr", "first_ptr"), "*i64")
    types |= dict.fromkeys(("active_ptr", "mark_count_ptr", "many_ptr"), "*i32")
    types["G_ptr"] = types["gradient_ptr"] = "*bf16" if rows == torch.bfloat16 else "*fp32"
    merge = {"BLOCK_M": ANCHORS, "ALL": True, "ACC": acc, "num_warps": 4}
    whole = row_options(columns, rows)
    upper = upper_tile(columns, rows, chip)
    pairs = {"sum_ptr": "*i64", "pair_ptr": "*i64", "found_ptr": "*i64"}
    of_upper = {"shift_ptr": None, "mark_count_ptr": None, "many_ptr": None}
    marks = {"first_ptr": None, "pushed_ptr": None}
    compiled = [
        Variant.of(positives_program, rows, whole, **types),
        Variant.of(anchors_program, rows, merge | {"t_ptr": None}, **types),
        Variant.of(anchors_program, rows, merge | of_upper, **types | pairs),
        Variant.of(
            symmetric_forward_program, rows, tile_options(upper, columns, precision, acc), **types | pairs
        ),
    ]
    for given in ({}, {"inverse_ptr": None}):  # normalised here, or not
        of_all = {"scale_ptr": None, "least_ptr": None}
        compiled.append(Variant.of(positives_program, rows, whole | given | of_all, **types))
        pushed = {"mark_ptr": None, "mark_count_ptr": None, "first_ptr": None}
        ways: list[dict[str, None]] = [{"listed_ptr": None} | marks, marks, pushed]
        if not given:
            ways += [{"listed_ptr": None, "mark_count_ptr": None, "pushed_ptr": None}]
            ways += [{"mark_count_ptr": None, "pushed_ptr": None}]
        for way in ways:
            compiled.append(Variant.of(gradient_program, rows, whole | given | way, **types))
        for bounded in (True, False) if not given else (False,):
            compiled.append(Variant.of(forward_program, rows, {"BOUNDED": bounded} | given | tiles, **types))
        compiled.append(Variant.of(dense_weights_program, rows, given | tiles, **types))
    return compiled
