"""What a training step of a recipe takes on this machine: images a second, the loss's share, memory.

The step is the training's own (DeepSpeed's engine, the finite watch, its optimizer), on one process, over
images of noise that lie in host memory as the loader's batches do. No shard is read: what is measured is the
step that a loader has to keep up with.
"""

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from maskreid_dist.config import Config
from maskreid_dist.data.batches import Batch
from maskreid_dist.errors import UserError
from maskreid_dist.model import build_network
from maskreid_dist.run_directory import PHASES
from maskreid_dist.training.divergence import FiniteWatch
from maskreid_dist.training.engine import start_engine
from maskreid_dist.training.environment import place_of_process, tell_libraries
from maskreid_dist.training.leaving import meet, part
from maskreid_dist.training.loop import training_step
from maskreid_dist.training.memory import start_memory
from maskreid_dist.training.step_clock import StepClock
from maskreid_dist.training.world import World, choose_device, start_world
from maskreid_kernels.bench.figures import Promise

ROUNDS = 5
# The most of a step that the loss may take on a GPU, from so many images on.
LOSS_SHARE, LOSS_SHARE_ROWS = 0.03, 4096


@dataclass(frozen=True)
class StepCost:
    """Of a step, the mean of the middle round. peak_gb: of the tensors on a GPU; None without one. phases: ms
    by PHASES."""

    batch: int
    micro_images: int
    step_ms: float
    images_s: float
    loss_share: float
    peak_gb: float | None
    phases: dict[str, float]

    def row(self) -> dict[str, float | None]:
        """For a CSV."""
        found = {name: value for name, value in vars(self).items() if name != "phases"}
        return found | {f"{name}_ms": self.phases[name] for name in PHASES}


def measure(
    config: Config, batches: Sequence[int], seconds: float, say: Callable[[str], None] = lambda _: None
) -> list[StepCost]:
    """A recipe's step at each number of images; about `seconds` for each.

    Raises UserError: started over several ranks; a batch that the recipe's images of an identity do not
    divide, or of one identity.
    """
    place = place_of_process()
    if place.size > 1:
        raise UserError("bench step measures one process; start it without a launcher")
    for rows in batches:
        check_rows(config, rows)
    tell_libraries(place)
    meeting = meet(place, config.engine.collective_timeout_s)
    if meeting is None:
        raise UserError("this process cannot open a port of its own on this machine")
    meeting.join()
    world = start_world(meeting, choose_device(place))
    try:
        found = []
        for rows in batches:
            say(f"a step of {rows} images")
            found.append(_measure(config, rows, seconds, world))
            gc.collect()  # DeepSpeed's engine is in cycles: its tensors would count for the next batch
        return found
    finally:
        part(meeting)


def check_rows(config: Config, rows: int) -> None:
    """Raises UserError: see `measure`."""
    if rows % config.batch.images or rows < 2 * config.batch.images:
        raise UserError(
            f"--batch {rows}: use a multiple of the recipe's {config.batch.images} images of an identity, "
            f"{2 * config.batch.images} at least"
        )


def promises(costs: Sequence[StepCost]) -> list[Promise]:
    """Of a GPU: what the loss takes of a step of a large batch."""
    return [
        Promise(
            f"the loss's share of a step of {cost.batch} images, %",
            100 * cost.loss_share,
            100 * LOSS_SHARE,
            False,
        )
        for cost in costs
        if cost.batch >= LOSS_SHARE_ROWS and cost.peak_gb is not None
    ]


def noise(config: Config, rows: int) -> Batch:
    """A batch of the recipe's input size and images an identity."""
    generator = torch.Generator().manual_seed(0)
    size = (config.data.height, config.data.width)
    image = torch.randint(0, 256, (rows, 3, *size), dtype=torch.uint8, generator=generator)
    mask = torch.randint(0, 2, (rows, 1, *size), dtype=torch.uint8, generator=generator) * 255
    pids = torch.arange(rows) // config.batch.images + 1
    return Batch(image, mask, pids, torch.arange(rows))


def _measure(config: Config, rows: int, seconds: float, world: World) -> StepCost:
    batch, on_gpu = noise(config, rows), world.device.type == "cuda"
    if on_gpu:
        batch = batch.pin_memory()
    classes = batch.pids_B.unique()
    torch.manual_seed(config.seed)
    network = build_network(config, len(classes) if config.loss.classifies else 0)
    engine = start_engine(network, config, rows, 1, None)
    clock, watch = StepClock(world.device), FiniteWatch(world.device)
    memory = start_memory(config.loss, None, world)

    def step() -> None:
        training_step(engine, batch, classes, config, 0, watch, world, memory, clock)
        clock.end_step()

    step()  # states of the optimizer, code, the libraries' choices of algorithm
    clock.take()
    step()
    once, _ = clock.take()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(world.device)
    steps = max(1, round(seconds / ROUNDS / once))
    rounds = []
    for _ in range(ROUNDS):
        for _ in range(steps):
            step()
        rounds.append(clock.take()[1])
    peak = torch.cuda.max_memory_allocated(world.device) / 1e9 if on_gpu else None
    engine.destroy()
    middle = sorted(rounds, key=lambda one: sum(one.values()))[ROUNDS // 2]
    step_ms = sum(middle.values())
    phases = {name: middle[f"{name}_ms"] for name in PHASES}
    share = phases["loss"] / step_ms
    return StepCost(rows, config.batch.micro_images, step_ms, 1000 * rows / step_ms, share, peak, phases)
