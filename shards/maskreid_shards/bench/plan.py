"""Time and memory of the plan of the batches: what a rank pays at the first step of an epoch, and at the
others."""

import time
import tracemalloc
from dataclasses import dataclass

import numpy as np

from ..identities import IdentityTable
from ..plan import Plan


@dataclass(frozen=True)
class PlanCost:
    """`first_step_ms` orders the epoch's identities, `next_step_ms` is the median of the later ones.

    `peak_mb` (1e6 bytes) is what one plan and an epoch's first step allocate beside the identity table, by
    tracemalloc.
    """

    identities: int
    first_step_ms: float
    next_step_ms: float
    peak_mb: float


def measure_plan(identities: int, batch_identities: int = 64, images: int = 4) -> PlanCost:
    """A Zipf tail: about half of the identities have a single image, none more than 500."""
    count = np.random.default_rng(0).zipf(1.5, identities).clip(1, 500)
    table = IdentityTable(np.arange(1, identities + 1), np.cumsum(count) - count, count)

    def plan() -> Plan:
        return Plan.pk(table, identities=batch_identities, images=images, seed=0)

    started = time.perf_counter()
    timed = plan()
    timed.global_batch(0, 0)
    first_s = time.perf_counter() - started
    steps_s = []
    for step in range(1, min(100, timed.steps_per_epoch)):
        started = time.perf_counter()
        timed.global_batch(0, step)
        steps_s.append(time.perf_counter() - started)
    tracemalloc.start()  # not while timing: it slows allocation
    plan().global_batch(0, 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return PlanCost(identities, 1e3 * first_s, 1e3 * float(np.median(steps_s or [0.0])), peak / 1e6)
