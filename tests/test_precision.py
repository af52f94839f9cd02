"""What `engine.autocast = "bfloat16"` makes of what ranks exchange, and of what they save."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from exactness import ROWS, TinyNetwork
from gloo import run_ranks
from maskreid_dist.training.divergence import FiniteWatch
from maskreid_dist.training.engine import full_state, start_engine
from maskreid_dist.training.loop import training_step
from maskreid_dist.training.replicas import own_part
from test_gradient_cache import CLASSES, CPU, PIDS, global_batch, recipe, rows_of, world_of

REDUCING = ("all_reduce", "reduce", "reduce_scatter_tensor")
GATHERING = ("all_gather_into_tensor",)
Call = tuple[str, torch.dtype, int]


class Network(TinyNetwork):
    """With a layer of more values than those that ZeRO 3 keeps on every rank."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.classifier = nn.Linear(32, 4096), nn.Linear(4096, CLASSES)


def record(calls: list[Call]) -> None:
    """Note each collective's name, and type and size of its first tensor, from now on in this process."""

    def noting(name: str, own: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            tensor = next(value for value in (*arguments, *named.values()) if isinstance(value, Tensor))
            calls.append((name, tensor.dtype, tensor.numel()))
            return own(*arguments, **named)

        return call

    for name in (*REDUCING, *GATHERING):
        setattr(dist, name, noting(name, getattr(dist, name)))


def exchange(rank: int, world: int) -> None:
    calls: list[Call] = []
    record(calls)  # before DeepSpeed takes the functions
    here, own = world_of(rank, world), ROWS // world
    for stage in (0, 1, 3):
        config = recipe(engine={"zero_stage": stage, "autocast": "bfloat16"})
        engine = start_engine(Network(), config, own, world, None)
        lower = (nn.Conv2d, nn.Linear)
        modules = [m for m in engine.module.modules() if isinstance(m, lower)]
        sizes = [getattr(p, "ds_numel", p.numel()) for m in modules for p in m.parameters()]
        for step in range(2):
            batch = rows_of(global_batch(step, ROWS), slice(rank * own, (rank + 1) * own))
            calls.clear()
            assert training_step(engine, batch, PIDS, config, step, FiniteWatch(CPU), here)[1]
        bfloat16 = [(name, size) for name, kind, size in calls if kind == torch.bfloat16]
        # Of a reduce-scatter the first is what a rank keeps.
        reduced = sum(
            size * (world if "scatter" in name else 1) for name, size in bfloat16 if name in REDUCING
        )
        gathered = any(name in GATHERING for name, _ in bfloat16)
        # All of the convolutions and linear layers, padded at stage 3.
        assert stage == 0 or sum(sizes) <= reduced < sum(sizes) + 2 * len(sizes), (stage, calls)
        assert (stage > 0 or not bfloat16) and gathered == (stage == 3), (stage, calls)
        saved = full_state(engine.module, True)
        assert all(value.dtype in (torch.float32, torch.int64) for value in saved.values())
        for name, parameter in engine.module.named_parameters():
            kept = own_part(parameter).detach().reshape(-1)
            start = rank * parameter.ds_tensor.numel() if stage == 3 else 0
            assert torch.equal(saved[name].reshape(-1)[start : start + len(kept)], kept), (stage, name)


def test_gradients_travel_in_bfloat16_and_weights_are_saved_in_float32(tmp_path: Path) -> None:
    run_ranks(exchange, 2, tmp_path)
