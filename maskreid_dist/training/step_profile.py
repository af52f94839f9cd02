"""`--profile`: what a few steps of rank 0 spend their time on, as a trace to look at in Perfetto."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from maskreid_dist.training.step_clock import StepClock
from maskreid_shards.atomic import naming, write_atomically

WAIT, WARMUP, ACTIVE = 1, 1, 3  # steps: the first is unlike the others, the profiler's own start is left out
ROWS = 30  # of the table of operators


class StepProfile:
    """Traces ACTIVE steps of a training that begins after `start` steps, and then stops costing anything.

    Writes `step_XXXXXXXX.json` (the first of them, counted from 1) and the operators that took longest,
    `.txt`, into `folder`, and says where. The phases of the clock are in the trace.
    """

    def __init__(self, folder: Path, start: int, clock: StepClock, say: Callable[[str], None]) -> None:
        self.trace = folder / f"step_{start + WAIT + WARMUP + 1:08d}.json"
        self.clock = clock
        self.say = say
        self.left = WAIT + WARMUP + ACTIVE
        on_gpu = torch.cuda.is_available()
        self.sort_by = "self_device_time_total" if on_gpu else "self_cpu_time_total"
        self.profiler = profile(
            activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])],
            schedule=schedule(wait=WAIT, warmup=WARMUP, active=ACTIVE, repeat=1),
            on_trace_ready=self._write,
        )
        clock.labelled = True
        self.profiler.start()

    def step(self) -> None:
        """A step is over."""
        if self.left:
            self.left -= 1
            self.profiler.step()
            if not self.left:
                self._stop()

    def close(self) -> None:
        """The training is over."""
        if self.left:
            self.say(
                f"--profile: no trace, it needs {WAIT + WARMUP + ACTIVE} steps, and {self.left} were missing"
            )
            self.left = 0
            self.profiler.on_trace_ready = None
            self._stop()

    def _stop(self) -> None:
        self.profiler.stop()
        self.clock.labelled = False

    def _write(self, profiler: Any) -> None:
        self.trace.parent.mkdir(exist_ok=True)
        with naming(self.trace):
            profiler.export_chrome_trace(str(self.trace))
            table = profiler.key_averages().table(sort_by=self.sort_by, row_limit=ROWS)
            write_atomically(self.trace.with_suffix(".txt"), (table + "\n").encode())
        self.say(f"profile of {ACTIVE} steps: {self.trace}")
