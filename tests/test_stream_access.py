"""`data.access = "stream"` as training sees it: the planned batches out of whole shards, from any step, over
faults, damage and http."""

import logging
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from faulty_server import FaultyServer, serving
from maskreid_dist.config import BatchConfig, Config, DataConfig, OptimizerConfig
from maskreid_dist.data.batches import Batch, make_plan, open_recipe_shards, recipe_plan, training_loader
from maskreid_dist.errors import CheckpointError, SampleError
from maskreid_dist.model.checkpoint import Checkpoint
from maskreid_dist.training.resuming import check_continues
from maskreid_shards import ShardError, ShardStream, StreamPlan, open_shards
from maskreid_shards.stores import http_store, remote
from test_stream import damage, same, sound

WALKERS = Path(__file__).parent.parent / "shards" / "walkers"
SMALL = {"height": 36, "width": 14, "resize_height": 40, "resize_width": 16}


def config(steps: int = 14, workers: int = 0, **data: Any) -> Config:
    keys: dict[str, Any] = {"shards": str(WALKERS), "access": "stream", "stream_pool": 30, **SMALL, **data}
    return Config(
        name="t",
        seed=7,
        data=DataConfig(workers=workers, **keys),
        batch=BatchConfig(identities=20, images=2),
        optimizer=OptimizerConfig(steps=steps),
    )


def rank_items(
    recipe: Config, start: int = 0, rank: int = 0, world: int = 1
) -> "Iterable[Batch | SampleError]":
    split = open_recipe_shards(recipe.data).split("train")
    plan = recipe_plan(split, recipe, world)
    return training_loader(split, plan, recipe, start, rank, world, torch.device("cpu"))


def rank_batches(recipe: Config, start: int = 0, rank: int = 0, world: int = 1) -> list[Batch]:
    return sound(rank_items(recipe, start, rank, world))


def streamed(recipe: Config, world: int = 1) -> StreamPlan:
    plan = recipe_plan(open_recipe_shards(recipe.data).split("train"), recipe, world)
    assert isinstance(plan, StreamPlan)
    return plan


@pytest.fixture(scope="module")
def straight() -> list[Batch]:
    """An epoch of 10 steps and the beginning of the next, one rank, read in its own process."""
    assert streamed(config()).steps_per_epoch == 10
    return rank_batches(config())


def test_it_is_the_plan_with_the_bytes_of_the_index(straight: list[Batch]) -> None:
    recipe = config()
    plan = streamed(recipe)
    split = open_shards(WALKERS).split("train")
    indexed = training_loader(
        split, make_plan(split, recipe.batch, 7, 1), config(access="indexed"), 0, 0, 1, torch.device("cpu")
    )
    assert not same(sound(indexed)[0], straight[0])
    for step, batch in enumerate(straight):
        draws = plan.rank_draws(*divmod(step, 10), 0, 1)
        assert batch.samples_B.tolist() == draws.samples.tolist()
        assert len(torch.unique(batch.pids_B)) == 20
    for epoch, first in ((0, 0), (1, 6)):
        stream = ShardStream(split, plan.to_read(epoch, first, 0))
        most = 0
        for step in range(first, 10):
            samples = plan.rank_batch(epoch, step, 0, 1)
            assert stream.read_many(samples) == split.read_many(samples)
            most = max(most, len(stream))
        assert 0 < most <= 30 * 2 and not len(stream)
    with pytest.raises(ValueError, match="not in what is left"):
        stream.read_many(np.array([0]))


@pytest.mark.parametrize("start", [1, 6, 9, 10, 13])
def test_resume(straight: list[Batch], start: int) -> None:
    again = rank_batches(config(), start)
    assert len(again) == 14 - start
    assert all(same(one, other) for one, other in zip(again, straight[start:], strict=True))


def test_two_ranks_with_two_workers_each() -> None:
    recipe = config(steps=7, workers=2)
    plan = streamed(recipe, 2)
    assert plan.steps_per_epoch == 8  # of the four shards each worker has one
    ranks = [rank_batches(recipe, 0, rank, 2) for rank in range(2)]
    for step, parts in enumerate(zip(*ranks, strict=True)):
        for rank, part in enumerate(parts):
            assert part.samples_B.tolist() == plan.rank_batch(0, step, rank, 2).tolist()
        assert len({int(pid) for part in parts for pid in part.pids_B}) == 20
    for start in (3, 4):
        again = rank_batches(recipe, start, 1, 2)
        assert all(same(one, other) for one, other in zip(again, ranks[1][start:], strict=True))


# Over http.


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyServer]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(remote, "BACKOFF_S", 0.001)
    monkeypatch.setattr(http_store, "TIMEOUT_S", None)  # the server always answers, on a busy machine late
    with serving(WALKERS) as running:
        yield running


@pytest.mark.parametrize("workers", [0, 2])
def test_a_request_a_shard(server: FaultyServer, straight: list[Batch], workers: int) -> None:
    steps = streamed(config(workers=workers)).steps_per_epoch
    here = rank_batches(config(steps=steps, workers=workers))
    assert workers or all(same(one, other) for one, other in zip(here, straight[:10], strict=True))
    recipe = config(steps=steps, workers=workers, shards=server.url)
    found = rank_batches(recipe)
    assert all(same(one, other) for one, other in zip(found, here, strict=True))
    shards = [count for path, count in server.counts.items() if path.endswith(".tar")]
    assert shards == [1] * 4
    server.counts.clear()
    rank_batches(recipe, steps - 1)
    assert sum(count for path, count in server.counts.items() if path.endswith(".tar")) < 4


def test_a_faulty_server_gives_the_same_batches(server: FaultyServer, straight: list[Batch]) -> None:
    server.fault = lambda path, number: ("drop", "cut", "500", "shift", "ok")[number % 5]
    found = rank_batches(config(shards=server.url))
    assert all(same(one, other) for one, other in zip(found, straight, strict=True))


def test_wrong_bytes_are_fetched_again(server: FaultyServer, straight: list[Batch]) -> None:
    server.fault = lambda path, number: "flip" if path.endswith(".tar") and number == 0 else "ok"
    found = rank_batches(config(shards=server.url))
    assert all(same(one, other) for one, other in zip(found, straight, strict=True))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_server_that_stops_answering_is_one_line(server: FaultyServer, workers: int) -> None:
    server.fault = lambda path, number: "503" if path.endswith(".tar") else "ok"
    with pytest.raises(
        SampleError, match=rf"^{server.url}/train/0\S*: in sequence: offset 0: HTTP 503.*5 att"
    ):
        rank_batches(config(shards=server.url, workers=workers, bad_samples=1000))


# Damage.


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return shutil.copytree(WALKERS, tmp_path / "shards")


def test_a_bad_sample_stops_or_is_replaced(straight: list[Batch], shards: Path) -> None:
    bad = [int(straight[0].samples_B[3]), int(straight[4].samples_B[10])]
    damage(shards, "train", bad)
    items = list(rank_items(config(shards=str(shards))))
    assert [isinstance(item, SampleError) for item in items] == [step in (0, 4) for step in range(14)]
    key = open_shards(WALKERS).split("train").keys[bad[0]].decode()
    assert f"{key}: the image at offset" in str(items[0]) and "does not fit its crc32" in str(items[0])
    found = rank_batches(config(shards=str(shards), bad_samples=2))
    assert [replaced.sample for batch in found for replaced in batch.replaced] == bad
    assert all(same(one, found[step]) for step, one in enumerate(straight) if step not in (0, 4))


@pytest.mark.parametrize("how", ["header", "name", "order"])
def test_a_damaged_tar_is_said_and_read_by_the_index(
    straight: list[Batch], shards: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = shards / "train" / "000001.tar"
    index = open_shards(shards).split("train").index
    drawn = sorted(sample for batch in straight[:10] for sample in batch.samples_B.tolist())
    row = next(row for row in index[drawn] if row["shard"] == 1)
    data = bytearray(path.read_bytes())
    header = int(row["image_offset"]) - 512
    if how == "header":
        data[header + 150] ^= 255  # its checksum
    else:
        data[header : header + 100] = b"other.jpg".ljust(100, b"\0")
        total = sum(data[header : header + 148]) + 8 * 32 + sum(data[header + 156 : header + 512])
        data[header + 148 : header + 156] = b"%06o\0 " % total
    if how == "order":
        data[header : header + 512] = bytes(512)  # as at the end of a tar
    path.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        found = rank_batches(config(shards=str(shards)))
    assert all(same(one, other) for one, other in zip(found, straight, strict=True))
    said = [message for message in caplog.messages if "did not come in sequence" in message]
    assert said and all(message.startswith(str(path)) for message in said)


def test_nothing_is_said_of_sound_shards(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        rank_batches(config())
    assert caplog.messages == []


# Recipes.


def test_too_few_shards_are_refused_before_anything_starts() -> None:
    with pytest.raises(ShardError, match=r"4 shards .* 2 ranks x 3 readers; use fewer data workers"):
        streamed(config(workers=3), 2)
    with pytest.raises(ShardError, match="a pool of 10 identities, and a rank draws 20"):
        streamed(config(stream_pool=10))


def test_a_run_continues_with_as_many_readers(tmp_path: Path) -> None:
    def continued(saved: Config, world: int, now: Config, world_now: int) -> None:
        check_continues(Checkpoint(tmp_path, 5, saved, 0, world, "f", None, [], ""), now, "f", world_now)

    continued(config(workers=2), 2, config(workers=2), 2)
    continued(config(workers=0), 2, config(workers=1), 2)
    for world, workers in ((1, 2), (2, 1)):
        with pytest.raises(CheckpointError, match=rf"to 2 ranks x 2 data workers, now there are {world} x"):
            continued(config(workers=2), 2, config(workers=workers), world)
    with pytest.raises(CheckpointError, match=r"data\.access = 'indexed', the recipe says 'stream'"):
        continued(config(access="indexed"), 1, config(), 1)
    continued(config(access="indexed", workers=2), 2, config(access="indexed", workers=1), 1)
