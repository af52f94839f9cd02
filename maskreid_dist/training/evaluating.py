"""Evaluation while training, over all ranks: exact figures, and a training that goes on as if without it.

Each rank embeds its share of queries and gallery; queries are gathered, the gallery stays where it is.
"""

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from maskreid_dist.config import Config
from maskreid_dist.errors import UserError
from maskreid_dist.evaluation.embed import embed_samples
from maskreid_dist.evaluation.labels import split_labels
from maskreid_dist.model.checkpoint import read_best
from maskreid_dist.retrieval import RetrievalResult, evaluate_retrieval
from maskreid_dist.run_directory import BEST
from maskreid_dist.terminal import say
from maskreid_dist.training.divergence import Buffers
from maskreid_dist.training.ema import Ema
from maskreid_dist.training.run_folder import RunFolder
from maskreid_dist.training.saving import average_buffers
from maskreid_dist.training.world import World
from maskreid_shards import ShardSet, Split
from maskreid_shards.atomic import write_atomically

BY = "mAP_hits"  # what the best checkpoint is best in


@dataclass
class Evaluations:
    """The evaluations of a run. `best`: the best one so far, whose checkpoint is kept; None: none yet."""

    config: Config
    shards: ShardSet | None  # None: no evaluations
    world: World
    folder: RunFolder
    best: dict[str, Any] | None = None
    ema: Ema | None = None  # evaluated in place of the weights

    def continue_from(self, start: int) -> None:
        """Take up `best.json` where a run continues after `start` steps. All ranks take part."""
        best = read_best(self.folder.path)
        problem = None
        if best and (best["step"] > start or not (self.folder.path / best["checkpoint"]).is_dir()):
            problem = "its checkpoint is no longer there"
        elif best and self.shards and best["shards"] != self.shards.fingerprint:
            problem = "it was of other shards than this run evaluates"
        if best and problem and self.world.is_first:
            say(f"the best checkpoint, of step {best['step']}, counts no more: {problem}", flush=True)
        self.best = self.world.meeting.from_first(None if problem else best)
        self._name_best()

    def due(self, step: int) -> bool:
        """Whether there is one after `step` steps: every `run.evaluate_every`, and after the last."""
        every = self.config.run.evaluate_every
        return self.shards is not None and (step % every == 0 or step == self.config.optimizer.steps)

    def missing(self, start: int, recorded: Collection[int]) -> bool:
        """Whether one is due at the step that a run continues from, and was not made: the run was stopped, or
        killed, before it. recorded: the steps of those that were, as rank 0 knows. All ranks take part."""
        missed = start > 0 and self.due(start) and start not in recorded
        return self.world.meeting.from_first(missed)

    def make(
        self,
        module: nn.Module,
        step: int,
        save: Callable[[], object] | None,
        record: Callable[[int, Mapping[str, float], bool], None] | None,
    ) -> None:
        """Evaluate after `step` steps. All ranks take part. save: makes this step's checkpoint, None where
        it has been; called if it is the best so far. record: on rank 0, takes the figures, and whether they
        are the best.
        """
        figures, better = self.evaluate(module, step)
        if better and save:
            save()
        if better:
            self._name_best()
        if record:
            record(step, figures, better)

    def evaluate(self, module: nn.Module, step: int) -> tuple[dict[str, float], bool]:
        """The figures after `step` steps in per cent, and whether they are the best so far. All ranks take
        part.

        They are those of a checkpoint saved now. Raises SampleError on the rank that cannot read an image;
        UserError on every rank: embeddings are not finite.
        """
        assert self.shards is not None
        try:
            averaged = self.ema.applied(module) if self.ema else nullcontext()
            with averaged, _as_saved(module, self.world):
                result = rank_over_ranks(module, self.shards, self.config, self.world)
        except UserError:
            raise
        except ValueError as error:  # of evaluate_retrieval, the same on every rank
            raise UserError(f"the evaluation after step {step}: {error}") from None
        figures = {name: 100 * value for name, value in result.metrics().items()}
        better = self.best is None or figures[BY] > self.best[BY]
        if better:
            checkpoint = f"{self.folder.checkpoints.name}/step_{step:08d}"
            self.best = {"step": step, **figures, "checkpoint": checkpoint, "shards": self.shards.fingerprint}
        return figures, better

    def _name_best(self) -> None:
        """Write `best.json` into each run directory, by its keeper, or remove one that counts no more."""
        path = self.folder.path / BEST
        if not self.folder.is_keeper:
            return
        if self.best is None:
            path.unlink(missing_ok=True)
        else:
            write_atomically(path, (json.dumps(self.best, indent=1) + "\n").encode())


def rank_over_ranks(module: nn.Module, shards: ShardSet, config: Config, world: World) -> RetrievalResult:
    """Query and gallery of `shards`, ranked by a network in eval mode that all ranks hold. All ranks take
    part; the result is that of one process."""
    labels = split_labels(shards, "labels")
    query = _share(module, shards.split("query"), config, world)
    gallery = _share(module, shards.split("gallery"), config, world)
    own = slice(world.rank * len(gallery), (world.rank + 1) * len(gallery))
    pids, camids = (ids[own] for ids in labels.gallery)
    return evaluate_retrieval(
        _all_rows(query, len(shards.split("query")), world).to(world.device),
        *labels.query,
        gallery[: len(pids)],
        pids,
        camids,
        group=world.control,
    )


def _share(module: nn.Module, split: Split, config: Config, world: World) -> Tensor:
    """(ceil(N / W), D) float32 on the CPU: embeddings of this rank's samples and, where they are fewer, of
    the split's last again, as every rank passes the network as often (ZeRO 3 gathers weights in it). Raises
    SampleError."""
    each = -(-len(split) // world.size)
    samples = np.minimum(np.arange(world.rank * each, (world.rank + 1) * each), len(split) - 1)
    return embed_samples(module, split, config, world.device, samples)


def _all_rows(own: Tensor, rows: int, world: World) -> Tensor:
    """All ranks' rows in rank order, without what fills the last shares. All ranks take part."""
    everyone = own.new_empty((world.size * len(own), own.shape[1]))
    dist.all_gather_into_tensor(everyone, own, group=world.control)
    return everyone[:rows]


@contextmanager
def _as_saved(module: nn.Module, world: World) -> Iterator[None]:
    """The network as a save would hold it, in eval mode: buffers are means over the ranks. Afterwards
    modes, buffers and random state are what they were. All ranks take part."""
    modes = [(part, part.training) for part in module.modules()]
    before = Buffers(module)
    devices = [world.device] if world.device.type == "cuda" else []
    with torch.random.fork_rng(devices):  # a loader draws a seed for its workers
        average_buffers(module, world)
        module.eval()
        try:
            yield
        finally:
            for part, training in modes:
                part.training = training
            before.restore()
