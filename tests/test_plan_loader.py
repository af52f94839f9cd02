"""The plan through the loader's own sampler: worlds, workers, resume; and `maskreid plan` prints what
training draws."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset
from typer.testing import CliRunner

from maskreid_dist.cli.app import app
from maskreid_dist.config import BatchConfig, Config, DataConfig
from maskreid_dist.data.batches import PlannedSteps, make_plan, training_loader
from maskreid_shards import Draws, IdentityTable, Plan, ShardError, open_shards
from maskreid_shards.bench.plan import measure_plan
from test_stream import sound

WALKERS = Path(__file__).parent.parent / "shards" / "walkers"


class Draw(NamedTuple):
    sample: int
    seed: int


def listed(steps: Iterable[Draws]) -> list[list[Draw]]:
    """What can be compared."""
    return [list(map(Draw, draws.samples.tolist(), draws.seeds.tolist())) for draws in steps]


class Echo(Dataset[Draws]):
    """Hands back what the sampler asked for, from whichever process."""

    def __getitem__(self, draws: Draws) -> Draws:
        return draws


def through_a_loader(steps: PlannedSteps, workers: int) -> list[list[Draw]]:
    loader = DataLoader(
        Echo(), sampler=steps, batch_size=None, num_workers=workers, collate_fn=lambda item: item
    )
    return listed(loader)


@st.composite
def cases(draw: st.DrawFn) -> Plan:
    counts = draw(st.lists(st.integers(1, 7), min_size=12, max_size=60))
    order = np.random.default_rng(draw(st.integers(0, 3))).permutation(len(counts))
    distractors = [0] * draw(st.integers(0, 3))
    table = IdentityTable.of_pids([*distractors, *np.repeat(order + 1, np.array(counts)[order])])
    return Plan.pk(
        table,
        identities=draw(st.sampled_from([1, 2, 3, 4, 6, 8, 12])),
        images=draw(st.integers(1, 5)),
        seed=draw(st.integers(0, 2**32 - 1)),
        few_images=draw(st.sampled_from(["repeat", "all"])),
        passes=draw(st.integers(1, 3)),
    )


@given(plan=cases(), epoch=st.integers(0, 50))
@settings(max_examples=200, deadline=None)
def test_every_world_and_every_resume_gives_the_same_batches(plan: Plan, epoch: int) -> None:
    length = plan.steps_per_epoch
    start, stop = epoch * length, (epoch + 1) * length
    whole = listed(PlannedSteps(plan, start, stop, 0, 1))
    assert len(whole) == length
    worlds = [world for world in range(1, plan.groups + 1) if plan.groups % world == 0]
    for world in worlds:
        ranks = [through_a_loader(PlannedSteps(plan, start, stop, rank, world), 0) for rank in range(world)]
        assert [len(batches) for batches in ranks] == [length] * world
        assert [[draw for part in parts for draw in part] for parts in zip(*ranks, strict=True)] == whole
    owner = np.repeat(plan.table.pids, plan.table.count)[np.argsort(_samples(plan.table))]
    drawn: dict[int, set[int]] = {}
    for batch in whole:
        pids = owner[[draw.sample for draw in batch]]
        assert (pids > 0).all()
        changes = 1 + int((pids[1:] != pids[:-1]).sum())
        assert len(np.unique(pids)) == changes == plan.groups  # adjacent, and none twice
        for pid, draw in zip(pids.tolist(), batch, strict=True):
            drawn.setdefault(pid, set()).add(draw.sample)
    # What an epoch promises: each pass misses fewer than P identities, and who is met in each has all images
    # drawn once passes x K reach their number.
    assert sum(plan.table.pids > 0) - len(drawn) < plan.groups
    if plan.dropped_per_pass == 0:
        asked = plan.passes * plan.group_images[0]
        for pid, samples in drawn.items():
            assert len(samples) == min(asked, len(plan.table.images_of(pid))) or plan.few_images == "all"


@given(plan=cases(), epoch=st.integers(0, 50))
@settings(max_examples=60, deadline=None)
def test_resume_at_every_step_of_an_epoch(plan: Plan, epoch: int) -> None:
    length = plan.steps_per_epoch
    whole = listed(PlannedSteps(plan, epoch * length, (epoch + 1) * length, 0, 1))
    saved_by, continued_by = 1, plan.groups  # another world: the largest
    fresh = Plan(plan.table, plan.groups, plan.group_images, plan.seed, plan.few_images, plan.passes)
    for step in range(length):
        ranks = [
            listed(PlannedSteps(fresh, epoch * length + step, (epoch + 1) * length, rank, continued_by))
            for rank in range(continued_by)
        ]
        rest = [[draw for part in parts for draw in part] for parts in zip(*ranks, strict=True)]
        assert whole[:step] + rest == whole, saved_by
    assert whole != listed(PlannedSteps(plan, (epoch + 1) * length, (epoch + 2) * length, 0, 1))


def _samples(table: IdentityTable) -> np.ndarray:
    return np.concatenate([table.images_of(int(pid)) for pid in table.pids])


@pytest.mark.parametrize(("world", "start"), [(1, 0), (2, 3), (4, 7)])
def test_two_workers_draw_what_none_draws(world: int, start: int) -> None:
    table = IdentityTable.of_pids(np.repeat(np.arange(1, 41), 5))
    plan = Plan.pk(table, identities=4, images=3, seed=7)
    for rank in range(world):
        steps = PlannedSteps(plan, start, 25, rank, world)
        assert through_a_loader(steps, 2) == through_a_loader(steps, 0) == listed(steps)


@pytest.mark.parametrize(("few_images", "passes"), [("repeat", 1), ("all", 2), ("skip", 1)])
def test_the_command_prints_what_training_draws(few_images: str, passes: int) -> None:
    arguments = [
        "--identities",
        "8",
        "--images",
        "8",
        "--world",
        "2",
        "--seed",
        "5",
        "--epoch",
        "1",
        "--steps",
        "3",
    ]
    arguments += ["--few-images", few_images, "--passes", str(passes), "--json"]
    result = CliRunner().invoke(app, ["plan", str(WALKERS), *arguments])
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in result.output.splitlines()]
    assert [(line["step"], line["rank"]) for line in lines] == [(s, r) for s in range(3) for r in range(2)]
    split = open_shards(WALKERS).split("train")
    batch = BatchConfig.model_validate(
        {"identities": 8, "images": 8, "few_images": few_images, "passes": passes}
    )
    small = DataConfig(shards=str(WALKERS), workers=0, height=36, width=14, resize_height=40, resize_width=16)
    config = Config(name="t", seed=5, data=small, batch=batch)
    plan = make_plan(split, batch, config.seed, 2)
    start = plan.steps_per_epoch
    stop = config.optimizer.model_copy(update={"steps": start + 3})
    config = config.model_copy(update={"optimizer": stop})
    for rank in range(2):
        loader = training_loader(split, plan, config, start, rank, 2, torch.device("cpu"))
        mine = [line for line in lines if line["rank"] == rank]
        for line, found in zip(mine, sound(loader), strict=True):
            assert line["keys"] == [key.decode() for key in split.keys[found.samples_B.numpy()]]
            assert line["pids"] == found.pids_B.tolist()


def test_all_refuses_a_rank_with_a_single_image() -> None:
    class OneImageEach:
        table = IdentityTable.of_pids([1, 2, 3, 4, 4, 4])

    batch = BatchConfig(identities=2, images=3, few_images="all")
    assert make_plan(OneImageEach(), batch, 0, 1).few_images == "all"  # type: ignore[arg-type]
    with pytest.raises(ShardError, match=r'few_images "all".*2 ranks.*use 4 identities'):
        make_plan(OneImageEach(), batch, 0, 2)  # type: ignore[arg-type]


def test_what_a_plan_costs() -> None:
    cost = measure_plan(1_000_000)
    assert cost.identities == 1_000_000 and 0 < cost.peak_mb < 64
    assert cost.first_step_ms > 0 and cost.next_step_ms > 0  # how long: `maskreid bench plan` judges that
