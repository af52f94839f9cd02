"""Trainings that go on with another number of ranks, or at another ZeRO stage, against one process. Part of
`make exactness`.

2 -> 1, 1 -> 2 and 2 -> 4 -> 1 ranks x ZeRO 0 to 3 x SGD with momentum and AdamW, and changes of the stage
besides, 20 steps in float32 with clipped gradients. A checkpoint is saved at each change, and what the
engines after it hold of each parameter's optimizer state is compared with what those before it held, bit for
bit. The weights are compared with plain torch's in one process on whole batches. Prints a table; ends with
status 1 where a state is not the same, or a weight is further off than LIMIT.

The network is that of exactness.py with a bias that is not trained.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from exactness import LIMIT, ROWS, TinyNetwork, one_process
from gloo import run_ranks
from maskreid_dist.config import Config
from maskreid_dist.model.checkpoint import Checkpoint, described_checkpoint, finished_checkpoints
from maskreid_dist.training.divergence import FiniteWatch
from maskreid_dist.training.engine import start_engine
from maskreid_dist.training.loop import training_step
from maskreid_dist.training.resuming import continued_engine
from maskreid_dist.training.run_folder import RunFolder
from maskreid_dist.training.saving import save_checkpoint
from test_gradient_cache import CLASSES, CPU, PIDS, global_batch, recipe, rows_of, weights, world_of

STEPS = 20
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"name": "sgd", "lr": 0.5, "momentum": 0.9, "weight_decay": 0.01},
    "adamw": {"name": "adamw", "lr": 0.003, "weight_decay": 0.01},
}


class Network(TinyNetwork):
    """Its odd sizes leave padding on every number of ranks."""

    def __init__(self) -> None:
        super().__init__()
        torch.nn.init.constant_(self.bn.bias, 0.1).requires_grad_(False)


class Training(NamedTuple):
    """An optimizer, and the ZeRO stage of each of its parts."""

    optimizer: str
    stages: tuple[int, ...]
    offload: str = "none"

    def config(self, part: int) -> Config:
        stage = self.stages[part]
        engine = {"zero_stage": stage, "offload": self.offload if stage else "none"}
        return recipe(optimizer=OPTIMIZERS[self.optimizer], engine=engine)

    @property
    def name(self) -> str:
        return f"{self.optimizer}_{self.offload}_{''.join(map(str, self.stages))}"


def states_of(engine: Any) -> dict[str, Tensor]:
    """Each parameter's optimizer states in whole, by `parameter state`, and the count of steps. All take
    part.

    By way of DeepSpeed's maps of partitions, not of its files. (Its getter of whole states knows, at stages 1
    and 2, those of the first group of parameters alone.)
    """
    from deepspeed.utils import safe_get_full_optimizer_state

    optimizer, stage = engine.optimizer, engine.zero_optimization_stage()
    found = {}
    for name, parameter in engine.module.named_parameters():
        if not parameter.requires_grad:
            continue
        for key in ("momentum_buffer", "exp_avg", "exp_avg_sq"):
            if not any(key in state for state in optimizer.state.values()):
                continue
            if stage == 0:
                whole = optimizer.state[parameter][key]
            elif stage == 3:
                whole = safe_get_full_optimizer_state(parameter, key)
            else:
                whole = torch.zeros(parameter.numel())
                own = parameter._hp_mapping
                if own:
                    flat = optimizer.single_partition_of_fp32_groups[own.param_group_index]
                    here, there = own.lp_fragment_address, own.hp_fragment_address
                    values = optimizer.state[flat][key][there.start : there.start + there.numel]
                    whole[here.start : here.start + here.numel] = values
                dist.all_reduce(whole)
            found[f"{name} {key}"] = whole.reshape(-1).clone()
    steps = [state["step"] for state in optimizer.state.values() if "step" in state]
    return found | ({"step": torch.stack([step.reshape(()) for step in steps]).unique()} if steps else {})


def newest(folder: Path) -> Checkpoint:
    path = finished_checkpoints(folder / "checkpoints")[-1]
    return described_checkpoint(path, json.loads((path / "manifest.json").read_text()))


def run_part(
    rank: int, world: int, trainings: list[Training], part: int, steps: tuple[int, int], folder: str
) -> None:
    """Steps `steps[0]` to `steps[1]` of each training; a file of rank 0's has the largest distance of each
    from one process, and whether its states were those of the part before."""
    here, own = world_of(rank, world), ROWS // world
    found = []
    for training in trainings:
        home, config = Path(folder) / training.name, training.config(part)
        network, run = Network(), home if rank == 0 else None
        home.mkdir(exist_ok=True)
        same = True
        if part:
            torch.nn.init.zeros_(network.fc.weight)  # what is not loaded shows
            engine = continued_engine(network, config, own, world, run, newest(home))
            states, before = states_of(engine), load_file(home / f"{part}.safetensors")
            same = states.keys() == before.keys() and bool(before)
            same = same and all(torch.equal(states[name], before[name]) for name in before)
        else:
            engine = start_engine(network, config, own, world, run)
        expected = load_file(Path(folder) / f"{training.optimizer}.safetensors")["weights"]
        distance = 0.0
        for step in range(*steps):
            batch = rows_of(global_batch(step, ROWS), slice(rank * own, (rank + 1) * own))
            assert training_step(engine, batch, PIDS, config, step, FiniteWatch(CPU), here)[1]
            off = float((weights(engine.module) - expected[step]).abs().max())
            distance = max(distance, off if off == off else float("inf"))
        states = states_of(engine)
        keeper = RunFolder(home, rank, (0,) * world, None)
        facts = {"classes": CLASSES, "shards_fingerprint": ""}
        save_checkpoint(engine, keeper, steps[1], config, facts, here)
        if rank == 0:
            save_file(states, home / f"{part + 1}.safetensors")
        found.append((distance, same))
    if rank == 0:
        (Path(folder) / f"found_{part}.json").write_text(json.dumps(found))


def run_trainings(
    ranks: tuple[int, ...], trainings: list[Training], steps: int, folder: Path
) -> list[tuple[float, bool]]:
    """Of each training: the largest distance of a weight from one process after any step, and whether every
    change of ranks left the optimizer's states as they were."""
    for name in {training.optimizer for training in trainings}:
        config = Training(name, (0,)).config(0)
        save_file({"weights": one_process(config, steps, Network())}, folder / f"{name}.safetensors")
    ends = [steps * part // len(ranks) for part in range(len(ranks) + 1)]
    table = []
    for part, world in enumerate(ranks):
        (folder / f"part_{part}").mkdir()
        here = (ends[part], ends[part + 1])
        run_ranks(run_part, world, folder / f"part_{part}", trainings, part, here, str(folder))
        table.append(json.loads((folder / f"found_{part}.json").read_text()))
    return [
        (max(distance for distance, _ in parts), all(same for _, same in parts))
        for parts in zip(*table, strict=True)
    ]


def row(ranks: tuple[int, ...], training: Training, distance: float, same: bool) -> str:
    stages = training.stages[:1] if len(set(training.stages)) == 1 else training.stages
    zero = " -> ".join(map(str, stages)) + (", offload" if training.offload != "none" else "")
    states = "the same" if same else "DIFFERENT"
    return f"| {' -> '.join(map(str, ranks))} | {zero} | {training.optimizer} | {distance:.1e} | {states} |"


def main() -> int:
    rows, good = [], True
    for ranks in ((2, 1), (1, 2), (2, 4, 1)):
        kinds = [(stage,) * len(ranks) for stage in range(4)]
        kinds += [(0, 3), (3, 1)] if len(ranks) == 2 else [(1, 2, 3), (0, 3, 2), (3, 0, 1)]
        trainings = [Training(name, stages) for stages in kinds for name in OPTIMIZERS]
        trainings += [Training("adamw", (stage,) * len(ranks), "optimizer") for stage in (1, 2, 3)]
        with tempfile.TemporaryDirectory() as folder:
            found = run_trainings(ranks, trainings, STEPS, Path(folder))
        rows += [row(ranks, training, *values) for training, values in zip(trainings, found, strict=True)]
        good = good and all(same and distance <= LIMIT for distance, same in found)
    print(f"\ntrainings of {STEPS} steps that go on with other ranks or at another ZeRO stage: the largest")
    print("difference of a weight from one process, and the optimizer's states after a change, bit for bit\n")
    print("| ranks | ZeRO | optimizer | weights | states |\n|---|---|---|---|---|")
    print("\n".join(rows))
    print(f"\nallowed {LIMIT:.0e}, and no other state: {'PASS' if good else 'MISS'}")
    return 0 if good else 1


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
