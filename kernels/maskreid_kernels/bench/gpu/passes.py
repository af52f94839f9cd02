"""The forward programs alone: one pass over the tiles, beside the product of the same rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from ...batch_hard.terms import row_squares
from ...batch_hard.triton import nearest_negatives
from ...logsumexp.exponent import Exponent
from ...logsumexp.triton import _negatives
from ...precision import choose_precision
from ...ranking.terms import RankingTerms
from ...ranking.triton_forward import least_positives, push_away
from ...ranks import RankLayout
from ...triton_tiles import SortedRows, sort_by_identity
from ...unit_rows import inverse_norms
from .results import Figure
from .setting import Batch, Setting, timed

EXPONENTS = {"n_pair": Exponent(10.0), "circle": Exponent(128.0, 0.25)}


def passes(setting: Setting) -> Iterator[Figure]:
    """Of all losses at both widths, the ranking loss's with few and with many pairs to mark."""
    for columns in setting.widths:
        for kernel, share in (
            ("batch_hard", None),
            ("ranking", 0.001),
            ("ranking", 0.5),
            ("n_pair", None),
            ("circle", None),
        ):
            batch = Batch.of(setting, kernel, 65536, columns, share)
            violators = "" if share is None else f", {100 * share:g} % violators"
            key = f"{kernel} forward pass, D = {columns}{violators}"
            yield Figure.of(key, timed(setting, forward_pass(batch)), active=batch.active)
            del batch


def forward_pass(batch: Batch) -> Callable[[], object]:
    """The launch of a loss's pass over the tiles, all that it needs made before."""
    x_ND = batch.x_ND.detach()
    rows = sort_by_identity(batch.y_N, RankLayout(None, 0, (len(x_ND),)))
    precision = choose_precision("auto", x_ND.dtype)
    x_dot_ND = x_ND.to(precision.rows)
    if batch.kernel == "batch_hard":
        square_N = row_squares(x_dot_ND)[rows.order_N]
        packed = precision.rows == torch.bfloat16
        return lambda: nearest_negatives(x_dot_ND, square_N, rows, precision, packed=packed)
    if batch.kernel == "ranking":
        terms = RankingTerms(batch.constants["margin"], 2.0, "all", True)
        inverse_N = inverse_norms(x_ND, torch.float32).squeeze(1)[rows.order_N]
        least_N, _, _ = least_positives(x_ND, inverse_N, rows)
        t_N = torch.where(_valid(rows), terms.margin - least_N, -torch.inf)
        return lambda: push_away(x_dot_ND, inverse_N, rows, t_N, terms, precision)
    return lambda: _negatives(x_dot_ND, rows, EXPONENTS[batch.kernel], precision)


def _valid(rows: SortedRows) -> torch.Tensor:
    count_N = rows.stop_N - rows.start_N
    return (count_N > 1) & (count_N < len(count_N))
