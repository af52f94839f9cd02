"""Training over ranks against one process: the distance of their weights, step by step. `make exactness`.

1, 2 and 4 ranks x ZeRO 0 to 3 x micro batches or not x cross-batch memory or not, 20 steps of a tiny network in
float32 with frozen batch normalisation, each against plain torch in one process on whole batches. Prints a table of
the largest difference of any weight after any step, and ends with status 1 where one is above 1e-5.
"""

import json
import sys
import tempfile
from collections import deque
from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gloo import run_ranks
from maskreid_dist.config import Config
from maskreid_dist.training.divergence import FiniteWatch
from maskreid_dist.training.engine import make_optimizer, start_engine
from maskreid_dist.training.loop import training_step
from maskreid_dist.training.memory import Memory, Rows
from maskreid_dist.training.objective import objective
from test_gradient_cache import (
    CPU,
    PIDS,
    frozen_network,
    global_batch,
    recipe,
    rows_of,
    weights,
    world_of,
)

STEPS = 20
ROWS = 16  # of the global batch
WORLDS = (1, 2, 4)
LIMIT = 1e-5
PAST, START = 3, 2  # steps that the memory holds, and the first that it has a part in


class Case(NamedTuple):
    """How a training is done; the weights must not depend on the first two."""

    stage: int
    micro: bool
    memory: bool

    def config(self) -> Config:
        loss = {"memory": PAST, "memory_weight": 0.5, "memory_start": START} if self.memory else {}
        return recipe(
            batch={"micro_images": 2 if self.micro else 0},
            loss=loss,
            engine={"zero_stage": self.stage},
            optimizer={"lr": 0.1},
        )


CASES = [Case(*values) for values in product(range(4), (False, True), (False, True))]


def one_process(memory: bool, steps: int) -> Tensor:
    """(steps, P) all weights after each step, without ranks, DeepSpeed, micro batches and `Memory`."""
    config = Case(0, False, memory).config()
    network = frozen_network(config)
    optimizer = make_optimizer(network, config.optimizer)
    past: deque[Rows] = deque(maxlen=PAST)
    trajectory = []
    for step in range(steps):
        batch = global_batch(step, ROWS)
        labels = torch.searchsorted(PIDS, batch.pids_B)
        output = network(batch.image_B3HW, batch.mask_B1HW)
        loss, _ = objective(
            output, labels, config.loss, None, list(past) if memory and step >= START else None
        )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), config.optimizer.gradient_clipping)
        optimizer.step()
        past.append(Rows(output.embedding_BD.detach(), labels))
        trajectory.append(torch.cat([p.detach().flatten().clone() for p in network.parameters()]))
    return torch.stack(trajectory)


def train_cases(rank: int, world: int, cases: list[Case], steps: int, folder: str) -> None:
    """The distances of each case from one process, into a file of rank 0's."""
    here = world_of(rank, world)
    expected = load_file(Path(folder) / "expected.safetensors")
    own = ROWS // world
    found = []
    for case in cases:
        config = case.config()
        engine = start_engine(frozen_network(config), config, own, world, None)
        memory = Memory(config.loss) if case.memory else None
        distances = []
        for step in range(steps):
            batch = rows_of(global_batch(step, ROWS), slice(rank * own, (rank + 1) * own))
            assert training_step(engine, batch, PIDS, config, step, FiniteWatch(CPU), here, memory)[1]
            off = weights(engine.module) - expected[str(case.memory)][step]
            distances.append(float(off.abs().max()))
        found.append(distances)
    if rank == 0:
        (Path(folder) / f"{world}.json").write_text(json.dumps(found))


def largest_distances(world: int, cases: list[Case], steps: int, folder: Path) -> list[float]:
    """Of each case over `world` ranks: the largest over steps and weights. NaN counts as infinite."""
    (folder / str(world)).mkdir()
    run_ranks(train_cases, world, folder / str(world), cases, steps, str(folder))
    found: list[list[float]] = json.loads((folder / f"{world}.json").read_text())
    return [max(value if value == value else float("inf") for value in distances) for distances in found]


def save_expected(steps: int, folder: Path) -> dict[str, Tensor]:
    expected = {str(memory): one_process(memory, steps) for memory in (False, True)}
    save_file(expected, folder / "expected.safetensors")
    return expected


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        expected = save_expected(STEPS, folder)
        moved = float((expected["False"][-1] - expected["False"][0]).abs().max())
        apart = float((expected["False"][-1] - expected["True"][-1]).abs().max())
        print(
            f"one process, {STEPS} steps: a weight moved by {moved:.2g}; the memory changes one by {apart:.2g}"
        )
        found = {world: largest_distances(world, CASES, STEPS, folder) for world in WORLDS}
    print("largest difference of a weight after any step\n")
    print("| ZeRO | micro batches | memory | " + " | ".join(f"{world} rank(s)" for world in WORLDS) + " |")
    print("|---|---|---|" + "---|" * len(WORLDS))
    for number, case in enumerate(CASES):
        values = " | ".join(f"{found[world][number]:.1e}" for world in WORLDS)
        print(
            f"| {case.stage} | {'of 2' if case.micro else '-'} | {PAST if case.memory else '-'} | {values} |"
        )
    worst = max(max(values) for values in found.values())
    print(f"\nworst {worst:.1e}, allowed {LIMIT:.0e}: {'PASS' if worst <= LIMIT else 'MISS'}")
    return 0 if worst <= LIMIT else 1


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
