"""Cross-batch memory (Wang et al. 2020, arXiv 1912.06798): embeddings of past batches as further candidates.

Each rank keeps those of its own rows; the losses' `reference=` makes the union of all ranks every anchor's
candidates. What a rank holds follows from the batches alone, so the union is the same on any number of ranks.
"""

from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from maskreid_dist.config import LossConfig
from maskreid_dist.errors import CheckpointError
from maskreid_dist.model.checkpoint import Checkpoint
from maskreid_dist.training.world import World
from maskreid_kernels.ranks import RankLayout, gather_rows

MEMORY = "memory.safetensors"  # in a checkpoint


class Rows(NamedTuple):
    """Of one rank in one past step: embeddings (B, D) float32 without a graph, labels (B,) int64."""

    embedding_BD: Tensor
    labels_B: Tensor


class Memory:
    """This rank's rows of the last `config.memory` steps, oldest first."""

    def __init__(self, config: LossConfig) -> None:
        self.start = config.memory_start
        self.past: deque[Rows] = deque(maxlen=config.memory)

    def at(self, step: int) -> Sequence[Rows] | None:
        """The past of step `step` (0-based); None while it warms up: then it has no part in the loss."""
        return None if step < self.start else list(self.past)

    def keep(self, embedding_BD: Tensor, labels_B: Tensor) -> None:
        """Remember a step's rows, and forget the oldest."""
        self.past.append(Rows(embedding_BD.detach().float(), labels_B))


def candidates(embedding_BD: Tensor, labels_B: Tensor, past: Sequence[Rows]) -> Rows:
    """The batch's own rows, without a gradient, and the past ones: the memory of the paper's Algorithm 1."""
    own = Rows(embedding_BD.detach(), labels_B)
    rows, labels = zip(own, *past, strict=True)
    return Rows(torch.cat(rows), torch.cat(labels))


def whole_memory(memory: Memory, width: int, world: World) -> dict[str, Tensor]:
    """The memory of all ranks, on the host: `embeddings` (R, width) and `labels` (R,), rank by rank and in
    each oldest first, `rows` (W, steps) how many of each. All ranks take part, at a save.

    Every rank must have kept as many steps as the others.
    """
    own = [Rows(torch.empty(0, width), torch.empty(0, dtype=torch.int64)), *memory.past]
    rows, labels = zip(*own, strict=True)
    counts = torch.tensor([[len(kept.labels_B) for kept in memory.past]], dtype=torch.int64)
    one_a_rank = RankLayout(world.control if world.size > 1 else None, world.rank, (1,) * world.size)
    counts_WS = gather_rows(counts, one_a_rank)
    layout = RankLayout(one_a_rank.group, world.rank, tuple(counts_WS.sum(1).tolist()))
    return {
        "embeddings": gather_rows(torch.cat([kept.cpu() for kept in rows]), layout),
        "labels": gather_rows(torch.cat([kept.cpu() for kept in labels]), layout),
        "rows": counts_WS,
    }


def own_part(whole: dict[str, Tensor], rank: int, world: int) -> list[Rows]:
    """A rank's rows of a saved memory, oldest first: those that it saved, or, on another number of ranks, an
    equal share of each step's."""
    counts: list[list[int]] = whole["rows"].tolist()
    sizes = [size for of_rank in counts for size in of_rank]
    pieces = [
        Rows(*pair)
        for pair in zip(whole["embeddings"].split(sizes), whole["labels"].split(sizes), strict=True)
    ]
    steps = whole["rows"].shape[1]
    if len(counts) == world:
        return pieces[rank * steps : (rank + 1) * steps]
    shares = []
    for step in range(steps):
        rows, labels = (torch.cat(parts) for parts in zip(*pieces[step::steps], strict=True))
        share = slice(len(labels) * rank // world, len(labels) * (rank + 1) // world)
        shares.append(Rows(rows[share], labels[share]))
    return shares


def save_memory(whole: dict[str, Tensor], folder: Path) -> None:
    """Into a checkpoint that is being written. Raises SafetensorError and OSError."""
    save_file({name: value.contiguous() for name, value in whole.items()}, folder / MEMORY)


def start_memory(config: LossConfig, checkpoint: Checkpoint | None, world: World) -> Memory | None:
    """The memory of a recipe, empty or as a verified checkpoint has it; None where the recipe has none.

    Raises CheckpointError: the checkpoint holds none.
    """
    if not config.memory:
        return None
    memory = Memory(config)
    if checkpoint:
        path = checkpoint.path / MEMORY
        try:
            whole = load_file(path)
        except (OSError, SafetensorError) as error:
            reason = "missing" if isinstance(error, FileNotFoundError) else str(error)
            raise CheckpointError(f"{path}: {reason}; use another checkpoint") from None
        for rows, labels in own_part(whole, world.rank, world.size):
            memory.keep(rows.to(world.device), labels.to(world.device))
    return memory
