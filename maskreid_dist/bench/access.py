"""`maskreid bench loader --latency-ms`: training's two ways to its batches, on a disk and over http.

memory    bytes that are in memory already: what decoding and augmenting cost alone
indexed   `data.access = "indexed"`: P x K pairs by their byte ranges
stream    `data.access = "stream"`: the same number of pairs out of whole shards

A reader that is not scheduled in time looks slow, and one that waits for a server does not: on a machine that
others use, wall time hides what the two differ in. So without workers a second figure is computed: pairs by
the process's own CPU time plus the latency of each request that it made.
"""

import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from maskreid_dist.bench.loader_data import LoaderData
from maskreid_dist.bench.slow_server import slow_server
from maskreid_dist.config import BatchConfig, Config, DataConfig, OptimizerConfig
from maskreid_dist.data.batches import PairDataset, PlannedSteps, make_plan, recipe_plan, training_loader
from maskreid_dist.data.transforms import TrainTransform
from maskreid_kernels.bench.figures import Promise, Quantiles
from maskreid_shards import RawPair, StreamPlan, open_shards

HTTP_TIMES, DISK_SHARE = 5.0, 0.95
IDENTITIES, IMAGES = 16, 4


@dataclass(frozen=True)
class Speed:
    """Pairs per second: measured, and computed for a core of its own (None with workers)."""

    wall: float
    alone: float | None


@dataclass(frozen=True)
class AccessRun:
    """One thing to measure."""

    place: str  # disk, http
    access: str
    workers: int


class AccessBench:
    """A figure is a whole pass of the stream (all that it reads counts), and `steps` batches of the others;
    workers start within it."""

    def __init__(self, data: LoaderData, url: str, steps: int, latency_ms: float) -> None:
        self.splits = {"disk": data.split, "http": open_shards(url).split("train")}
        self.steps, self.latency_s = steps, latency_ms / 1000
        self.bytes = data.split.read_many(range(len(data.split)))
        _ = self.splits["http"].index
        self.requests = 0
        self._count_requests(self.splits["http"].store)

    def speed(self, run: AccessRun) -> Speed:
        steps, batches = self._batches(run)
        requests, cpu_s, started = self.requests, time.process_time(), time.perf_counter()
        count = 0
        for batch in batches:
            if isinstance(batch, Exception):
                raise batch
            count += len(batch.pids_B)
        seconds = time.perf_counter() - started
        alone_s = time.process_time() - cpu_s + (self.requests - requests) * self.latency_s
        assert count == steps * IDENTITIES * IMAGES
        return Speed(count / seconds, None if run.workers else count / alone_s)

    def _count_requests(self, store: Any) -> None:
        fetch = store.fetch

        def counted(*arguments: Any) -> bytes:
            self.requests += 1
            data: bytes = fetch(*arguments)
            return data

        store.fetch = counted

    def _batches(self, run: AccessRun) -> tuple[int, Iterable[Any]]:
        split = self.splits[run.place]
        config = _config(self.steps, run)
        if run.access == "memory":
            plan = make_plan(split, config.batch, config.seed, 1)
            dataset = PairDataset(split, TrainTransform(config.data))
            dataset.read = self._from_memory
            return self.steps, (dataset[draws] for draws in PlannedSteps(plan, 0, self.steps, 0, 1))
        planned = recipe_plan(split, config, 1)
        steps = planned.steps_per_epoch if isinstance(planned, StreamPlan) else self.steps
        config = _config(steps, run)
        return steps, training_loader(split, planned, config, 0, 0, 1, torch.device("cpu"))

    def _from_memory(self, numbers: NDArray[np.int64]) -> list[RawPair]:
        return [self.bytes[number] for number in numbers.tolist()]


def _config(steps: int, run: AccessRun) -> Config:
    access: Literal["stream", "indexed"] = "stream" if run.access == "stream" else "indexed"
    return Config(
        name="bench",
        data=DataConfig(shards="-", access=access, workers=run.workers),
        batch=BatchConfig(identities=IDENTITIES, images=IMAGES),
        optimizer=OptimizerConfig(steps=steps),
    )


def access_runs(workers: Iterable[int]) -> list[AccessRun]:
    """Those that are compared stand side by side."""
    runs = [AccessRun("disk", access, 0) for access in ("memory", "indexed", "stream")]
    return runs + [AccessRun("http", access, count) for count in workers for access in ("indexed", "stream")]


def measure_access(
    data: LoaderData,
    workers: Iterable[int],
    steps: int,
    rounds: int,
    latency_ms: float,
    say: Callable[[str], None],
) -> dict[AccessRun, list[Speed]]:
    """Pairs per second of each run in each round; odd rounds go backwards."""
    warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than cores: meant
    runs = access_runs(workers)
    found: dict[AccessRun, list[Speed]] = {run: [] for run in runs}
    with slow_server(Path(data.split.store.url("")), latency_ms) as url:
        bench = AccessBench(data, url, steps, latency_ms)
        for number in range(rounds):
            for run in runs[:: -1 if number % 2 else 1]:
                say(f"round {number + 1} of {rounds}: {run.place}, {run.access}, {run.workers} workers")
                found[run].append(bench.speed(run))
    return found


def access_promises(found: dict[AccessRun, list[Speed]], latency_ms: float) -> list[Promise]:
    """Medians of the ratios of the same rounds."""
    kept = []
    for run in found:
        if run.access == "indexed" and run.place == "disk":
            beside, bar, text = "memory", DISK_SHARE, "disk: indexed beside decoding and augmenting alone"
        elif run.access == "stream" and run.place == "http":
            beside, bar, text = "indexed", HTTP_TIMES, f"http, {latency_ms:g} ms: stream beside indexed"
        else:
            continue
        pairs = zip(found[run], found[AccessRun(run.place, beside, run.workers)], strict=True)
        speeds = list(pairs)
        wall = Quantiles.of([a.wall / b.wall for a, b in speeds]).y50
        kept.append(Promise(f"{text}, {run.workers} workers", wall, bar, True))
        alone = [a.alone / b.alone for a, b in speeds if a.alone and b.alone]
        if alone:
            kept.append(Promise(f"{text}, on a core of its own", Quantiles.of(alone).y50, bar, True))
    return kept


def access_rows(found: dict[AccessRun, list[Speed]]) -> list[dict[str, Any]]:
    """A row for each run, with quantiles over the rounds."""
    rows = []
    for run, speeds in found.items():
        wall = Quantiles.of([speed.wall for speed in speeds])
        alone = [speed.alone for speed in speeds if speed.alone is not None]
        row = {**vars(run), "pairs_s": wall.y50, "y20": wall.y20, "y80": wall.y80}
        rows.append({**row, "alone_pairs_s": Quantiles.of(alone).y50 if alone else None})
    return rows
