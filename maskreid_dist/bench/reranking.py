"""What re-ranking costs beside its floor, the bare float32 product of all images with all: seconds and peak
memory, each in a process of its own.

Seconds are of the clock and of the processor, on all threads. Rows of a person lie around a centre, so
loosely that re-ranking has something to mend.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from maskreid_dist.bench.retrieval import nearly_equal
from maskreid_dist.retrieval import ReRanking, evaluate_reranked, evaluate_retrieval
from maskreid_kernels.bench.figures import Promise
from maskreid_shards.bench.own_process import in_own_process, peak_mb

DIMENSIONS = 256
NOISE = 2.5
TILE = 2048


@dataclass(frozen=True)
class Size:
    """Images of a data set's test split; seconds and megabytes: what re-ranking is promised to take."""

    name: str
    queries: int
    gallery: int
    identities: int
    seconds: float
    megabytes: float


MARKET = Size("market1501", 3368, 15913, 750, seconds=20, megabytes=1500)
MSMT17 = Size("msmt17", 11659, 82161, 3060, seconds=600, megabytes=4000)
SIZES = {size.name: size for size in (MARKET, MSMT17)}


@dataclass(frozen=True)
class Cost:
    """clock and cpu: seconds; peak_mb: of the process, with the rows and what Python and torch take;
    product_s: of the clock, N x N x D; before and after: mAP."""

    size: Size
    share: float
    clock_s: float
    cpu_s: float
    peak_mb: float
    product_s: float
    before: float
    after: float
    ulp: bool = False

    @property
    def rows(self) -> str:
        return "one ulp" if self.ulp else "persons"


def measure(size: Size, share: float, ulp: bool = False) -> Cost:
    """share: of the images and persons. ulp: rows of which each element is one of two neighbours."""
    return in_own_process(_measure, size, share, ulp)


def _measure(size: Size, share: float, ulp: bool) -> Cost:
    rng = np.random.default_rng(0)
    queries, gallery, persons = (
        max(20, round(n * share)) for n in (size.queries, size.gallery, size.identities)
    )
    pids = rng.integers(1, persons + 1, queries + gallery)
    centre = rng.standard_normal((persons + 1, DIMENSIONS), dtype=np.float32)
    rows = rng.standard_normal((len(pids), DIMENSIONS), dtype=np.float32)
    rows *= np.float32(NOISE)
    rows += centre[pids]
    if ulp:
        rows = nearly_equal(rows[0], len(rows), rng)
    camids = rng.integers(0, 6, len(pids))
    q, g = slice(0, queries), slice(queries, None)
    sides = rows[q], pids[q], camids[q], rows[g], pids[g], camids[g]
    clock, cpu = time.perf_counter(), time.process_time()
    after = evaluate_reranked(*sides, ReRanking())
    clock, cpu = time.perf_counter() - clock, time.process_time() - cpu
    peak = peak_mb()
    before = evaluate_retrieval(*sides)
    return Cost(size, share, clock, cpu, peak, _product(rows), before.mAP, after.mAP, ulp)


def _product(rows: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> float:
    whole = torch.from_numpy(rows)
    start = time.perf_counter()
    for left in whole.split(TILE):
        for right in whole.split(TILE):
            _ = left @ right.T
    return time.perf_counter() - start


def promises(costs: Sequence[Cost]) -> list[Promise]:
    found = []
    for cost in costs:
        if cost.ulp:
            beside = next(other for other in costs if other.size == cost.size and not other.ulp)
            times = cost.cpu_s / beside.cpu_s
            found.append(Promise(f"{cost.size.name}, rows one ulp apart: times others", times, 3, False))
        else:
            found.append(Promise(f"{cost.size.name}: seconds", cost.clock_s, cost.size.seconds, False))
            found.append(Promise(f"{cost.size.name}: MB at most", cost.peak_mb, cost.size.megabytes, False))
    return found
