"""What is done about values that are not finite: the step, its images and the ranks' values are named; stop
or skip."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from maskreid_dist.config import RunConfig
from maskreid_dist.data.batches import AnyPlan
from maskreid_dist.errors import UserError
from maskreid_dist.run_directory import NON_FINITE
from maskreid_dist.training.world import World
from maskreid_shards import Split
from maskreid_shards.atomic import write_atomically

KEYS_OF_A_LINE = 4  # of a rank; the file has all
NEVER = -1


class FiniteWatch:
    """The first step since the last `clear` at which this rank saw a loss, or embeddings of its own, not
    finite.

    `note` works on the device, without a host sync.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.clear()

    def clear(self) -> None:
        self.first = torch.full((2,), NEVER, device=self.device)  # of the loss, of the embeddings
        self.loss = torch.zeros((), device=self.device)  # where it was first not finite

    def note(self, step: int, loss: Tensor, embedding_BD: Tensor) -> None:
        bad = ~torch.stack([loss.detach().isfinite(), embedding_BD.detach().isfinite().all()])
        new = bad & (self.first == NEVER)
        self.first = torch.where(new, step, self.first)
        self.loss = torch.where(new[0], loss.detach(), self.loss)

    def read(self) -> dict[str, Any]:
        """What was noted, for the other ranks. A host sync."""
        loss_step, embeddings_step = self.first.tolist()
        return {"loss_step": loss_step, "embeddings_step": embeddings_step, "loss": repr(float(self.loss))}


@dataclass
class Divergence:
    """The policy `run.non_finite` of a run. A resumed run counts its skipped steps anew."""

    run: Path
    config: RunConfig
    split: Split
    plan: AnyPlan
    world: World
    skipped: int = 0

    def stop(self, watch: FiniteWatch, step: int, broken: list[int]) -> NoReturn:
        """Raise UserError on every rank: the loss or the weights are not finite after `step` steps. All take
        part.

        broken: the ranks whose weights are not. Steps count from 1, as in the log.
        """
        seen = self.world.meeting.gather(watch.read())
        steps = [s for rank in seen for s in (rank["loss_step"], rank["embeddings_step"]) if s != NEVER]
        # Without one the last update did it: its gradient was of that step's images.
        first = min(steps, default=step - 1)
        raise UserError(
            f"{self._what(seen, first, broken, step)}; {self._images(seen, first)}; "
            "lower optimizer.lr: --resume --set optimizer.lr=... continues from the last checkpoint"
        )

    def skip(self, watch: FiniteWatch, step: int) -> dict[str, Any]:
        """Count a step whose update was left out, `step` from 0; returns what to log. All ranks take part.

        Raises UserError on every rank: the policy is to stop, or the budget is spent.
        """
        seen = self.world.meeting.gather(watch.read())
        watch.clear()
        self.skipped += 1
        values, images = self._values(seen, step), self._images(seen, step)
        text = f"the gradients are not finite at step {step + 1}{values}; {images}"
        if self.config.non_finite == "stop":
            raise UserError(
                f"{text}; lower optimizer.lr (--resume --set optimizer.lr=...), or leave such steps out "
                '(run.non_finite = "skip")'
            )
        budget = self.config.non_finite_budget
        if self.skipped > budget:
            raise UserError(f"{text}; run.non_finite_budget allows {budget} such steps; lower optimizer.lr")
        return {"step": step + 1, "skipped": self.skipped, "of": budget, "text": text}

    def _what(self, seen: list[dict[str, Any]], first: int, broken: list[int], step: int) -> str:
        text = f"the loss is not finite at step {first + 1}{self._values(seen, first)}"
        if all(rank["loss_step"] == NEVER for rank in seen):
            text = f"the update of step {first + 1} left weights that are not finite"
        if broken:
            text += f" (after step {step}: not finite on {self.world.meeting.who(broken)})"
        return text

    def _values(self, seen: list[dict[str, Any]], step: int) -> str:
        """What the ranks saw at the step, from 0."""
        parts = []
        losses: dict[str, list[int]] = {}
        for rank, of_rank in enumerate(seen):
            if of_rank["loss_step"] == step:
                losses.setdefault(of_rank["loss"], []).append(rank)
        parts += [f"{loss} on {self.world.meeting.who(ranks)}" for loss, ranks in losses.items()]
        rows = [rank for rank, of_rank in enumerate(seen) if of_rank["embeddings_step"] == step]
        if rows:
            parts.append(f"embeddings not finite on {self.world.meeting.who(rows)}")
        elif losses:
            parts.append("all embeddings finite")
        return f" ({', '.join(parts)})" if parts else ""

    def _images(self, seen: list[dict[str, Any]], step: int) -> str:
        """The keys of a step's images by rank, of those ranks whose embeddings were not finite if only some;
        all of them go into a file, with those of the step before, whose update made the weights of this
        one."""
        rows = [rank for rank, of_rank in enumerate(seen) if of_rank["embeddings_step"] == step]
        keys = {s + 1: self._keys(s) for s in (step - 1, step) if s >= 0}
        file = self.run / NON_FINITE
        if self.world.is_first:
            write_atomically(
                file, json.dumps({"step": step + 1, "ranks": seen, "keys": keys}, indent=1).encode()
            )
        named = []
        for rank in rows or range(self.world.size):
            all_keys = keys[step + 1][rank]
            more = f" and {len(all_keys) - KEYS_OF_A_LINE} more" if len(all_keys) > KEYS_OF_A_LINE else ""
            named.append(f"rank {rank} {' '.join(all_keys[:KEYS_OF_A_LINE])}{more}")
        return f"its images: {', '.join(named[:KEYS_OF_A_LINE])} (all in {file})"

    def _keys(self, step: int) -> list[list[str]]:
        """The keys of a step's images, from 0, by rank."""
        epoch, in_epoch = divmod(step, self.plan.steps_per_epoch)
        batches = [
            self.plan.rank_batch(epoch, in_epoch, rank, self.world.size) for rank in range(self.world.size)
        ]
        return [[self.split.index[int(sample)]["key"].decode() for sample in batch] for batch in batches]


def update(engine: Any, config: RunConfig, world: World, kept: "Buffers | None") -> bool:
    """Take the optimizer's step, unless gradients are not finite and it can be left out. All ranks take part.

    Under ZeRO DeepSpeed leaves such a step out by itself. Without it only the policy "skip" looks, for a host
    sync each step; under "stop" the next check of loss and weights finds it.
    """
    applied = True
    if config.non_finite == "skip" and engine.zero_optimization_stage() == 0:
        gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
        norm = float(get_total_norm(gradients, float("inf")))  # a host sync
        (broken,) = world.any_ranks(not math.isfinite(norm))
        applied = not broken
    if applied:
        engine.step()
        applied = not getattr(engine.optimizer, "overflow", False)
    else:
        engine.zero_grad()
    if not applied and kept:
        kept.restore()
    return applied


class Buffers:
    """The buffers before a forward pass: what it does to running statistics can be undone."""

    def __init__(self, module: nn.Module) -> None:
        self.buffers = list(module.buffers())
        self.before = [b.detach().clone() for b in self.buffers]

    def restore(self) -> None:
        with torch.no_grad():
            for buffer, before in zip(self.buffers, self.before, strict=True):
                buffer.copy_(before)
