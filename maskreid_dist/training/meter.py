"""Means of what a step logs."""

import time
from dataclasses import dataclass

from torch import Tensor


@dataclass
class Meter:
    """Means over the steps since the last record. `take` reads them on the
    host, once in `log_every` steps."""

    log_every: int

    def __post_init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.steps = self.images = 0
        self.waited_s = 0.0
        self.since = time.perf_counter()

    def add(self, scalars: dict[str, Tensor], images: int, waited_s: float) -> None:
        for name, value in scalars.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.steps += 1
        self.images += images
        self.waited_s += waited_s

    def take(self, lr: float, epoch: int) -> dict[str, float]:
        means = {name: float(total) / self.steps for name, total in self.sums.items()}
        elapsed_s = time.perf_counter() - self.since
        means |= {
            "lr": lr,
            "epoch": epoch,
            "images_per_second": self.images / elapsed_s,
            "data_wait_share": self.waited_s / elapsed_s,
        }
        self._clear()
        return means
