"""What a record of `metrics.jsonl` says of the steps since the last one."""

import torch
from torch import Tensor

from maskreid_dist.training.step_clock import StepClock


class Meter:
    """Means over the steps since the last record. `take` reads them on the host, once in `log_every`
    steps."""

    def __init__(self, clock: StepClock, device: torch.device) -> None:
        self.clock = clock
        self.device = device
        self._clear()

    def _clear(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.steps = self.images = 0

    def add(self, scalars: dict[str, Tensor], images: int) -> None:
        for name, value in scalars.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.steps += 1
        self.images += images

    def take(self, lr: float, epoch: int) -> dict[str, float]:
        """The scalars' means, `lr`, `epoch`; images a second over all ranks; of this rank the milliseconds
        of a step and of its phases, the share of them that went for data and, on a GPU, the most memory
        that tensors took."""
        means = {name: float(total) / self.steps for name, total in self.sums.items()}
        elapsed_s, phases = self.clock.take()
        step_ms = sum(phases.values())
        means |= {
            "lr": lr,
            "epoch": epoch,
            "images_per_second": self.images / elapsed_s,
            "data_wait_share": phases["data_ms"] / step_ms,
            "step_ms": step_ms,
            **phases,
        }
        if self.device.type == "cuda":
            means["gpu_memory_gb"] = torch.cuda.max_memory_allocated(self.device) / 1e9
            torch.cuda.reset_peak_memory_stats(self.device)
        self._clear()
        return means
