"""Where the time of a step goes, by phase, without a host sync: on a GPU from CUDA events that are read
later."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, ParamSpec, TypeVar

import torch
from torch.profiler import record_function

from maskreid_dist.run_directory import PHASES

P = ParamSpec("P")
R = TypeVar("R")

AWAY = "away"  # evaluating, saving: of no step


class StepClock:
    """Seconds of this rank by phase; a phase within another counts for itself alone.

    On a GPU a phase lasts from the end of the work queued before it to the end of its own: `data` is the time
    that the GPU stood still for want of a batch, not the time that the host waited.
    """

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self.labelled = False  # while a profiler looks: phases have their names in its trace
        self.within = ["other"]
        self.marks: deque[tuple[str, Any]] = deque()  # what ended, and when
        self._clear()
        self._mark()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self._mark()
        self.within.append(name)
        try:
            with record_function(f"phase: {name}") if self.labelled else nullcontext():
                yield
        finally:
            self._mark()
            self.within.pop()

    def timed(self, name: str, function: Callable[P, R]) -> Callable[P, R]:
        """The function as a phase."""

        def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
            with self.phase(name):
                return function(*args, **kwargs)

        return wrapped

    def end_step(self) -> None:
        """A step more; reads the events that are over."""
        self._mark()
        self.steps += 1
        self._read(wait=False)

    def take(self) -> tuple[float, dict[str, float]]:
        """Seconds since the last call, `away` not counted, and the mean milliseconds of a step by phase. A
        host sync on a GPU, for who syncs anyway."""
        self._mark()
        self._read(wait=True)
        steps = max(1, self.steps)
        seconds = {name: self.seconds[name] for name in PHASES}
        self._clear()
        return sum(seconds.values()), {f"{name}_ms": 1000 * s / steps for name, s in seconds.items()}

    def _clear(self) -> None:
        self.seconds = dict.fromkeys((*PHASES, AWAY), 0.0)
        self.steps = 0

    def _mark(self) -> None:
        self.marks.append((self.within[-1], self._now()))

    def _now(self) -> Any:
        if not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _read(self, wait: bool) -> None:
        if self.on_gpu and wait:
            self.marks[-1][1].synchronize()
        while len(self.marks) > 1:
            (_, start), (name, end) = self.marks[0], self.marks[1]
            if self.on_gpu and not end.query():
                return
            self.seconds[name] += start.elapsed_time(end) / 1000 if self.on_gpu else end - start
            self.marks.popleft()
