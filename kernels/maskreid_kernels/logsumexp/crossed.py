"""The log-sum-exp losses with candidates that are not the batch: the specification, and the form in blocks.

In blocks: O((N + M) D) memory, no N x M matrix. Forward: a tile of S at a time, reduced at once to its share
of A, the log-sum-exp of f over the negatives, and to the similarities of the positives; from them the loss
makes three numbers per anchor (`terms.anchor`), which are gathered over the ranks. Backward: the tiles again
(crossed.py), dL(k)/dS_kj being exp(f(S_kj) + log_weight_k) f'(S_kj) on a negative j and `terms.pull` on a
positive.

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
)
from ..guards import first_order_only
from ..ranks import gather_rows
from ..unit_rows import products, unit_rows
from .exponent import least_exponent
from .terms import LogSumExpTerms


def specification(
    x_VD: Tensor, y_RD: Tensor, terms: LogSumExpTerms, crossing: Crossing, *, per_anchor: bool = False
) -> Tensor:
    """Plain autograd over N x M matrices. Every rank computes the whole loss (collectives: all rows)."""
    x_ND, y_MD = rows_with_gradient(x_VD, y_RD, crossing, terms.normalize)
    if len(x_ND) == 0:
        value_N = no_values(x_ND, y_MD)
    else:
        same_NM = crossing.labels_N[:, None] == crossing.labels_M
        value_N = terms.loss(products(x_ND, y_MD), same_NM, ~same_NM)
    return value_N if per_anchor else value_N.sum() / crossing.counted


def chunked(
    x_VD: Tensor, y_RD: Tensor, terms: LogSumExpTerms, crossing: Crossing, *, per_anchor: bool = False
) -> Tensor:
    """Collectives in the forward, none in the backward: rows (`gathered_rows`), three numbers per anchor."""
    if terms.normalize:
        x_VD, y_RD = unit_rows(x_VD), unit_rows(y_RD)
    loss: Tensor = _CrossedLoss.apply(x_VD, y_RD, terms, crossing, per_anchor)
    return loss


class _CrossedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_VD: Tensor, y_RD: Tensor, terms: LogSumExpTerms, crossing: Crossing, per_anchor: bool
    ) -> Tensor:
        rows = gathered_rows(x_VD, y_RD, crossing)
        own_V3 = x_VD.new_empty((len(x_VD), 3), dtype=torch.float64)
        for block, among in crossing.blocks(crossing.anchors.own, *_bytes(x_VD)):
            own_V3[block] = _anchor_numbers(rows.x_VD[block], rows.y_MD, crossing.positives_of(among), terms)
        numbers_N3 = gather_rows(own_V3, crossing.anchors)
        ctx.terms, ctx.crossing, ctx.per_anchor = terms, crossing, per_anchor
        ctx.save_for_backward(rows.x_VD, rows.x_ND, rows.y_MD, numbers_N3)
        # The same sum over the same gathered numbers on every rank, so the value is equal to the last bit.
        value_N = numbers_N3[:, 0]
        return (value_N if per_anchor else value_N.sum() / crossing.counted).to(x_VD.dtype)

    @staticmethod
    @first_order_only
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        x_VD, x_ND, y_MD, numbers_N3 = ctx.saved_tensors
        terms: LogSumExpTerms = ctx.terms
        crossing: Crossing = ctx.crossing
        log_weight_N, level_N = numbers_N3[:, 1], numbers_N3[:, 2].to(x_VD.dtype)
        high_N = log_weight_N.to(x_VD.dtype)
        rest_N = None
        if terms.exact_log_weight:
            rest_N = torch.where(high_N.isfinite(), log_weight_N - high_N, 0).to(
                x_VD.dtype
            )  # -inf: no weight

        def pair_gradients(S_bm: Tensor, place_bP: Tensor, among: slice) -> Tensor:
            S_bP = S_bm.gather(1, place_bP)
            slope = terms.exponent.slope(S_bm)
            weight_bm = terms.exponent.value_(S_bm).add_(high_N[among, None])
            if rest_N is not None:
                weight_bm.add_(rest_N[among, None])
            G_bm = weight_bm.clamp_(min=least_exponent(weight_bm.dtype)).exp_().mul_(slope)
            count_b1 = crossing.count_N[among, None]
            return G_bm.scatter_(1, place_bP, terms.pull(S_bP, level_N[among, None], count_b1))

        weight_N = anchor_weights(gradients[0], crossing, ctx.per_anchor)
        wanted = ctx.needs_input_grad[:2]
        rows = CrossedRows(x_VD, x_ND, y_MD)
        of_x, of_y = rows_gradients(rows, crossing, pair_gradients, weight_N, wanted, _bytes(x_VD))
        return of_x, of_y, None, None, None


def _bytes(x_VD: Tensor) -> tuple[int, int]:
    """By pair, two matrices; by place of a list of positives, five (int64 indices, masks and values)."""
    return 2 * x_VD.element_size(), 40


def _anchor_numbers(x_bD: Tensor, y_MD: Tensor, index_bP: Tensor, terms: LogSumExpTerms) -> Tensor:
    """`LogSumExpTerms.anchor` of a block's anchors, [b, 3] float64."""
    A_b = x_bD.new_full((len(x_bD),), -torch.inf)
    S_bP = x_bD.new_zeros(index_bP.shape)
    for tile, _ in own_and_global_tiles(slice(0, len(y_MD))):
        place_bP = places_in_tile(index_bP, tile)
        S_bm = product_in_tile(x_bD, y_MD[tile])
        S_bP += S_bm.gather(1, place_bP)  # 0 where the positive is in another tile
        f_bm = terms.exponent.value_(S_bm).scatter_(1, place_bP, -torch.inf)
        f_bm[:, -1] = -torch.inf
        top_b1 = f_bm.amax(1, keepdim=True).clamp(min=torch.finfo(f_bm.dtype).min)  # no negative: -inf
        sum_b1 = f_bm.sub_(top_b1).clamp_(min=least_exponent(f_bm.dtype)).exp_().sum(1, keepdim=True)
        A_b = torch.logaddexp(A_b, sum_b1.log().add_(top_b1).squeeze(1))
    numbers = terms.anchor(A_b, S_bP, index_bP < len(y_MD))
    return torch.stack([number.double() for number in numbers], 1)
