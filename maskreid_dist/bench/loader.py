"""`maskreid bench loader`: pairs per second of every way to read, decode and augment, in interleaved rounds.

Sources; all but webdataset draw the same P x K batches:

    memory          bytes that are in memory already: what decoding and augmenting cost alone
    shards          indexed reads, as in training
    webdataset      plain sequential reading of the same shards
    loose           the re-ID toolkits' way: a sample is an item, from two files
    loose, batched  the same files, read and decoded by the batch, as shards are
"""

import importlib.util
import json
import multiprocessing
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from maskreid_dist.bench.loader_data import LoaderData, comes_from_disk, empty_cache, fill_cache
from maskreid_dist.config import DataConfig
from maskreid_dist.data.batches import (
    Batch,
    PairDataset,
    PlannedSteps,
    decoded_batch,
    joined_batch,
    start_worker,
)
from maskreid_dist.data.decoders import decode_with_torchvision
from maskreid_dist.data.transforms import Pair, TrainTransform
from maskreid_dist.errors import UserError
from maskreid_kernels.bench.figures import Quantiles
from maskreid_shards import Draws, Plan, RawPair, decode_pair

Stage = Literal["raw", "decode", "decode, torchvision", "augment"]
Numbers = Sequence[int] | NDArray[np.int64]  # of samples
Read = Callable[[Numbers], list[RawPair]]
SOURCES = ("memory", "shards", "webdataset", "loose", "loose, batched")
IDENTITIES, IMAGES = 16, 4


def check_peers() -> None:
    """Raises UserError where webdataset is not installed."""
    if importlib.util.find_spec("webdataset") is None:
        raise UserError("bench loader compares with webdataset: pip install webdataset")


@dataclass(frozen=True)
class Run:
    """One thing to measure. `cold`: nothing of the files is in the page cache."""

    source: str
    stage: Stage
    workers: int
    cold: bool


class Steps(Sampler[Draws]):
    """The batches of one pass over a loader; set anew before each."""

    def __init__(self) -> None:
        self.batches: Iterable[Draws] = []

    def __iter__(self) -> Iterator[Draws]:
        return iter(self.batches)


@dataclass(frozen=True)
class Draw:
    """One sample of a batch."""

    sample: int
    pid: int
    seed: int


class SampleSteps(Sampler[list[Draw]]):
    """The same batches, sample by sample."""

    def __init__(self, steps: Steps) -> None:
        self.steps = steps

    def __iter__(self) -> Iterator[list[Draw]]:
        for draws in self.steps:
            columns = (draws.samples.tolist(), draws.pids.tolist(), draws.seeds.tolist())
            yield [Draw(*values) for values in zip(*columns, strict=True)]


class BatchItems(Dataset[Any]):
    """An item is a batch. Below "augment" only a count leaves the worker: the
    figure is not that of a pipe."""

    def __init__(self, read: Read, stage: Stage, transform: TrainTransform) -> None:
        self.read, self.stage, self.transform = read, stage, transform

    def __getitem__(self, draws: Draws) -> Batch | int:
        raws = self.read(draws.samples)
        if self.stage == "augment":
            return decoded_batch(raws, draws, self.transform)
        return sum(_decoded(raw, self.stage) for raw in raws)


class SampleItems(Dataset[Any]):
    """An item is a sample, as in the toolkits' data sets; the loader collates them."""

    def __init__(self, read: Read, stage: Stage, transform: TrainTransform) -> None:
        self.read, self.stage, self.transform = read, stage, transform

    def __getitem__(self, draw: Draw) -> Any:
        (raw,) = self.read([draw.sample])
        if self.stage == "augment":
            return self.transform(*decode_pair(raw), draw.seed), draw
        return _decoded(raw, self.stage)


def _collated(items: "list[tuple[Pair, Draw]]") -> Batch:
    pairs, draws = zip(*items, strict=True)
    return joined_batch(list(pairs), [draw.sample for draw in draws], [draw.pid for draw in draws])


def _decoded(raw: RawPair, stage: Stage) -> int:
    if stage == "decode":
        return decode_pair(raw)[0].width
    if stage == "decode, torchvision":
        return len(decode_with_torchvision(raw))
    return len(raw.image) + len(raw.mask)


class Stream:
    """The next samples of webdataset's sequence, whatever is drawn; each worker has
    its own shards, over and over."""

    def __init__(self, urls: list[str]) -> None:
        self.urls = urls
        self.samples: Iterator[dict[str, Any]] | None = None

    def __call__(self, numbers: Numbers) -> list[RawPair]:
        if self.samples is None:  # in the worker
            from webdataset import WebDataset

            self.samples = iter(WebDataset(self.urls, shardshuffle=False).repeat())
        return [self._pair(next(self.samples)) for _ in numbers]

    def _pair(self, sample: dict[str, Any]) -> RawPair:
        about = json.loads(sample["json"])
        image = next(sample[suffix] for suffix in ("jpg", "jpeg", "png", "webp") if suffix in sample)
        return RawPair(
            sample["__key__"], about["pid"], about["camid"], image, sample["mask.png"], sample["__url__"]
        )


class LoaderBench:
    """The sources over one data set. `steps` batches of 16 x 4 are timed, after
    two for each worker to start on.

    Of augmentation with a warm cache three times as many: its promise is within a few
    percent of what it is compared with.
    """

    def __init__(self, data: LoaderData, steps: int, drop_caches: bool) -> None:
        self.data, self.steps, self.drop_caches = data, steps, drop_caches
        self.transform = TrainTransform(DataConfig(shards="-"))
        table = data.split.table
        passes = -(-int(table.count.max()) // IMAGES)  # an epoch draws every image
        self.plan = Plan.pk(table, identities=IDENTITIES, images=IMAGES, seed=0, passes=passes)
        self.bytes = data.split.read_many(range(len(data.split)))

    def loader(self, run: Run) -> "tuple[DataLoader[Any], Steps]":
        reads: dict[str, Read] = {
            "memory": lambda numbers: [self.bytes[number] for number in numbers],
            "shards": self.data.split.read_many,
            "webdataset": Stream(self.data.split.urls()),
            "loose": self._loose,
            "loose, batched": self._loose,
        }
        steps = Steps()
        options: dict[str, Any] = {"num_workers": run.workers, "persistent_workers": run.workers > 0}
        options["worker_init_fn"] = start_worker
        options["prefetch_factor"] = DataConfig(shards="-").prefetch if run.workers else None
        if run.source == "loose":
            samples = SampleItems(reads[run.source], run.stage, self.transform)
            collate = _collated if run.stage == "augment" else sum
            return DataLoader(samples, batch_sampler=SampleSteps(steps), collate_fn=collate, **options), steps
        batches: Dataset[Any] = BatchItems(reads[run.source], run.stage, self.transform)
        if (run.source, run.stage) == ("shards", "augment"):
            batches = PairDataset(self.data.split, self.transform)  # training's own
        return DataLoader(batches, sampler=steps, batch_size=None, **options), steps

    def pairs_s(self, run: Run, number: int) -> float:
        """Pairs per second over steps of the plan, others in each round; workers
        have started and files are open."""
        count = self.steps if run.cold or run.stage != "augment" else 3 * self.steps
        loader, steps = self.loader(run)
        steps.batches = list(PlannedSteps(self.plan, 0, 2 * max(run.workers, 1), 0, 1))
        for _ in loader:
            pass
        if run.cold:
            self.make_cold()
        planned = PlannedSteps(self.plan, number * count, (number + 1) * count, 0, 1)
        # Training draws while it loads; the others get their batches for nothing.
        steps.batches = planned if run.source == "shards" else list(planned)
        started = time.perf_counter()
        for _ in loader:
            pass
        return count * IDENTITIES * IMAGES / (time.perf_counter() - started)

    def make_cold(self) -> None:
        """Raises UserError where the files' pages stay in memory."""
        paths = [*self.data.shard_paths, *self.data.loose_paths]
        empty_cache(paths, self.drop_caches)
        if not comes_from_disk(paths[-1]):
            raise UserError(
                f"{paths[-1]}: stays in memory; set TMPDIR to a folder on a disk, or use --no-cold"
            )

    def make_warm(self) -> None:
        fill_cache([*self.data.shard_paths, *self.data.loose_paths])

    def _loose(self, numbers: Numbers) -> list[RawPair]:
        pairs = []
        for source in (self.data.sources[number] for number in numbers):
            assert source.mask_path is not None
            image, mask = source.path.read_bytes(), source.mask_path.read_bytes()
            pairs.append(RawPair(source.key, source.pid, source.camid, image, mask, str(source.path)))
        return pairs


@dataclass(frozen=True)
class WorkerMemory:
    """The most private memory of one worker in each of two epochs, MB (1e6 bytes)."""

    batches: int
    first_mb: float
    second_mb: float

    @property
    def growth_mb(self) -> float:
        """From epoch to epoch; the allocator's own pools fill in the first."""
        return self.second_mb - self.first_mb


def worker_memory(bench: LoaderBench) -> WorkerMemory:
    """Two epochs of shards with one worker, as in training."""
    loader, steps = bench.loader(Run("shards", "augment", 1, False))
    epoch = bench.plan.steps_per_epoch
    steps.batches = PlannedSteps(bench.plan, 0, 2 * epoch, 0, 1)
    before = set(multiprocessing.active_children())
    used = []
    for _ in loader:
        (worker,) = set(multiprocessing.active_children()) - before
        used.append(_private_bytes(worker.pid) / 1e6)
    return WorkerMemory(epoch, max(used[:epoch]), max(used[epoch:]))


def _private_bytes(pid: int | None) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(
        int(line.split()[1]) * 1024 for line in lines if line.startswith(("Private_Clean", "Private_Dirty"))
    )


def all_runs(workers: tuple[int, ...], cold: bool) -> list[Run]:
    """Those that are compared stand side by side; cold ones first."""
    found: list[Run] = []
    cold_stages: tuple[Stage, ...] = ("raw", "augment") if cold else ()
    warm_stages: tuple[Stage, ...] = ("decode", "augment")
    for count in workers:
        for stage in cold_stages:
            found += [Run(source, stage, count, True) for source in SOURCES[1:]]
    for count in workers:
        found += [Run(source, "raw", count, False) for source in SOURCES[1:]]
        found += [Run("memory", "decode, torchvision", count, False)]
        for stage in warm_stages:
            found += [Run(source, stage, count, False) for source in SOURCES]
    return found


def measure(
    bench: LoaderBench, runs: list[Run], rounds: int, say: Callable[[str], None]
) -> dict[Run, list[float]]:
    """Pairs per second of each run in each round; odd rounds go backwards, so that
    nobody always follows another."""
    found: dict[Run, list[float]] = {run: [] for run in runs}
    warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than cores: meant
    for number in range(rounds):
        for cold in (True, False):
            if not cold:
                bench.make_warm()
            part = [run for run in runs if run.cold == cold]
            for run in part[:: -1 if number % 2 else 1]:
                say(f"round {number + 1} of {rounds}: {run.source}, {run.stage}, {run.workers} workers")
                found[run].append(bench.pairs_s(run, number))
            # A promise within a few percent: once more in the opposite order, and the mean of both.
            close = [run for run in part if run.stage == "augment" and run.source in ("memory", "shards")]
            for run in () if cold else close[:: 1 if number % 2 else -1]:
                say(
                    f"round {number + 1} of {rounds}: {run.source}, {run.stage}, {run.workers} workers, again"
                )
                found[run][-1] = (found[run][-1] + bench.pairs_s(run, number)) / 2
    return found


def ratio(found: dict[Run, list[float]], run: Run, beside: Run) -> Quantiles | None:
    """Of the figures of the same rounds."""
    if run not in found or beside not in found:
        return None
    return Quantiles.of([a / b for a, b in zip(found[run], found[beside], strict=True)])
