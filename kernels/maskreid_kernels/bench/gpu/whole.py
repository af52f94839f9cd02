"""Whole losses, forward and backward, beside the product and beside what others run; and their error."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator

import torch

from .. import eager
from ..measure import beside_gradient, gpu_meter, gradient, relative_error, resident_meter
from ..providers import OURS
from .results import Figure
from .setting import Batch, Setting

NO_ROOM = "does not fit in memory"


def losses(setting: Setting) -> Iterator[Figure]:
    """The losses that MaskReID and its baselines train with, at 65536 rows beside the product, at 32768
    beside eager."""
    batch = Batch.of(setting, "batch_hard", 65536, 2048)
    product = batch.product_ms(setting)
    ours = batch.ms(setting, batch.ours())
    yield Figure.of("batch_hard, D = 2048", ours, active=batch.active)
    yield _ratio("batch_hard, D = 2048, to the product", ours.y50, product.y50, batch).promised(1.25)
    mined = batch.ms(setting, batch.eager(eager.batch_hard_mined))
    key = "batch_hard, D = 2048, times faster than chunked mining"
    yield _ratio(key, mined.y50, ours.y50, batch).promised(1.3, at_least=True)
    del batch
    for violators, bar in ((0.001, 1.5), (0.5, 3.6)):
        yield from beside_product(setting, "ranking", 2048, bar, violators)
    yield from beside_product(setting, "batch_hard", 256)
    yield from beside_product(setting, "ranking", 256, violators=0.001)
    yield from beside_eager(setting, "ranking", 256, (8.0, 3.0))
    yield from beside_eager(setting, "batch_hard", 2048, (None, None))


def family(setting: Setting) -> Iterator[Figure]:
    """The log-sum-exp losses beside the product."""
    for kernel, bar in (("n_pair", 3.3), ("supervised_contrastive", 3.3), ("circle", None)):
        yield from beside_product(setting, kernel, 2048, bar)
    yield from beside_product(setting, "n_pair", 256)


def beside_product(
    setting: Setting, kernel: str, columns: int, bar: float | None = None, violators: float | None = None
) -> Iterator[Figure]:
    """ms, and the ratio to the product in the same moment."""
    batch = Batch.of(setting, kernel, 65536, columns, violators)
    key = f"{kernel}, D = {columns}" + ("" if violators is None else f", {100 * violators:g} % violators")
    product = batch.product_ms(setting)
    ours = batch.ms(setting, batch.ours())
    yield Figure.of(key, ours, active=batch.active)
    ratio = _ratio(f"{key}, to the product", ours.y50, product.y50, batch)
    yield ratio if bar is None else ratio.promised(bar)


def beside_eager(
    setting: Setting, kernel: str, columns: int, bars: tuple[float | None, float | None]
) -> Iterator[Figure]:
    """How many times faster than the eager form and than torch.compile of it, at 32768 rows, 1 %
    violators."""
    batch = Batch.of(setting, kernel, 32768, columns)
    ours = batch.ms(setting, batch.ours()).y50
    forms = {"eager": batch.eager(), "compiled": batch.eager(setting.compiled(getattr(eager, kernel)))}
    for (name, form), bar in zip(forms.items(), bars, strict=True):
        key = f"{kernel} 32768, D = {columns}, times faster than {name}"
        peer = attempt(lambda form=form: batch.ms(setting, form).y50)  # type: ignore[misc]  # called at once
        found = Figure(key, None, "x", note=NO_ROOM) if peer is None else _ratio(key, peer, ours, batch)
        yield found if bar is None else found.promised(bar, at_least=True)


def errors(setting: Setting) -> Iterator[Figure]:
    """Error of the gradient, against float64, beside that of the same loss in plain torch on the same
    rows."""
    for kernel in OURS:
        batch = Batch.of(setting, kernel, 4096, 256)
        exact = gradient(batch.eager(), batch.x_ND.detach().double(), batch.y_N)
        ours, plain = (
            relative_error(gradient(loss, batch.x_ND, batch.y_N), exact)
            for loss in (batch.ours(), batch.eager())
        )
        yield Figure(f"{kernel} gradient error", ours, "relative", active=batch.active)
        key = f"{kernel} gradient error beside eager's"
        yield Figure(key, ours / max(plain, 1e-30), "x", active=batch.active).promised(1.0)


def million(setting: Setting) -> Iterator[Figure]:
    """1048576 x 256: one step's time, and its peak beside rows and gradient."""
    for kernel, bar in (("batch_hard", 256.0), ("ranking", 512.0)):
        batch = Batch.of(setting, kernel, 1 << 20, 256, 0.001)
        gc.collect()
        meter = resident_meter if setting.dry else gpu_meter
        peak = beside_gradient(meter, batch.ours(), batch.x_ND, batch.y_N)
        yield Figure(f"{kernel} 1048576, peak", peak, "MiB", active=batch.active).promised(bar)
        found = batch.ms(setting, batch.ours(), warm=True)
        yield Figure.of(f"{kernel} 1048576", found, active=batch.active)
        del batch


def attempt(measure: Callable[[], float]) -> float | None:
    """None where memory ran out."""
    try:
        return measure()
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return None


def _ratio(key: str, above: float, below: float, batch: Batch) -> Figure:
    return Figure(key, above / below, "x", active=batch.active)
