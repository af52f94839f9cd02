"""`data.access = "stream"`: each data worker reads whole shards, and makes its steps of them."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import IterableDataset, get_worker_info

from maskreid_shards import Draws, RawPair, ShardStream, Split, StreamPlan

Read = Callable[[NDArray[np.int64]], list[RawPair]]


class MadeBatches(Protocol):
    """Makes a batch of draws whose samples it gets from `read`."""

    split: Split
    read: Read

    def __getitem__(self, draws: Draws) -> Any: ...


class StreamedBatches(IterableDataset[Any]):
    """A rank's batches of the global steps start ... stop - 1, which are those of the plan.

    A loader takes from its workers in turn, so worker w makes the steps start + w, start + w + workers, ...:
    those of one of the plan's readers. `batches` reads from that reader's shards then.
    """

    def __init__(self, batches: MadeBatches, plan: StreamPlan, start: int, stop: int, rank: int) -> None:
        self.batches, self.plan = batches, plan
        self.start, self.stop, self.rank = start, stop, rank

    @property
    def split(self) -> Split:
        return self.batches.split

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        first, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        if workers != self.plan.readers:
            raise ValueError(f"the plan is for {self.plan.readers} workers, here are {workers}")
        at: tuple[int, int] | None = None
        for step in range(self.start + first, self.stop, workers):
            epoch, in_epoch = divmod(step, self.plan.steps_per_epoch)
            this_pass = epoch, in_epoch // self.plan.steps_per_pass
            if this_pass != at:
                at = this_pass
                stream = ShardStream(self.split, self.plan.to_read(epoch, in_epoch, self.rank))
                self.batches.read = stream.read_many
            yield self.batches[self.plan.rank_draws(epoch, in_epoch, self.rank, self.plan.world)]
