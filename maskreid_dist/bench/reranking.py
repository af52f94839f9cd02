"""What re-ranking costs beside its floor, the bare float32 product of all images with all: seconds and peak
memory, each in a process of its own.

Seconds are of the clock and of the processor, on all threads. Rows of a person lie around a centre, so
loosely that re-ranking has something to mend. On a GPU: medians of three runs after one to warm up, the GPU's
memory beyond the features, and at a small share the figures beside those of the host's path.
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from maskreid_dist.bench.retrieval import nearly_equal
from maskreid_dist.retrieval import ReRanking, RetrievalResult, evaluate_reranked, evaluate_retrieval
from maskreid_kernels.bench.figures import Promise
from maskreid_shards.bench.own_process import in_own_process, peak_mb

DIMENSIONS = 256
NOISE = 2.5
TILE = 2048
ROUNDS = 3
CHECKED_IMAGES = 4000  # ranked by the host's path too

Sides = tuple[Any, NDArray[np.int64], NDArray[np.int64], Any, NDArray[np.int64], NDArray[np.int64]]


@dataclass(frozen=True)
class Bar:
    """What re-ranking is promised to take: seconds, and megabytes of the process or of a GPU."""

    seconds: float
    megabytes: float


@dataclass(frozen=True)
class Size:
    """Images of a data set's test split. gpu: None where nothing is promised."""

    name: str
    queries: int
    gallery: int
    identities: int
    cpu: Bar
    gpu: Bar | None = None


MARKET = Size("market1501", 3368, 15913, 750, Bar(20, 1500))
MSMT17 = Size("msmt17", 11659, 82161, 3060, Bar(600, 4000), Bar(2, 2000))
SIZES = {size.name: size for size in (MARKET, MSMT17)}


@dataclass(frozen=True)
class Check:
    """On a GPU. others: of `queries` at the small share, those whose average precision is not the host's;
    repeats: runs that had other average precisions than the first; device, host: mAP of the small share."""

    queries: int
    others: int
    repeats: int
    device: float
    host: float


@dataclass(frozen=True)
class Cost:
    """clock and cpu: seconds; peak_mb: of the process, with the rows and what Python and torch take, or of
    the GPU beyond the features; product_s: of the clock, N x N x D; before and after: mAP."""

    size: Size
    share: float
    clock_s: float
    cpu_s: float
    peak_mb: float
    product_s: float
    before: float
    after: float
    ulp: bool = False
    check: Check | None = None

    @property
    def rows(self) -> str:
        return "one ulp" if self.ulp else "persons"


def measure(size: Size, share: float, device: str = "cpu", ulp: bool = False) -> Cost:
    """share: of the images and persons. device: "cpu" or "cuda". ulp: rows of which each element is one of
    two neighbours."""
    if device != "cpu":
        return in_own_process(measure_gpu, size, share, device)
    return in_own_process(_measure, size, share, ulp)


def _measure(size: Size, share: float, ulp: bool) -> Cost:
    sides = _sides(size, share, ulp)
    clock, cpu = time.perf_counter(), time.process_time()
    after = evaluate_reranked(*sides, ReRanking())
    clock, cpu = time.perf_counter() - clock, time.process_time() - cpu
    peak = peak_mb()
    before = evaluate_retrieval(*sides)
    product = _product(torch.from_numpy(np.concatenate([sides[0], sides[3]])))
    return Cost(size, share, clock, cpu, peak, product, before.mAP, after.mAP, ulp)


def measure_gpu(size: Size, share: float, device: str) -> Cost:
    """In this process. The figures before re-ranking are the host's."""
    sides = _sides(size, share)
    there = _on(sides, device)
    features = torch.cuda.memory_allocated()
    runs, clocks, cpus = [], [], []
    for _ in range(1 + ROUNDS):
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
        clock, cpu = time.perf_counter(), time.process_time()
        runs.append(evaluate_reranked(*there, ReRanking()))
        torch.cuda.synchronize()
        clocks.append(time.perf_counter() - clock)
        cpus.append(time.process_time() - cpu)
    peak = (torch.cuda.max_memory_allocated() - features) / 1e6
    product = _product(torch.cat([there[0], there[3]]))
    before = evaluate_retrieval(*sides)
    seconds, cpu_s = statistics.median(clocks[1:]), statistics.median(cpus[1:])
    figures = (seconds, cpu_s, peak, product, before.mAP, runs[0].mAP)
    return Cost(size, share, *figures, check=_check(size, share, device, runs))


def _check(size: Size, share: float, device: str, runs: list[RetrievalResult]) -> Check:
    sides = _sides(size, min(share, CHECKED_IMAGES / (size.queries + size.gallery)))
    there, host = evaluate_reranked(*_on(sides, device), ReRanking()), evaluate_reranked(*sides, ReRanking())
    repeats = sum(_different(run, runs[0]) > 0 for run in runs[1:])
    return Check(len(sides[0]), _different(there, host), repeats, there.mAP, host.mAP)


def _different(one: RetrievalResult, other: RetrievalResult) -> int:
    """Queries of another average precision."""
    a, b = one.average_precision, other.average_precision
    return int(((a != b) & ~(np.isnan(a) & np.isnan(b))).sum())


def _sides(size: Size, share: float, ulp: bool = False) -> Sides:
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
    return rows[q], pids[q], camids[q], rows[g], pids[g], camids[g]


def _on(sides: Sides, device: str) -> Sides:
    q, g = (torch.from_numpy(rows).to(device) for rows in (sides[0], sides[3]))
    return q, sides[1], sides[2], g, sides[4], sides[5]


def _product(whole: torch.Tensor) -> float:
    start = time.perf_counter()
    for left in whole.split(TILE):
        for right in whole.split(TILE):
            _ = left @ right.T
    if whole.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def promises(costs: Sequence[Cost]) -> list[Promise]:
    found = []
    for cost in costs:
        name = cost.size.name
        if cost.ulp:
            beside = next(other for other in costs if other.size == cost.size and not other.ulp)
            times = cost.cpu_s / beside.cpu_s
            found.append(Promise(f"{name}, rows one ulp apart: times others", times, 3, False))
            continue
        bar = cost.size.cpu if cost.check is None else cost.size.gpu
        if bar:
            found.append(Promise(f"{name}: seconds", cost.clock_s, bar.seconds, False))
            found.append(Promise(f"{name}: MB at most", cost.peak_mb, bar.megabytes, False))
        if cost.check:
            found.append(Promise(f"{name}: runs of other figures", cost.check.repeats, 0, False))
            text = f"{name}: of {cost.check.queries} queries, of another AP than on the host"
            found.append(Promise(text, cost.check.others, 0, False))
    return found
