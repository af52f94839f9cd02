"""Evaluation while training, over all ranks: exact figures, and a training that goes on as if without it.

Each rank embeds its share of queries and gallery; queries are gathered, the gallery stays where it is.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from maskreid_dist.config import Config
from maskreid_dist.errors import UserError
from maskreid_dist.evaluation.embed import embed_samples
from maskreid_dist.evaluation.evaluate import split_labels
from maskreid_dist.retrieval import RetrievalResult, evaluate_retrieval
from maskreid_dist.run_directory import BEST
from maskreid_dist.training.divergence import Buffers
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
    best: dict[str, Any] | None = None

    def due(self, step: int) -> bool:
        """Whether there is one after `step` steps: every `run.evaluate_every`, and after the last."""
        every = self.config.run.evaluate_every
        return self.shards is not None and (step % every == 0 or step == self.config.optimizer.steps)

    def evaluate(self, module: nn.Module, step: int) -> tuple[dict[str, float], bool]:
        """The figures after `step` steps in per cent, and whether they are the best so far. All ranks take
        part.

        They are those of a checkpoint saved now. Raises SampleError on the rank that cannot read an image;
        UserError on every rank: embeddings are not finite.
        """
        assert self.shards is not None
        try:
            with _as_saved(module, self.world):
                result = rank_over_ranks(module, self.shards, self.config, self.world)
        except UserError:
            raise
        except ValueError as error:  # of evaluate_retrieval, the same on every rank
            raise UserError(f"the evaluation after step {step}: {error}") from None
        figures = {name: 100 * value for name, value in result.metrics().items()}
        better = self.best is None or figures[BY] > self.best[BY]
        if better:
            self.best = {"step": step, **figures}
        return figures, better

    def name_best(self, folder: RunFolder) -> None:
        """Write `best.json` beside the checkpoints, or remove one that names none of them."""
        path = folder.path / BEST
        if not folder.is_keeper:
            return
        if self.best is None:
            path.unlink(missing_ok=True)
            return
        checkpoint = f"{folder.checkpoints.name}/step_{self.best['step']:08d}"
        write_atomically(
            path, (json.dumps({**self.best, "checkpoint": checkpoint}, indent=1) + "\n").encode()
        )


def best_to_continue(best: dict[str, Any] | None, folder: RunFolder, world: World) -> dict[str, Any] | None:
    """The best evaluation that a checkpoint to continue from knows of, if its own checkpoint is still here.
    All ranks take part."""
    here = best is not None and (folder.checkpoints / f"step_{best['step']:08d}").is_dir()
    return world.meeting.from_first(best if here else None)


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
