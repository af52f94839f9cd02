"""The passes over the upper triangle of S beside the rectangular ones: whether they agree, and which is
faster.

What these figures decide is whether the GPU's name goes into `symmetric_tiles.VERIFIED`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from ...symmetric_tiles import SWITCH
from ..measure import gradient, relative_error
from .passes import forward_pass
from .results import Figure
from .setting import Batch, Setting, timed

KERNELS = ("batch_hard", "n_pair", "circle")
BARS = {("batch_hard", 2048): 0.7}  # times the product


def symmetric(setting: Setting) -> Iterator[Figure]:
    """Each loss that has a symmetric pass, 65536 rows at both widths, with the pass switched off and on."""
    for kernel in KERNELS:
        for columns in setting.widths:
            batch = Batch.of(setting, kernel, 65536, columns)
            key = f"{kernel} symmetric, D = {columns}"
            product = batch.product_ms(setting)
            with switched("0"):
                rectangular = batch.ms(setting, batch.ours())
                expected = gradient(batch.ours(), batch.x_ND, batch.y_N)
            with switched("1"):
                # Of distances within rounding another negative may be picked, rarely.
                found = relative_error(gradient(batch.ours(), batch.x_ND, batch.y_N), expected)
                figure = Figure(f"{key}, gradient beside rectangular", found, "relative", active=batch.active)
                yield figure.promised(0.05)
                yield Figure.of(
                    f"{key}, forward pass", timed(setting, forward_pass(batch)), active=batch.active
                )
                ours = batch.ms(setting, batch.ours())
            yield Figure.of(key, ours, active=batch.active)
            ratio = Figure(f"{key}, to the product", ours.y50 / product.y50, "x", active=batch.active)
            bar = BARS.get((kernel, columns))
            yield ratio if bar is None else ratio.promised(bar)
            faster = rectangular.y50 / ours.y50
            yield Figure(f"{key}, times faster than rectangular", faster, "x", active=batch.active)
            del batch


@contextmanager
def switched(switch: str) -> Iterator[None]:
    """Symmetric passes on ("1") or off ("0") for a while, whatever the environment says."""
    before = os.environ.get(SWITCH)
    os.environ[SWITCH] = switch
    try:
        yield
    finally:
        if before is None:
            del os.environ[SWITCH]
        else:
            os.environ[SWITCH] = before
