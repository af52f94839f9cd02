"""From shards to batches: the plan says which samples, the split reads them, the transform turns them into tensors."""

import gc
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from maskreid_dist.config import BatchConfig, Config, DataConfig
from maskreid_dist.data.bad_samples import Replaced, stand_ins
from maskreid_dist.data.decoders import Decode, decode_on, decode_with_torchvision
from maskreid_dist.data.transforms import EvaluationTransform, Pair, PairTransform, TrainTransform
from maskreid_dist.errors import SampleError
from maskreid_shards import Plan, RawPair, RemoteError, ShardError, ShardSet, Split, decode_pair, open_shards

# Pairs decoded before they are augmented; whole batches would gain little more, and take memory with large images.
TOGETHER = 32


class Draw(NamedTuple):
    """One sample of a batch: its number in the split and the seed of its augmentation."""

    sample: int
    seed: int


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
    draws: list[Draw]


class PairDataset(Dataset["Batch | ShardError"]):
    """Map-style over lists of draws: a whole batch is one item, so that neighbours share one read.

    replace_bad: another image of the identity takes the place of a bad sample, with the draw's own seed.
    """

    def __init__(
        self, split: Split, transform: PairTransform, replace_bad: bool = False, decode: Decode = decode_pair
    ) -> None:
        self.split = split
        self.transform = transform
        self.replace_bad = replace_bad
        self.decode = decode

    def __getitem__(self, draws: list[Draw]) -> "Batch | ShardError":
        """The batch, or what is wrong with it: raised in a worker, the error would arrive wrapped in a traceback."""
        try:
            raws = self.split.read_many([draw.sample for draw in draws])
            return decoded_batch(raws, draws, self.transform, self.decode)
        except ShardError as error:
            if not self.replace_bad or isinstance(error, RemoteError):  # a silent server is no bad sample
                return error
        try:
            return self._with_stand_ins(draws)
        except ShardError as error:
            return error

    def _with_stand_ins(self, draws: list[Draw]) -> Batch:
        """The batch, sample by sample. Raises ShardError for an identity without a sound image."""
        drawn = {draw.sample for draw in draws}
        taken, pairs, replaced = [], [], []
        for draw in draws:
            sample, pair, problem = self._first_sound(draw, drawn)
            taken.append(Draw(sample, draw.seed))
            pairs.append(pair)
            if sample != draw.sample:
                drawn.add(sample)
                replaced.append(Replaced(draw.sample, sample, problem))
        pids = self.split.pids[[draw.sample for draw in draws]].tolist()
        return joined_batch(pairs, taken, pids, tuple(replaced))

    def _first_sound(self, draw: Draw, drawn: set[int]) -> tuple[int, Pair, str]:
        problems: list[str] = []
        for sample in (draw.sample, *stand_ins(self.split, draw.sample, drawn).tolist()):
            try:
                pair = self.transform(*self.decode(self.split.read(sample)), draw.seed)
                return sample, pair, problems[0] if problems else ""
            except RemoteError:
                raise
            except ShardError as error:
                problems.append(str(error))
        raise ShardError(f"{problems[0]}; nor is another of its identity's {len(problems)} images sound")


class RawBatches(Dataset["RawBatch | ShardError"]):
    """Batches that are read and checked, and decoded by whoever receives them."""

    def __init__(self, split: Split) -> None:
        self.split = split

    def __getitem__(self, draws: list[Draw]) -> "RawBatch | ShardError":
        try:
            return RawBatch(self.split.read_many([draw.sample for draw in draws]), draws)
        except ShardError as error:
            return error


def decoded_batch(
    raws: list[RawPair], draws: list[Draw], transform: PairTransform, decode: Decode = decode_pair
) -> Batch:
    """Decode and augment, `TOGETHER` pairs at a time: turn about, each would evict the other's code from the caches."""
    pairs: list[Pair] = []
    for first in range(0, len(raws), TOGETHER):
        part = slice(first, first + TOGETHER)
        pictures = [decode(raw) for raw in raws[part]]
        pairs += [transform(*picture, draw.seed) for picture, draw in zip(pictures, draws[part], strict=True)]
    return joined_batch(pairs, draws, [raw.pid for raw in raws])


def joined_batch(
    pairs: list[Pair], draws: list[Draw], pids: list[int], replaced: tuple[Replaced, ...] = ()
) -> Batch:
    """The batch of augmented pairs, in their order.

    `default_collate` stacks straight into shared memory where a worker does it: one copy less than `torch.stack`, whose 8 MB
    buffers on the heap made glibc keep up to 40 MB more, or not, from one epoch to the next.
    """
    return Batch(
        default_collate([image.as_subclass(Tensor) for image, _ in pairs]),
        default_collate([mask.as_subclass(Tensor) for _, mask in pairs]),
        torch.tensor(pids),
        torch.tensor([draw.sample for draw in draws]),
        replaced,
    )


@dataclass(frozen=True)
class DeviceDecoder:
    """Decodes and augments on a device; pids and sample numbers stay on the CPU."""

    transform: PairTransform
    device: torch.device

    def __call__(self, batch: RawBatch) -> Batch:
        """Raises maskreid_shards.ShardError."""
        decoded = decode_on(self.device, batch.raws)
        pairs = [self.transform(*p, draw.seed) for p, draw in zip(decoded, batch.draws, strict=True)]
        return joined_batch(pairs, batch.draws, [raw.pid for raw in batch.raws])


class Batches:
    """The batches of a loader. Iterating raises SampleError for a bad sample, naming shard, key and offset."""

    def __init__(
        self, loader: "DataLoader[Batch | RawBatch | ShardError]", finish: DeviceDecoder | None = None
    ) -> None:
        self.loader = loader
        self.finish = finish

    def __iter__(self) -> Iterator[Batch]:
        for item in self.loader:
            if isinstance(item, ShardError):
                raise SampleError(str(item))
            if self.finish is None:
                yield item
                continue
            try:
                yield self.finish(item)
            except ShardError as error:
                raise SampleError(str(error)) from None


class PlannedSteps(Sampler[list[Draw]]):
    """This rank's draws of the global steps start ... stop - 1; step s is step s mod L of epoch s div L."""

    def __init__(self, plan: Plan, start: int, stop: int, rank: int, world_size: int) -> None:
        plan.check_world(world_size)
        self.plan, self.start, self.stop = plan, start, stop
        self.rank, self.world_size = rank, world_size

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[Draw]]:
        for step in range(self.start, self.stop):
            epoch, step_in_epoch = divmod(step, self.plan.steps_per_epoch)
            draws = self.plan.rank_draws(epoch, step_in_epoch, self.rank, self.world_size)
            yield [Draw(int(s), int(seed)) for s, seed in zip(draws.samples, draws.seeds, strict=True)]


def open_recipe_shards(data: DataConfig) -> ShardSet:
    """The shards of a recipe, through its cache if it has one. Raises maskreid_shards.ShardError."""
    limit = None if data.cache_gb is None else round(data.cache_gb * 1e9)
    return open_shards(data.shards, cache=data.cache, cache_bytes=limit)


def make_plan(split: Split, batch: BatchConfig, seed: int, world_size: int) -> Plan:
    """The plan of a recipe.

    Raises maskreid_shards.ShardError: too few identities, P not divisible by the world size; under few_images = "all" a rank
    that could get a single image, which batch normalisation cannot train on.
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
            f'few_images "all": one identity a rank ({batch.identities} over {world_size} ranks) would leave a rank with a '
            f'single image; use {2 * world_size} identities, or few_images "repeat" or "skip"'
        )
    return plan


def training_loader(
    split: Split, plan: Plan, config: Config, start: int, rank: int, world_size: int, device: torch.device
) -> Batches:
    """This rank's batches of steps start ... optimizer.steps - 1, over as many epochs as that takes.

    device: where they go; decoder "gpu" decodes there, the others pin their memory for a GPU.
    """
    steps = PlannedSteps(plan, start, config.optimizer.steps, rank, world_size)
    transform = TrainTransform(config.data)
    if config.data.decoder == "gpu":
        return _loader(RawBatches(split), steps, config.data, False, DeviceDecoder(transform, device))
    decode = decode_with_torchvision if config.data.decoder == "torchvision" else decode_pair
    dataset = PairDataset(split, transform, config.data.bad_samples > 0, decode)
    return _loader(dataset, steps, config.data, device.type == "cuda")


def evaluation_loader(split: Split, config: Config, samples: np.ndarray, rows: int = 128) -> Batches:
    """Batches of at most `rows` of the given sample numbers, in order, without augmentation.

    Numbers that follow each other share one read. Pillow decodes whatever the recipe's decoder. A bad sample is always an error: without it the figures
    would be another data set's.
    """
    draws = [Draw(int(sample), 0) for sample in samples]
    batches = [draws[i : i + rows] for i in range(0, len(draws), rows)]
    return _loader(PairDataset(split, EvaluationTransform(config.data)), batches, config.data, False)


def _loader(
    dataset: PairDataset | RawBatches,
    batches: Sampler[list[Draw]] | list[list[Draw]],
    data: DataConfig,
    pin: bool,
    finish: DeviceDecoder | None = None,
) -> Batches:
    if data.workers:
        _ = dataset.split.index  # a remote one is fetched once: the workers inherit it
    loader = DataLoader(
        dataset,
        sampler=batches,  # an item is a whole batch: automatic batching is off
        batch_size=None,
        num_workers=data.workers,
        prefetch_factor=data.prefetch if data.workers else None,
        pin_memory=pin,
        worker_init_fn=start_worker,
    )
    return Batches(loader, finish)


def start_worker(number: int) -> None:
    """Leave what the parent made out of this worker's garbage collections: visiting it would copy its pages."""
    gc.freeze()
