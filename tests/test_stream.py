"""The stream as training sees it: exact from any step and at any world size, over faults and bad samples,
memory flat."""

import ctypes
import gc
import os
import shutil
import tracemalloc
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset
from torch.utils.data import DataLoader, Dataset
from typer.testing import CliRunner

from faulty_server import FaultyServer, serving
from maskreid_dist.cli.app import app
from maskreid_dist.config import BatchConfig, Config, DataConfig, OptimizerConfig
from maskreid_dist.data.bad_samples import BadSamples, Replaced
from maskreid_dist.data.batches import (
    Batch,
    PairDataset,
    PlannedSteps,
    evaluation_loader,
    joined_batch,
    make_plan,
    open_recipe_shards,
    training_loader,
)
from maskreid_dist.data.transforms import TrainTransform
from maskreid_dist.errors import SampleError
from maskreid_shards import Draws, open_shards
from maskreid_shards.stores import http_store, remote

WALKERS = Path(__file__).parent.parent / "shards" / "walkers"
SMALL = {"height": 36, "width": 14, "resize_height": 40, "resize_width": 16, "workers": 0}
# Everything random is on.
AUGMENTED = {"brightness": 0.3, "contrast": 0.2, "saturation": 0.2, "hue": 0.1, "erasing": 0.5}


def config(steps: int, **data: Any) -> Config:
    identities = data.pop("identities", 40)
    keys: dict[str, Any] = {"shards": str(WALKERS), **SMALL, **data}
    return Config(
        name="t",
        seed=7,
        data=DataConfig(**keys),
        batch=BatchConfig(identities=identities, images=2),
        optimizer=OptimizerConfig(steps=steps),
    )


def rank_batches(recipe: Config, start: int, rank: int, world: int) -> list[Batch]:
    split = open_recipe_shards(recipe.data).split("train")
    plan = make_plan(split, recipe.batch, recipe.seed, world)
    return sound(training_loader(split, plan, recipe, start, rank, world, torch.device("cpu")))


def sound(items: Iterable[Batch | SampleError]) -> list[Batch]:
    """Raises the first bad sample, as the loop does once the ranks have agreed."""
    batches = []
    for item in items:
        if isinstance(item, SampleError):
            raise item
        batches.append(item)
    return batches


def same(one: Batch, other: Batch) -> bool:
    return all(
        torch.equal(getattr(one, name), getattr(other, name))
        for name in ("image_B3HW", "mask_B1HW", "pids_B", "samples_B")
    )


def joined(parts: tuple[Batch, ...]) -> Batch:
    """The global batch of the ranks' parts."""
    names = ("image_B3HW", "mask_B1HW", "pids_B", "samples_B")
    tensors: dict[str, Any] = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
    return Batch(**tensors)


@pytest.fixture(scope="module")
def straight() -> list[Batch]:
    """Epoch 0 (5 steps) and the beginning of epoch 1, on one rank."""
    batches = rank_batches(config(7, **AUGMENTED), 0, 0, 1)
    assert len(batches) == 7 and not same(batches[0], batches[5])
    return batches


@pytest.mark.parametrize("start", range(7))
def test_resume_at_every_step(straight: list[Batch], start: int) -> None:
    recipe = config(7, **AUGMENTED, **{"workers": 2} if start == 3 else {})
    again = rank_batches(recipe, start, 0, 1)
    assert len(again) == 7 - start
    assert all(same(one, other) for one, other in zip(again, straight[start:], strict=True))


@pytest.mark.parametrize(("before", "after"), [(2, 4), (4, 1)])
@pytest.mark.parametrize("stopped", [2, 5])
def test_resume_on_another_number_of_ranks(
    straight: list[Batch], before: int, after: int, stopped: int
) -> None:
    early = [rank_batches(config(stopped, **AUGMENTED), 0, rank, before) for rank in range(before)]
    late = [rank_batches(config(7, **AUGMENTED), stopped, rank, after) for rank in range(after)]
    found = [*map(joined, zip(*early, strict=True)), *map(joined, zip(*late, strict=True))]
    assert all(same(one, other) for one, other in zip(found, straight, strict=True))


# Over http.


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyServer]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(remote, "BACKOFF_S", 0.001)
    monkeypatch.setattr(http_store, "TIMEOUT_S", None)  # the server always answers, on a busy machine late
    served = tmp_path / "served"
    shutil.copytree(WALKERS, served)
    with serving(served) as running:
        yield running


def every_third_request_fails(path: str, number: int) -> str:
    return ("drop", "cut", "500", "shift", "ignore")[number // 3 % 5] if number % 3 == 1 else "ok"


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("cached", [False, True])
def test_a_faulty_server_gives_the_same_batches(
    server: FaultyServer, straight: list[Batch], tmp_path: Path, workers: int, cached: bool
) -> None:
    server.fault = every_third_request_fails
    cache = {"cache": str(tmp_path / "cache")} if cached else {}
    recipe = config(4, shards=server.url, workers=workers, **cache, **AUGMENTED)
    batches = rank_batches(recipe, 0, 0, 1)
    assert all(same(one, other) for one, other in zip(batches, straight[:4], strict=True))
    assert server.counts["/index/train.npy"] <= 2  # the workers inherit it


@pytest.mark.parametrize("workers", [0, 1])
def test_a_server_that_stops_answering_is_one_line(server: FaultyServer, workers: int) -> None:
    # No bad sample: the store is silent.
    recipe = config(4, shards=server.url, workers=workers, bad_samples=1000)
    server.fault = lambda path, number: "503" if path.endswith(".tar") else "ok"
    with pytest.raises(
        SampleError, match=rf"{server.url}/train/0.*: p\d+_\d+: offset \d+: HTTP 503.*5 attempts"
    ):
        rank_batches(recipe, 0, 0, 1)


def test_the_program_says_it_in_one_line(server: FaultyServer, tmp_path: Path) -> None:
    server.fault = lambda path, number: "500"
    recipe = tmp_path / "remote.toml"
    recipe.write_text(f'name = "remote"\n[data]\nshards = "{server.url}"\n')
    for command in (["train", recipe, "--runs", tmp_path], ["evaluate", tmp_path, server.url]):
        result = CliRunner().invoke(app, [str(word) for word in command])
        assert result.exit_code == 2 and "Traceback" not in result.output
        (line,) = [line for line in result.output.splitlines() if line]
        assert line.startswith(f"maskreid: error: {server.url}/manifest.json: ") and "HTTP 500" in line


# Bad samples.


def damage(folder: Path, name: str, samples: list[int]) -> None:
    split = open_shards(folder).split(name)
    for row in split.index[samples]:
        path = Path(split.urls()[int(row["shard"])])
        data = bytearray(path.read_bytes())
        data[int(row["image_offset"]) + 50] ^= 4
        path.write_bytes(data)


@pytest.fixture
def damaged(straight: list[Batch], tmp_path: Path) -> tuple[Path, list[int]]:
    """Shards with three bad samples: both draws of an identity in step 1, a single one in step 2."""
    shards = shutil.copytree(WALKERS, tmp_path / "damaged")
    bad = [*straight[1].samples_B[4:6].tolist(), int(straight[2].samples_B[33])]
    damage(shards, "train", bad)
    return shards, bad


@pytest.mark.parametrize("world", [1, 2, 4])
def test_the_next_image_stands_in_on_every_world_size(
    straight: list[Batch], damaged: tuple[Path, list[int]], world: int
) -> None:
    shards, bad = damaged
    recipe = config(3, shards=str(shards), bad_samples=3, workers=world % 2, **AUGMENTED)
    ranks = [rank_batches(recipe, 0, rank, world) for rank in range(world)]
    split = open_shards(shards).split("train")
    met: dict[int, int] = {}
    for step, parts in enumerate(zip(*ranks, strict=True)):
        met.update({r.sample: r.by for part in parts for r in part.replaced})
        batch = joined(parts)
        assert torch.equal(batch.pids_B, straight[step].pids_B)
        changed = torch.nonzero(batch.samples_B != straight[step].samples_B).flatten().tolist()
        assert changed == [i for i, s in enumerate(straight[step].samples_B.tolist()) if s in bad]
        kept = [i for i in range(80) if i not in changed]
        assert torch.equal(batch.image_B3HW[kept], straight[step].image_B3HW[kept])
        for i in changed:
            images = split.images_of(int(batch.pids_B[i])).tolist()
            wanted, taken = int(straight[step].samples_B[i]), int(batch.samples_B[i])
            following = [*images[images.index(wanted) + 1 :], *images[: images.index(wanted)]]
            others = set(batch.samples_B.tolist()) - {taken}
            assert taken == next(n for n in following if n not in bad and n not in others)
    assert sorted(met) == sorted(bad)


def test_an_identity_without_a_sound_image_stops(straight: list[Batch], tmp_path: Path) -> None:
    shards = shutil.copytree(WALKERS, tmp_path / "damaged")
    split = open_shards(shards).split("train")
    damage(shards, "train", split.images_of(int(straight[0].pids_B[0])).tolist())
    with pytest.raises(SampleError, match=r"does not fit its crc32.*nor is another of its identity's"):
        rank_batches(config(1, shards=str(shards), bad_samples=1000), 0, 0, 1)


def test_bad_samples_are_fatal_without_a_budget(damaged: tuple[Path, list[int]]) -> None:
    with pytest.raises(SampleError, match="does not fit its crc32"):
        rank_batches(config(5, shards=str(damaged[0])), 0, 0, 1)


def test_the_budget_counts_different_samples() -> None:
    bad = BadSamples(2)
    assert len(bad.add([Replaced(5, 6, "five"), Replaced(9, 1, "nine")])) == 2
    assert bad.add([Replaced(5, 7, "five")]) == []
    assert bad.lines() == ["bad samples: 2 of at most 2, 3 replacements"]
    with pytest.raises(SampleError, match=r"3 bad samples, data\.bad_samples allows 2; the last: eight"):
        bad.add([Replaced(8, 7, "eight")])


# Sequential reading, and memory.


def test_evaluation_reads_in_shard_order_in_large_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    split = open_shards(WALKERS).split("gallery")
    reads: list[tuple[int, int, int]] = []
    pread = os.pread

    def counted(fd: int, length: int, at: int) -> bytes:
        reads.append((os.fstat(fd).st_ino, at, length))
        return pread(fd, length, at)

    monkeypatch.setattr(os, "pread", counted)
    batches = sound(evaluation_loader(split, config(1), np.arange(512), rows=128))
    keys = [split.keys[number].decode() for number in torch.cat([b.samples_B for b in batches]).tolist()]
    stream = webdataset.WebDataset(split.urls(), shardshuffle=False)
    assert keys == [sample["__key__"] for sample, _ in zip(stream, range(512), strict=False)]
    shards = [inode for inode, _, _ in reads]
    assert len(reads) <= 4 + len(set(shards)) - 1  # one a batch, and one more where a batch crosses shards
    assert shards == sorted(shards, key=shards.index)
    assert all(a[1] + a[2] <= b[1] for a, b in zip(reads, reads[1:], strict=False) if a[0] == b[0])


def test_webdataset_reads_the_repositorys_shards() -> None:
    for name in ("query", "gallery"):
        split = open_shards(WALKERS).split(name)
        count = 0
        for sample in webdataset.WebDataset(split.urls(), shardshuffle=False):
            pair = split.read(count)
            assert (sample["__key__"], sample["mask.png"]) == (pair.key, pair.mask)
            assert sample[next(s for s in ("jpg", "png", "webp") if s in sample)] == pair.image
            count += 1
        assert count == len(split)


class WhereBatchesAre(Dataset[list[bool]]):
    def __getitem__(self, number: int) -> list[bool]:
        pair = torch.full((3, 8, 4), 7, dtype=torch.uint8), torch.full((1, 8, 4), 9, dtype=torch.uint8)
        batch = joined_batch([pair, pair], [0, 1], [5, 5])
        assert torch.equal(batch.image_B3HW, torch.stack([pair[0]] * 2))
        assert torch.equal(batch.mask_B1HW, torch.stack([pair[1]] * 2))
        return [batch.image_B3HW.is_shared(), batch.mask_B1HW.is_shared()]


def test_a_worker_stacks_into_shared_memory() -> None:
    """On its heap, the large buffers would make its memory jump by 40 MB (LOG.md)."""
    items = WhereBatchesAre()
    assert items[0] == [False, False]
    loader: DataLoader[list[bool]] = DataLoader(items, batch_size=None, sampler=[0], num_workers=1)
    assert list(loader) == [[True, True]]


class Measured(Dataset[int]):
    """An item is what this process holds, in bytes, once it has made that batch of another data set."""

    def __init__(self, batches: Dataset[Batch | SampleError]) -> None:
        self.batches = batches

    def __getitem__(self, draws: Draws) -> int:
        if not tracemalloc.is_tracing():
            gc.freeze()  # what was imported: each collection would look at all of it
            tracemalloc.start()
        self.batches[draws]
        gc.collect()
        return tracemalloc.get_traced_memory()[0] + allocated_bytes()


class Leaking(Dataset[Batch | SampleError]):
    """Keeps the images of each batch, 48,000 bytes of 32."""

    def __init__(self, batches: Dataset[Batch | SampleError]) -> None:
        self.batches = batches
        self.kept: list[torch.Tensor] = []

    def __getitem__(self, draws: Draws) -> Batch:
        batch = self.batches[draws]
        assert isinstance(batch, Batch)
        self.kept.append(batch.image_B3HW.clone())
        return batch


def allocated_bytes() -> int:
    """What malloc has handed out: not the resident memory, which also holds what is free again."""

    class Mallinfo2(ctypes.Structure):
        names = (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
        )
        _fields_ = tuple((name, ctypes.c_size_t) for name in (*names, "keepcost"))

    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = Mallinfo2
    found = mallinfo2()
    return int(found.uordblks + found.hblkhd)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="asks glibc 2.33 or later")
@pytest.mark.parametrize(("served", "leaks"), [(False, False), (True, False), (False, True)])
def test_a_worker_holds_no_more_after_many_batches(server: FaultyServer, served: bool, leaks: bool) -> None:
    steps = 20  # 640 pairs
    recipe = config(steps, identities=16, workers=1, **{"shards": server.url} if served else {})
    split = open_recipe_shards(recipe.data).split("train")
    plan = make_plan(split, recipe.batch, recipe.seed, 1)
    batches: Dataset[Batch | SampleError] = PairDataset(split, TrainTransform(recipe.data))
    if leaks:
        batches = Leaking(batches)
    planned = PlannedSteps(plan, 0, steps, 0, 1)
    held = list(DataLoader(Measured(batches), sampler=planned, batch_size=None, num_workers=1))
    print("held by the worker, MB:", *(f"{count / 1e6:.2f}" for count in held))
    grown = held[-1] - held[8]  # files are open and caches filled by then
    assert (grown > 500_000) if leaks else (grown < 150_000)
