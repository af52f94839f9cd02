"""The forward programs alone: one pass over the tiles, beside the product of the same rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from ...batch_hard.triton import nearest_negatives
from ...fused_rows import row_norms
from ...logsumexp.exponent import Exponent
from ...logsumexp.triton import negative_partials
from ...precision import choose_precision
from ...ranking.terms import RankingTerms
from ...ranking.triton_forward import least_positives, push_away
from ...ranking.triton_pairs import upper_pass
from ...ranks import RankLayout
from ...triton_tiles import dot_rows, sort_by_identity
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
    x_dot_ND = dot_rows(x_ND, precision)
    if batch.kernel == "batch_hard":
        square_N = row_norms(x_dot_ND, inverse=False)
        packed = precision.rows == torch.bfloat16
        return lambda: nearest_negatives(x_dot_ND, square_N, rows, precision, packed=packed)
    if batch.kernel == "ranking":
        terms = RankingTerms(batch.constants["margin"], 2.0, "all", True)
        inverse_N = row_norms(x_ND, inverse=True)
        upper = upper_pass(rows, x_dot_ND.shape[1], terms, precision, inverse_N)
        _, _, t_N = least_positives(x_ND, inverse_N, rows, terms, upper)
        return lambda: push_away(x_dot_ND, inverse_N, rows, t_N, terms, precision, upper)
    exponent = EXPONENTS[batch.kernel]
    bounded = exponent.margin is None  # rows of length 1, a moderate scale
    return lambda: negative_partials(x_dot_ND, rows, exponent, precision, bounded=bounded)
