"""The passes over the upper triangle of S beside the rectangular ones: whether they agree, and which is
faster.

What these figures decide is whether the GPU's name goes into `symmetric_tiles.VERIFIED`, and into that of
`batch_hard/specialised.py`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from ...batch_hard.specialised import SWITCH as SPECIALISED
from ...batch_hard.specialised import why_not_specialised
from ...symmetric_tiles import SWITCH
from ..measure import gradient, relative_error
from .passes import forward_pass
from .results import Figure
from .setting import Batch, Setting, timed

# With the ranking loss's share of violators.
KERNELS = (("batch_hard", None), ("n_pair", None), ("circle", None), ("ranking", 0.001), ("ranking", 0.5))
# Times the product.
BARS = {("batch_hard", 2048, None): 0.7, ("ranking", 2048, 0.001): 1.2, ("ranking", 2048, 0.5): 2.4}


def symmetric(setting: Setting) -> Iterator[Figure]:
    """Each loss that has a symmetric pass, 65536 rows at both widths, with the pass switched off and on; of
    batch-hard also the one with specialised warps, where it would run.
    """
    for kernel, share in KERNELS:
        for columns in setting.widths:
            batch = Batch.of(setting, kernel, 65536, columns, share)
            with switched(symmetric="0", specialised="0"):
                rectangular = batch.ms(setting, batch.ours())
                expected = gradient(batch.ours(), batch.x_ND, batch.y_N)
            bases = Bases(batch.product_ms(setting).y50, rectangular.y50, expected)
            bar = BARS.get((kernel, columns, share))
            violators = "" if share is None else f", {100 * share:g} % violators"
            with switched(symmetric="1", specialised="0"):
                key = f"{kernel} symmetric, D = {columns}{violators}"
                yield from beside(setting, batch, key, bases, bar)
            with switched(symmetric="1", specialised="1"):
                rows, D = batch.x_ND.shape
                why = why_not_specialised(rows, rows, D, batch.x_ND.dtype, batch.x_ND.device)
                if kernel == "batch_hard" and why is None:
                    key = f"{kernel} specialised, D = {columns}"
                    yield from beside(setting, batch, key, bases, bar)
            del batch


@dataclass(frozen=True)
class Bases:
    """What figures are beside: ms of the product and of the loss as it was, and that loss's gradient."""

    product: float
    rectangular: float
    gradient: Tensor


def beside(setting: Setting, batch: Batch, key: str, bases: Bases, bar: float | None) -> Iterator[Figure]:
    """As things are switched. bar: times the product."""
    # Of distances within rounding another negative may be picked, rarely.
    found = relative_error(gradient(batch.ours(), batch.x_ND, batch.y_N), bases.gradient)
    agrees = Figure(f"{key}, gradient beside rectangular", found, "relative", active=batch.active)
    yield agrees.promised(0.05)
    yield Figure.of(f"{key}, forward pass", timed(setting, forward_pass(batch)), active=batch.active)
    ours = batch.ms(setting, batch.ours())
    yield Figure.of(key, ours, active=batch.active)
    ratio = Figure(f"{key}, to the product", ours.y50 / bases.product, "x", active=batch.active)
    yield ratio if bar is None else ratio.promised(bar)
    faster = bases.rectangular / ours.y50
    yield Figure(f"{key}, times faster than rectangular", faster, "x", active=batch.active)


@contextmanager
def switched(*, symmetric: str, specialised: str) -> Iterator[None]:
    """These passes on ("1") or off ("0") for a while, whatever the environment says."""
    wanted = {SWITCH: symmetric, SPECIALISED: specialised}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
