"""Where the steps run and how large: a GPU and its sizes, or toy sizes in Triton's interpreter; and how they
time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .. import eager
from ..cases import Case, constants, make_case
from ..figures import Quantiles
from ..providers import OURS, Loss

IMAGES = 4
TOY_ROWS, TOY_COLUMNS = 8, 16


@dataclass(frozen=True)
class Setting:
    """`dry`: toy sizes on the CPU, in float32, because the interpreter computes bfloat16 wrongly. `output`:
    for logs."""

    dry: bool
    output: Path

    @property
    def device(self) -> torch.device:
        return torch.device("cpu" if self.dry else "cuda")

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.dry else torch.bfloat16

    def rows(self, wanted: int) -> int:
        return min(wanted, TOY_ROWS) if self.dry else wanted

    def columns(self, wanted: int) -> int:
        return min(wanted, TOY_COLUMNS) if self.dry else wanted

    @property
    def widths(self) -> tuple[int, ...]:
        """The columns that a step measures at; one is enough where all are cut to toy size."""
        return (2048,) if self.dry else (2048, 256)

    def times(self, wanted: int) -> int:
        """How often something is repeated."""
        return min(wanted, 2) if self.dry else wanted

    def compiled(self, loss: Callable[..., Tensor], *, dynamic: bool = False) -> Callable[..., Tensor]:
        """torch.compile of an eager form, in its default mode; traced alone where dry."""
        torch._dynamo.reset()
        backend = "eager" if self.dry else "inductor"
        found: Callable[..., Tensor] = torch.compile(loss, backend=backend, dynamic=dynamic)
        return found


@dataclass(frozen=True)
class Batch:
    """Rows that want a gradient, their labels, a loss's constants, and the share of its anchors that are
    active."""

    kernel: str
    x_ND: Tensor
    y_N: Tensor
    constants: dict[str, Any]
    active: float

    @classmethod
    def of(
        cls, setting: Setting, kernel: str, rows: int, columns: int, violators: float | None = None
    ) -> Batch:
        """Made on the device; `violators` is the ranking loss's, 1 % unless stated."""
        share = (violators or 0.01) if kernel == "ranking" else None
        dtype = str(setting.dtype).removeprefix("torch.")
        case = Case(kernel, setting.rows(rows), setting.columns(columns), IMAGES, share, dtype=dtype)
        data = make_case(case, setting.device)
        words = constants(case, data.margin)
        return cls(kernel, data.x_ND.requires_grad_(), data.y_N, words, data.active)

    def ours(self, backend: str = "triton") -> Loss:
        return lambda x, y: OURS[self.kernel](x, y, backend=backend, **self.constants)

    def eager(self, form: Callable[..., Tensor] | None = None) -> Loss:
        """The plain form, or another one that takes the same constants."""
        plain = form or getattr(eager, self.kernel)
        return lambda x, y: plain(x, y, **self.constants)

    def ms(self, setting: Setting, loss: Loss, seconds: float = 1.0, *, warm: bool = False) -> Quantiles:
        """Forward and backward."""

        def step() -> None:
            self.x_ND.grad = None
            loss(self.x_ND, self.y_N).backward()

        return timed(setting, step, seconds, warm=warm)

    def product_ms(self, setting: Setting) -> Quantiles:
        """X X^T alone, by cuBLAS, in bands that are thrown away."""
        x_ND = self.x_ND.detach()
        bands = x_ND.split(8192)
        out = x_ND.new_empty((len(bands[0]), len(x_ND)))
        return timed(setting, lambda: [torch.mm(band, x_ND.t(), out=out[: len(band)]) for band in bands])


def timed(
    setting: Setting, work: Callable[[], object], seconds: float = 1.0, *, warm: bool = False
) -> Quantiles:
    """ms of one call: between events on the GPU's queue, which the host fills as in training.

    After one call that warms up (unless it is `warm`) and one that says how many there is time for; that one
    alone counts where it takes longer than `seconds`.
    """
    if setting.dry:
        begin = time.perf_counter()
        work()
        return Quantiles.of([(time.perf_counter() - begin) * 1e3])
    if not warm:
        work()
    torch.cuda.synchronize()
    begin = time.perf_counter()
    work()
    torch.cuda.synchronize()
    once = max(time.perf_counter() - begin, 1e-5)
    if once > seconds:
        return Quantiles.of([1e3 * once])
    times = min(max(int(seconds / once), 3), 100)
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(times + 1)]
    marks[0].record()
    for mark in marks[1:]:
        work()
        mark.record()
    torch.cuda.synchronize()
    return Quantiles.of([first.elapsed_time(second) for first, second in zip(marks, marks[1:], strict=False)])


@contextmanager
def changed(module: ModuleType, **values: object) -> Iterator[None]:
    """Constants of a module, changed for a while. Raises AttributeError for one that it does not have."""
    before = {name: getattr(module, name) for name in values}
    try:
        for name, value in values.items():
            setattr(module, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)
