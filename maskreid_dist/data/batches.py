"""From shards to batches: the plan says which samples, the split reads them, the
transform turns them into tensors."""

import ctypes
import gc
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from maskreid_dist.config import BatchConfig, Config, DataConfig
from maskreid_dist.data.bad_samples import Replaced, stand_ins
from maskreid_dist.data.decoders import Decode, decode_on, decode_with_torchvision
from maskreid_dist.data.mask_damage import damaged
from maskreid_dist.data.streaming import Read, StreamedBatches
from maskreid_dist.data.transforms import EvaluationTransform, Pair, PairTransform, TrainTransform
from maskreid_dist.errors import SampleError
from maskreid_shards import (
    Draws,
    Plan,
    RawPair,
    RemoteError,
    ShardError,
    ShardSet,
    Split,
    StreamPlan,
    decode_pair,
    open_shards,
)

AnyPlan = Plan | StreamPlan

# Pairs decoded before they are augmented; whole batches would gain little more, and take memory with large
# images.
DECODE_CHUNK = 32
PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>


@dataclass(frozen=True)
class Batch:
    """image_B3HW and mask_B1HW uint8 (255 = person), pids_B and samples_B int64; `replaced`: bad samples."""

    image_B3HW: Tensor
    mask_B1HW: Tensor
    pids_B: Tensor
    samples_B: Tensor
    replaced: tuple[Replaced, ...] = ()

    def pin_memory(self) -> "Batch":
        return Batch(
            self.image_B3HW.pin_memory(),
            self.mask_B1HW.pin_memory(),
            self.pids_B.pin_memory(),
            self.samples_B.pin_memory(),
            self.replaced,
        )


@dataclass(frozen=True)
class RawBatch:
    """A batch as it lies in the shards."""

    raws: list[RawPair]
    draws: Draws


class PairDataset(Dataset[Batch | SampleError]):
    """Map-style over the plan's draws: a whole batch is one item, so that neighbours share one read.

    A batch that cannot be made is a SampleError, handed on as a value: raised in a worker, it would arrive
    wrapped in a traceback, and a rank that raised alone would leave the others waiting.
    replace_bad: another image of the identity takes the place of a bad sample, with the draw's own seed.
    """

    def __init__(
        self, split: Split, transform: PairTransform, replace_bad: bool = False, decode: Decode = decode_pair
    ) -> None:
        self.split = split
        self.read: Read = split.read_many
        self.transform = transform
        self.replace_bad = replace_bad
        self.decode = decode

    def __getitem__(self, draws: Draws) -> Batch | SampleError:
        try:
            return self._batch(draws)
        except ShardError as error:
            return SampleError(str(error))

    def _batch(self, draws: Draws) -> Batch:
        try:
            return decoded_batch(self.read(draws.samples), draws, self.transform, self.decode)
        except RemoteError:  # a silent server is no bad sample
            raise
        except ShardError:
            if not self.replace_bad:
                raise
        return self._with_stand_ins(draws)

    def _with_stand_ins(self, draws: Draws) -> Batch:
        """The batch, sample by sample. Raises ShardError for an identity without a sound image."""
        drawn = set(draws.samples.tolist())
        taken, pairs, replaced = [], [], []
        for sample, seed in zip(draws.samples.tolist(), draws.seeds.tolist(), strict=True):
            by, pair, problem = self._first_sound(sample, seed, drawn)
            taken.append(by)
            pairs.append(pair)
            if by != sample:
                drawn.add(by)
                replaced.append(Replaced(sample, by, problem))
        return joined_batch(pairs, taken, draws.pids, tuple(replaced))

    def _first_sound(self, sample: int, seed: int, drawn: set[int]) -> tuple[int, Pair, str]:
        """The sample, or the first stand-in that is sound, its pair, and what is wrong with the sample."""
        problems: list[str] = []
        for candidate in (sample, *stand_ins(self.split, sample, drawn).tolist()):
            try:
                pair = self.transform(*self.decode(self.split.read(candidate)), seed)
                return candidate, pair, problems[0] if problems else ""
            except RemoteError:
                raise
            except ShardError as error:
                problems.append(str(error))
        raise ShardError(f"{problems[0]}; nor is another of its identity's {len(problems)} images sound")


class RawBatches(Dataset[RawBatch | SampleError]):
    """Batches that are read and checked, and decoded by whoever receives them."""

    def __init__(self, split: Split) -> None:
        self.split = split
        self.read: Read = split.read_many

    def __getitem__(self, draws: Draws) -> RawBatch | SampleError:
        try:
            return RawBatch(self.read(draws.samples), draws)
        except ShardError as error:
            return SampleError(str(error))


def decoded_batch(
    raws: list[RawPair], draws: Draws, transform: PairTransform, decode: Decode = decode_pair
) -> Batch:
    """Raises maskreid_shards.ShardError. Decoding a chunk, then augmenting it,
    keeps each stage's code in cache."""
    pairs: list[Pair] = []
    seeds = draws.seeds.tolist()
    for first in range(0, len(raws), DECODE_CHUNK):
        part = slice(first, first + DECODE_CHUNK)
        pictures = [decode(raw) for raw in raws[part]]
        pairs += [transform(*picture, seed) for picture, seed in zip(pictures, seeds[part], strict=True)]
    return joined_batch(pairs, draws.samples, draws.pids)


def joined_batch(
    pairs: list[Pair], samples: ArrayLike, pids: ArrayLike, replaced: tuple[Replaced, ...] = ()
) -> Batch:
    """The batch of augmented pairs, in their order.

    `default_collate` stacks straight into shared memory where a worker does it: one copy
    less than `torch.stack`, whose 8 MB buffers on the heap made glibc keep up to 40 MB
    more, or not, from one epoch to the next.
    """
    return Batch(
        default_collate([image.as_subclass(Tensor) for image, _ in pairs]),
        default_collate([mask.as_subclass(Tensor) for _, mask in pairs]),
        torch.tensor(pids),
        torch.tensor(samples),
        replaced,
    )


@dataclass(frozen=True)
class DeviceDecoder:
    """Decodes and augments on a device; pids and sample numbers stay on the CPU."""

    transform: PairTransform
    device: torch.device

    def __call__(self, batch: RawBatch | SampleError) -> Batch | SampleError:
        if isinstance(batch, SampleError):
            return batch
        try:
            decoded = decode_on(self.device, batch.raws)
        except ShardError as error:
            return SampleError(str(error))
        seeds = batch.draws.seeds.tolist()
        pairs = [self.transform(*picture, seed) for picture, seed in zip(decoded, seeds, strict=True)]
        return joined_batch(pairs, batch.draws.samples, batch.draws.pids)


class PlannedSteps(Sampler[Draws]):
    """This rank's draws of the global steps start ... stop - 1; step s is step s mod L of epoch s div L."""

    def __init__(self, plan: Plan, start: int, stop: int, rank: int, world_size: int) -> None:
        plan.check_world(world_size)
        self.plan, self.start, self.stop = plan, start, stop
        self.rank, self.world_size = rank, world_size

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[Draws]:
        for step in range(self.start, self.stop):
            epoch, step_in_epoch = divmod(step, self.plan.steps_per_epoch)
            yield self.plan.rank_draws(epoch, step_in_epoch, self.rank, self.world_size)


def open_recipe_shards(data: DataConfig) -> ShardSet:
    """The shards of a recipe, through its cache if it has one. Raises maskreid_shards.ShardError."""
    limit = None if data.cache_gb is None else round(data.cache_gb * 1e9)
    return open_shards(data.shards, cache=data.cache, cache_bytes=limit)


def make_plan(split: Split, batch: BatchConfig, seed: int, world_size: int) -> Plan:
    """The plan of a recipe.

    Raises maskreid_shards.ShardError: too few identities, P not divisible by the world size; under few_images
    = "all" a rank that could get a single image, which batch normalisation cannot train on.
    """
    if batch.sampling == "paper":
        plan = Plan.paper(split.table, groups=world_size, seed=seed, passes=batch.passes)
    else:
        plan = Plan.pk(
            split.table,
            identities=batch.identities,
            images=batch.images,
            seed=seed,
            few_images=batch.few_images,
            passes=batch.passes,
        )
    plan.check_world(world_size)
    alone = batch.sampling == "pk" and batch.identities == world_size and batch.few_images == "all"
    if alone and batch.images > 1 and (split.table.count[split.table.pids > 0] == 1).any():
        raise ShardError(
            f'few_images "all": one identity a rank ({batch.identities} over {world_size} ranks) would leave '
            f'a rank with a single image; use {2 * world_size} identities, or few_images "repeat" or "skip"'
        )
    return plan


def recipe_plan(split: Split, config: Config, world_size: int) -> AnyPlan:
    """The plan of a recipe, by its `data.access`. Raises maskreid_shards.ShardError as `make_plan`, and where
    the shards are too few to stream."""
    plan = make_plan(split, config.batch, config.seed, world_size)
    if config.data.access == "indexed":
        return plan
    readers = max(1, config.data.workers)
    pool = config.data.stream_pool
    return StreamPlan.of(plan, split.index["shard"], pool=pool, world=world_size, readers=readers)


def training_loader(
    split: Split, plan: AnyPlan, config: Config, start: int, rank: int, world_size: int, device: torch.device
) -> Iterable[Batch | SampleError]:
    """This rank's batches of steps start ... optimizer.steps - 1, over as many epochs as that takes.

    A SampleError in place of a batch names shard, key and offset.
    device: where they go; decoder "gpu" decodes there, the others pin their memory for a GPU.
    """
    transform = TrainTransform(config.data)
    dataset: PairDataset | RawBatches
    if config.data.decoder == "gpu":
        dataset = RawBatches(split)
    else:
        decode: Decode = decode_with_torchvision if config.data.decoder == "torchvision" else decode_pair
        decode = damaged(decode, config.data.mask_damage, split)
        dataset = PairDataset(split, transform, config.data.bad_samples > 0, decode)
    pin = device.type == "cuda" and config.data.decoder != "gpu"
    stop = config.optimizer.steps
    if isinstance(plan, StreamPlan):
        batches = StreamedBatches(dataset, plan, start, stop, rank)
        loader = _loader(batches, None, config.data, pin)
    else:
        steps = PlannedSteps(plan, start, stop, rank, world_size)
        loader = _loader(dataset, steps, config.data, pin)
    return map(DeviceDecoder(transform, device), loader) if config.data.decoder == "gpu" else loader


def evaluation_loader(
    split: Split, config: Config, samples: NDArray[np.int64], rows: int = 128
) -> Iterable[Batch | SampleError]:
    """Batches of at most `rows` of the given sample numbers, in order, as `batches_of` makes them."""
    return batches_of(split, config, [samples[i : i + rows] for i in range(0, len(samples), rows)])


def batches_of(
    split: Split, config: Config, batches: Sequence[NDArray[np.int64]]
) -> Iterable[Batch | SampleError]:
    """Batches of these sample numbers, without augmentation.

    Numbers that follow each other share one read. Pillow decodes whatever the recipe's decoder. A bad sample
    is always a SampleError: without it the figures would be another data set's.
    """
    draws = [_without_augmentation(split, samples) for samples in batches]
    decode = damaged(decode_pair, config.data.mask_damage, split)
    dataset = PairDataset(split, EvaluationTransform(config.data), decode=decode)
    return _loader(dataset, draws, config.data, False)


def _without_augmentation(split: Split, samples: NDArray[np.int64]) -> Draws:
    zeros = np.zeros(len(samples), np.int64)
    return Draws(samples, split.pids[samples], zeros, zeros.astype(np.uint64))


def _loader(
    dataset: PairDataset | RawBatches | StreamedBatches,
    batches: Sampler[Draws] | list[Draws] | None,
    data: DataConfig,
    pin: bool,
) -> "DataLoader[Any]":
    if data.workers:
        _ = dataset.split.index  # a remote one is fetched once: the workers inherit it
    return DataLoader(
        dataset,
        sampler=batches,  # an item is a whole batch: automatic batching is off
        batch_size=None,
        num_workers=data.workers,
        prefetch_factor=data.prefetch if data.workers else None,
        pin_memory=pin,
        worker_init_fn=start_worker,
    )


def start_worker(number: int) -> None:
    """Leave what the parent made out of this worker's garbage collections: visiting it would copy its
    pages. A worker ends with its rank, and not before: a launcher's SIGTERM to all asks the rank to finish
    its step."""
    gc.freeze()
    for request in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(request, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    rank = multiprocessing.parent_process()
    if rank and os.getppid() != rank.pid:  # gone before that
        os._exit(1)


def end_workers() -> None:
    """End the workers of this process, which ignore a SIGTERM: the interpreter would wait for them."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's would raise what it finds
    for worker in multiprocessing.active_children():
        worker.kill()
