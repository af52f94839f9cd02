"""The ranking loss with candidates that are not the batch: the specification, and the form in blocks.

In blocks: O((N + M) D) memory, no N x M matrix. Forward: the least similar positives first, whose
similarities come of tiles of S; then the negatives inside their margin, from the same S where one tile holds
all references, else from the tiles again. Six numbers per anchor are gathered over the ranks. Backward: the
tiles again (crossed.py), with the pair gradients of chunked.py: those of one role, as a reference is nobody's
anchor.

Names: those of crossed.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..blocks import own_and_global_tiles
from ..crossed import (
    CrossedRows,
    Crossing,
    anchor_weights,
    gathered_rows,
    no_values,
    places_in_tile,
    product_in_tile,
    rows_gradients,
    rows_with_gradient,
    similarities_of_positives,
)
from ..guards import first_order_only
from ..ranks import gather_rows
from ..unit_rows import products, unit_rows
from .reference import values_of_anchors
from .terms import NEVER, RankingStatistics, RankingTerms, ranking_statistics, violations_


def specification(
    x_VD: Tensor, y_RD: Tensor, terms: RankingTerms, crossing: Crossing, *, per_anchor: bool = False
) -> tuple[Tensor, RankingStatistics]:
    """Plain autograd over N x M matrices. Every rank computes the whole loss (collectives: all rows)."""
    x_ND, y_MD = rows_with_gradient(x_VD, y_RD, crossing, terms.normalize)
    if len(x_ND) == 0:
        value_N, none = no_values(x_ND, y_MD), crossing.labels_N.bool()
        statistics = ranking_statistics(none, none, none, terms, x_ND.dtype)
    else:
        same_NM = crossing.labels_N[:, None] == crossing.labels_M
        value_N, statistics = values_of_anchors(products(x_ND, y_MD), same_NM, ~same_NM, terms)
    return value_N if per_anchor else value_N.sum() / crossing.counted, statistics


def chunked(
    x_VD: Tensor, y_RD: Tensor, terms: RankingTerms, crossing: Crossing, *, per_anchor: bool = False
) -> tuple[Tensor, RankingStatistics]:
    """Collectives in the forward, none in the backward: rows (`gathered_rows`), six numbers per anchor."""
    if terms.normalize:
        x_VD, y_RD = unit_rows(x_VD), unit_rows(y_RD)
    loss, *numbers = _CrossedLoss.apply(x_VD, y_RD, terms, crossing, per_anchor)
    return loss, RankingStatistics(*numbers)


class _CrossedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_VD: Tensor, y_RD: Tensor, terms: RankingTerms, crossing: Crossing, per_anchor: bool
    ) -> tuple[Tensor, ...]:
        rows = gathered_rows(x_VD, y_RD, crossing)
        own_V6 = x_VD.new_empty((len(x_VD), 6), dtype=torch.float64)  # float64 holds places exactly
        for block, among in crossing.blocks(crossing.anchors.own, *_bytes(x_VD)):
            own_V6[block] = _anchor_numbers(rows.x_VD[block], rows.y_MD, among, crossing, terms)
        numbers_N6 = gather_rows(own_V6, crossing.anchors)
        value_N, active_N = numbers_N6[:, 4], numbers_N6[:, 5]
        valid_N, negatives_N = torch.ones_like(value_N, dtype=torch.bool), crossing.negatives_N
        made = ranking_statistics(valid_N, negatives_N, active_N, terms, x_VD.dtype)
        outputs = (made.floor, made.active_negative_fraction, made.valid_anchors)
        ctx.mark_non_differentiable(*outputs)
        ctx.terms, ctx.crossing, ctx.per_anchor = terms, crossing, per_anchor
        ctx.save_for_backward(rows.x_VD, rows.x_ND, rows.y_MD, numbers_N6)
        # The same sum over the same gathered numbers on every rank, so the value is equal to the last bit.
        loss = value_N if per_anchor else value_N.sum() / crossing.counted
        return loss.to(x_VD.dtype), *outputs

    @staticmethod
    @first_order_only
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        x_VD, x_ND, y_MD, numbers_N6 = ctx.saved_tensors
        terms: RankingTerms = ctx.terms
        crossing: Crossing = ctx.crossing
        threshold_N1, log_Z_N1, pushed_N1 = numbers_N6[:, :3].to(x_VD.dtype)[..., None].unbind(1)
        least_N1 = numbers_N6[:, 3:4].long()
        pull_N1 = terms.pull / crossing.count_N[:, None].to(x_VD.dtype)
        place_P = torch.arange(crossing.widest, device=x_VD.device)

        def pair_gradients(S_bm: Tensor, place_bP: Tensor, among: slice) -> Tensor:
            G_bP = (S_bm.gather(1, place_bP) - 1) * pull_N1[among]
            G_bP -= pushed_N1[among] * (place_P == least_N1[among])
            G_bm = violations_(S_bm.add_(threshold_N1[among]), log_Z_N1[among], terms.bounded)
            return G_bm.scatter_(1, place_bP, G_bP)

        weight_N = anchor_weights(gradients[0], crossing, ctx.per_anchor)
        wanted = ctx.needs_input_grad[:2]
        rows = CrossedRows(x_VD, x_ND, y_MD)
        of_x, of_y = rows_gradients(rows, crossing, pair_gradients, weight_N, wanted, _bytes(x_VD))
        return of_x, of_y, None, None, None


def _bytes(x_VD: Tensor) -> tuple[int, int]:
    """By pair, a matrix and a mask of it; by place of a list of positives, four (int64 indices, masks and
    values).
    """
    return x_VD.element_size() + 1, 32


def _anchor_numbers(
    x_bD: Tensor, y_MD: Tensor, among: slice, crossing: Crossing, terms: RankingTerms
) -> Tensor:
    """[b, 6] float64: threshold, log Z, pushed mass, place of the least positive in its list, value,
    negatives inside.
    """
    index_bP, negatives_b = crossing.positives_of(among), crossing.negatives_N[among]
    positive_bP = index_bP < len(y_MD)
    S_bP, only_S_bm = similarities_of_positives(x_bD, y_MD, index_bP)
    least_b, least_place_b = S_bP.masked_fill(~positive_bP, torch.inf).min(1)  # the first of equals
    threshold_b = terms.margin - least_b

    active_b = torch.zeros_like(negatives_b)
    pushed_b, shift_b = torch.zeros_like(least_b), torch.zeros_like(least_b)
    never = NEVER if terms.bounded else -torch.inf
    for tile, _ in own_and_global_tiles(slice(0, len(y_MD))):
        gap_bm = product_in_tile(x_bD, y_MD[tile]) if only_S_bm is None else only_S_bm
        gap_bm.add_(threshold_b[:, None]).scatter_(1, places_in_tile(index_bP, tile), never)
        gap_bm[:, -1] = never
        inside_bm = gap_bm > 0
        active_b += inside_bm.sum(1)
        before_b, shift_b1 = shift_b, None
        if not terms.bounded:  # a running maximum
            shift_b = torch.maximum(shift_b, gap_bm.amax(1))
            shift_b1 = shift_b[:, None]
            pushed_b = pushed_b * torch.exp(before_b - shift_b)
        pushed_b = pushed_b + violations_(gap_bm, shift_b1, terms.bounded, inside_bm).sum(1)

    ones_b = 1 + (negatives_b - active_b if terms.negatives == "all" else torch.zeros_like(active_b))
    Z_b = pushed_b + ones_b * torch.exp(-shift_b)
    log_Z_b = shift_b + torch.log(Z_b)
    squares_b = (S_bP - 1).square_().mul_(positive_bP).sum(1)
    value_b = log_Z_b + squares_b * (terms.pull / 2) / crossing.count_N[among]
    numbers = (threshold_b, log_Z_b, pushed_b / Z_b, least_place_b, value_b, active_b)
    return torch.stack([number.double() for number in numbers], 1)
