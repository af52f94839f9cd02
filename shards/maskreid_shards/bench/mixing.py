"""How mixed the batches of a plan are: which identities meet, and how often they meet again."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..plan import Plan
from ..stream_plan import StreamPlan


@dataclass(frozen=True)
class Mixing:
    """`shards`: in a global batch, on average. `one_shard`: of the pairs of identities in a batch, the share
    that lies in one shard. `again`: of those that met in an epoch, the share that meets in the next."""

    shards: float
    one_shard: float
    again: float


def mixing(plan: Plan | StreamPlan, sample_shards: NDArray[np.int64], world: int, epochs: int) -> Mixing:
    """Over so many epochs, at least 2. `sample_shards` (N,): the shard of each sample."""
    shards: list[int] = []
    alike = total = 0
    met: list[NDArray[np.int64]] = []
    for epoch in range(epochs):
        pairs = []
        for step in range(plan.steps_per_epoch):
            draws = [plan.rank_draws(epoch, step, rank, world) for rank in range(world)]
            pids, first = np.unique(np.concatenate([part.pids for part in draws]), return_index=True)
            of_pid = sample_shards[np.concatenate([part.samples for part in draws])[first]]
            one, other = np.triu_indices(len(pids), 1)
            shards.append(len(np.unique(of_pid)))
            alike += int((of_pid[one] == of_pid[other]).sum())
            total += len(one)
            pairs.append((pids[one] << 32) + pids[other])
        met.append(np.unique(np.concatenate(pairs)))
    again = [len(np.intersect1d(a, b)) / len(a) for a, b in zip(met, met[1:], strict=False)]
    return Mixing(float(np.mean(shards)), alike / total, float(np.mean(again)))
