"""batch.micro_images: the step of a batch in micro batches, through DeepSpeed, against plain torch on the
whole batch.

One group of gloo ranks checks many things: deepspeed takes seconds to import.
"""

import weakref
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from gloo import run_ranks
from maskreid_dist.config import Config, EngineConfig
from maskreid_dist.data.batches import Batch
from maskreid_dist.errors import RecipeError
from maskreid_dist.model import Output, ReIDNetwork, build_network
from maskreid_dist.recipe import validate
from maskreid_dist.training.divergence import FiniteWatch
from maskreid_dist.training.engine import make_optimizer, start_engine
from maskreid_dist.training.environment import Place, tell_libraries
from maskreid_dist.training.gradient_cache import micro_batches
from maskreid_dist.training.loop import dropout_seed, training_step
from maskreid_dist.training.objective import objective
from maskreid_dist.training.world import World

CLASSES = 5
PIDS = torch.arange(10, 10 + CLASSES)
STEPS = 3
CPU = torch.device("cpu")


def recipe(**sections: dict[str, Any]) -> Config:
    tree: dict[str, Any] = {
        "name": "t",
        "data": {"shards": "s"},
        "model": {"width": 0.125, "embedding_dim": 16, "dropout": 0.0},
        "loss": {"identity_weight": 0.3},
        "optimizer": {"lr": 0.5, "schedule": "constant", "gradient_clipping": 0.1},
    }
    for name, section in sections.items():
        tree[name] = {**tree.get(name, {}), **section}
    return validate(tree, "test")


def global_batch(step: int, rows: int = 12) -> Batch:
    generator = torch.Generator().manual_seed(step)
    image = torch.randint(0, 256, (rows, 3, 36, 14), dtype=torch.uint8, generator=generator)
    mask = torch.randint(0, 2, (rows, 1, 36, 14), dtype=torch.uint8, generator=generator) * 255
    return Batch(image, mask, PIDS[torch.arange(rows) % CLASSES], torch.arange(rows))


def rows_of(batch: Batch, rows: slice) -> Batch:
    return Batch(batch.image_B3HW[rows], batch.mask_B1HW[rows], batch.pids_B[rows], batch.samples_B[rows])


def network_of(config: Config) -> ReIDNetwork:
    torch.manual_seed(3)
    return build_network(config, CLASSES if config.loss.classifies else 0)


def frozen_network(config: Config) -> ReIDNetwork:
    """Batch normalisation with the statistics of one batch: those of a whole batch and of its parts would
    differ."""
    network = network_of(config)
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = 1.0
    batch = global_batch(99)
    network(batch.image_B3HW, batch.mask_B1HW)
    for norm in norms:
        norm.eval()
    return network


def world_of(rank: int, world: int) -> World:
    import deepspeed  # takes seconds; pytest's own process does without

    place = Place(rank, rank, world)
    tell_libraries(place)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # as in start_world
    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
    meeting: Any = SimpleNamespace(place=place)
    group = dist.group.WORLD
    assert group is not None
    return World(meeting, CPU, group)


def step_of(engine: Any, batch: Batch, config: Config, step: int, world: World) -> bool:
    return training_step(engine, batch, PIDS, config, step, FiniteWatch(CPU), world)[1]


def plain_trajectory(config: Config) -> list[Tensor]:
    """All weights after each step of one process on whole batches, without DeepSpeed."""
    network = frozen_network(config)
    optimizer = make_optimizer(network, config.optimizer)
    trajectory = [weights(network)]
    for step in range(STEPS):
        batch = global_batch(step)
        output = network(batch.image_B3HW, batch.mask_B1HW)
        loss, _ = objective(output, torch.searchsorted(PIDS, batch.pids_B), config.loss, None)
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(network.parameters(), config.optimizer.gradient_clipping)
        assert norm > config.optimizer.gradient_clipping, norm  # clipped, so a step in two would show
        optimizer.step()
        trajectory.append(weights(network))
    return trajectory


def weights(network: nn.Module) -> Tensor:
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(network.parameters())):
        return torch.cat([p.detach().flatten().clone() for p in network.parameters()])


def check_trajectory(here: World, cuts: Sequence[int], stages: Sequence[int], loss: str = "ranking") -> None:
    """Ranks take the rows between `cuts`, three at a time."""
    config = recipe(batch={"micro_images": 3}, loss={"name": loss})
    expected = plain_trajectory(config)
    assert all((a - b).abs().max() > 1e-3 for a, b in pairwise(expected))
    for stage in stages:
        engine_config = EngineConfig.model_construct(**{**dict(config.engine), "zero_stage": stage})
        own = config.model_copy(update={"engine": engine_config})
        engine = start_engine(frozen_network(own), own, 6, here.size, None)
        for step in range(STEPS):
            batch = rows_of(global_batch(step), slice(*cuts[here.rank : here.rank + 2]))
            assert step_of(engine, batch, own, step, here)
            off = float((weights(engine.module) - expected[step + 1]).abs().max())
            assert off < 1e-5, f"{loss}, stage {stage}, step {step}: {off}"


def check_two_ranks(rank: int, world: int) -> None:
    here = world_of(rank, world)
    check_trajectory(here, (0, 7, 12), (0, 1))  # of 3 and 2 parts
    check_trajectory(here, (0, 6, 12), (2, 3))
    check_trajectory(here, (0, 6, 12), (0,), "softmax")  # no gradient of the embeddings


def test_the_trajectory_of_two_ranks_is_that_of_one_unsplit_process(tmp_path: Path) -> None:
    run_ranks(check_two_ranks, 2, tmp_path)


def test_one_rank(tmp_path: Path) -> None:
    run_ranks(check_one_rank, 1, tmp_path)


def check_one_rank(rank: int, world: int) -> None:
    here = world_of(rank, world)
    check_trajectory(here, (0, 12), (0, 1))
    check_one_part_is_the_unsplit_step(here)
    check_statistics_and_dropout(here)
    check_saved_activations(here)
    check_gradients_that_are_not_finite(here)


def check_one_part_is_the_unsplit_step(here: World) -> None:
    """To the bit, with statistics of the batch and dropout, under autocast too."""
    for autocast in ("float32", "bfloat16"):
        ends = []
        for micro_images in (0, 12):
            config = recipe(
                batch={"micro_images": micro_images}, model={"dropout": 0.5}, engine={"autocast": autocast}
            )
            engine = start_engine(network_of(config), config, 12, 1, None)
            for step in range(2):
                assert step_of(engine, global_batch(step), config, step, here)
            ends.append({name: value.clone() for name, value in engine.module.state_dict().items()})
        unsplit, cached = ends
        assert all(torch.equal(value, unsplit[name]) for name, value in cached.items()), autocast


def check_statistics_and_dropout(here: World) -> None:
    """Against micro batches with one graph through all of them: statistics by part, one update of the running
    ones."""
    config = recipe(
        batch={"micro_images": 5}, model={"dropout": 0.5}, optimizer={"lr": 0.01, "gradient_clipping": 0.0}
    )
    engine = start_engine(network_of(config), config, 12, 1, None)
    dropped: list[Tensor] = []
    for module in engine.module.modules():
        if isinstance(module, nn.Dropout):
            module.register_forward_hook(lambda m, rows, out: dropped.append(out.detach() == 0))
    network, batch = network_of(config), global_batch(0)
    assert step_of(engine, batch, config, 0, here)

    outputs: list[Output] = []
    for part in range(3):  # rows 0, 3, 6, 9 and so on
        rows = slice(part, 12, 3)
        torch.manual_seed(dropout_seed(config.seed, 0, 0, part))
        outputs.append(network(batch.image_B3HW[rows], batch.mask_B1HW[rows]))
    order = torch.arange(12).view(4, 3).T.flatten().argsort()
    embedding, logits = (torch.cat(values)[order] for values in zip(*outputs, strict=True))
    labels = torch.searchsorted(PIDS, batch.pids_B)
    objective(Output(embedding, logits), labels, config.loss, None)[0].backward()
    make_optimizer(network, config.optimizer).step()
    for (name, value), got in zip(
        network.state_dict().items(), engine.module.state_dict().values(), strict=True
    ):
        assert torch.allclose(got, value, rtol=1e-5, atol=1e-5), name
    assert int(engine.module.fusing.bn.num_batches_tracked) == 3

    first, second = dropped[:3], dropped[3:]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], first[1])


class SavedForBackward:
    """The most bytes that autograd held for backward passes at any time."""

    def __init__(self) -> None:
        self.held = self.peak = 0

    def pack(self, tensor: Tensor) -> list[Tensor]:
        box = Box([tensor])
        size = tensor.numel() * tensor.element_size()
        self.held += size
        self.peak = max(self.peak, self.held)
        weakref.finalize(box, self.drop, size)
        return box

    def drop(self, size: int) -> None:
        self.held -= size


class Box(list[Tensor]):
    """A list that can be referred to weakly."""


def check_saved_activations(here: World) -> None:
    peaks: dict[tuple[int, int], int] = {}
    for micro_images in (0, 4):
        config = recipe(batch={"micro_images": micro_images})
        engine = start_engine(network_of(config), config, 8, 1, None)
        for rows in (8, 32):
            saved = SavedForBackward()
            with saved_tensors_hooks(saved.pack, lambda box: box[0]):
                assert step_of(engine, global_batch(0, rows), config, 0, here)
            assert saved.held == 0
            peaks[micro_images, rows] = saved.peak
    assert peaks[4, 8] * 0.99 < peaks[4, 32] < peaks[4, 8] * 1.01, peaks
    assert peaks[0, 32] > 3 * peaks[0, 8] and peaks[0, 8] > 1.5 * peaks[4, 8], peaks


def check_gradients_that_are_not_finite(here: World) -> None:
    """In one micro batch of three: the step is left out, with weights and running statistics as they were."""
    for stage in (0, 1, 2):
        config = recipe(batch={"micro_images": 4}, engine={"zero_stage": stage}, run={"non_finite": "skip"})
        engine = start_engine(network_of(config), config, 12, 1, None)
        before = {name: value.clone() for name, value in engine.module.state_dict().items()}
        calls: list[int] = []

        def spoil(gradient: Tensor, calls: list[int] = calls) -> Tensor:
            calls.append(1)
            return gradient * torch.nan if len(calls) == 2 else gradient

        hook = engine.module.fusing.bn.bias.register_hook(spoil)
        assert not step_of(engine, global_batch(0), config, 0, here)
        hook.remove()
        assert len(calls) == 3
        for name, value in engine.module.state_dict().items():
            assert torch.equal(value, before[name]), name
        assert step_of(engine, global_batch(1), config, 1, here)  # nothing of the one before is left
        assert all(value.isfinite().all() for value in engine.module.state_dict().values())


@pytest.mark.parametrize(
    ("rows", "images", "dealt"),
    [
        (12, 4, [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]),
        (7, 3, [[0, 3, 6], [1, 4], [2, 5]]),
        (3, 2, [[0, 1, 2]]),
        (5, 2, [[0, 2, 4], [1, 3]]),
        (1, 2, [[0]]),
        (3, 100, [[0, 1, 2]]),
    ],
)
def test_parts_are_nearly_equal_and_never_one_row(rows: int, images: int, dealt: list[list[int]]) -> None:
    assert [list(range(rows)[part]) for part in micro_batches(rows, images)] == dealt


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        (
            {"batch": {"micro_images": 1}},
            r"batch\.micro_images: batch normalisation cannot train on single images",
        ),
        ({"batch": {"micro_images": -4}}, r"batch\.micro_images"),
        (
            {"batch": {"micro_images": 8, "few_images": "all"}, "engine": {"zero_stage": 2}},
            r"needs engine\.zero_stage 0 or 1",
        ),
    ],
)
def test_recipes_that_cannot_be_split(sections: dict[str, dict[str, Any]], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        recipe(**sections)
