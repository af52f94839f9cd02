"""Batches for whole shards that are read one after another: which identities in which step, no reading.

A reader is a data worker of a rank. In each pass the shards are dealt anew to the readers, and each reads its
own in an order of its own. It keeps a pool of identities: filled in the order of the stream, a step's share
is drawn out of it at random. Step s of a rank is made by its reader s mod readers. Readers have different
shards, so no identity stands twice in a global batch.

Legend: N shards with identities that take part, R readers over all ranks, T steps of a reader in a pass, V
identities that a rank draws in a step.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import ShardError
from .keyed import keyed_bits
from .plan import Draws, Plan, PlanSummary

# First word of every key; `plan` has 1 to 3.
_SHARDS_LEFT_OUT, _SHARD_READER, _SHARD_ORDER, _POOL = 11, 12, 13, 14
# Shards of a reader that are dealt together, among shards with about as many identities: fewer would keep
# shards apart for ever, more would leave larger differences between readers.
STRATUM = 4


@dataclass(frozen=True, eq=False)
class StreamPlan:
    """A pure function of seed, epoch and step, for so many ranks and readers a rank. Make one with `of`.

    `batches` says what a batch is, and which images a visit takes; `shard_of` (I,) is the shard of each
    identity of its table. A pass visits an identity at most once. Every pass has as many steps as the worst
    deal of the shards allows, so all readers of all epochs have equally many; identities that a reader has
    left then, and those in the N mod R shards that nobody reads, have no place in that pass.
    """

    batches: Plan
    shard_of: NDArray[np.int64]
    pool: int
    world: int
    readers: int
    _visits: dict[tuple[int, int, int], NDArray[np.int64]] = field(
        default_factory=dict, init=False, repr=False
    )

    @classmethod
    def of(
        cls, batches: Plan, sample_shards: ArrayLike, *, pool: int, world: int, readers: int = 1
    ) -> "StreamPlan":
        """`sample_shards` (S,): the shard of each sample. `pool`: most identities that a reader holds.

        Raises ShardError: `world` does not divide P; a pool smaller than a rank's share of a batch; fewer
        shards than readers, or shards with too few identities; an identity in several shards.
        """
        shards = np.asarray(sample_shards, np.int64)
        table = batches.table
        divided = np.flatnonzero(
            (table.pids > 0) & (shards[table.first] != shards[table.first + table.count - 1])
        )
        if len(divided):
            raise ShardError(
                f"identity {table.pids[divided[0]]} lies in several shards; convert the data set again"
            )
        plan = cls(batches, shards[table.first], pool, world, readers)
        plan._check()
        return plan

    def _check(self) -> None:
        self.batches.check_world(self.world)
        if self.pool < self.share:
            raise ShardError(
                f"a pool of {self.pool} identities, and a rank draws {self.share} in a step; use a larger one"
            )
        if not self._shards_each:
            raise ShardError(
                f"{len(self._shards)} shards with identities, to stream for {self.world} ranks x "
                f"{self.readers} readers; use fewer data workers, or convert with a smaller --shard-size"
            )
        if not self._reader_steps:
            raise ShardError(
                f"a rank draws {self.share} identities in a step, and a reader may get "
                f"{self._reader_identities} in its {self._shards_each} shards; use fewer identities a batch, "
                "fewer data workers, or larger shards"
            )

    @property
    def share(self) -> int:
        """V, from one reader."""
        return self.batches.batch_identities // self.world

    @property
    def steps_per_pass(self) -> int:
        return self.readers * self._reader_steps

    @property
    def steps_per_epoch(self) -> int:
        """The same on every rank and in every epoch."""
        return self.batches.passes * self.steps_per_pass

    def check_world(self, world: int) -> None:
        """Raise ShardError for another world than the plan's."""
        if world != self.world:
            raise ShardError(f"the stream was planned for {self.world} ranks, not {world}")

    def rank_draws(self, epoch: int, step: int, rank: int, world: int) -> Draws:
        """As `Plan.rank_draws`, for the plan's own world."""
        self.check_world(world)
        number, in_reader, reader = self._place(step, rank)
        visited = self._reader_visits(epoch, number, reader)[in_reader]
        return self.batches.draws_of(epoch, number, visited)

    def rank_batch(self, epoch: int, step: int, rank: int, world: int) -> NDArray[np.int64]:
        return self.rank_draws(epoch, step, rank, world).samples

    def to_read(self, epoch: int, step: int, rank: int) -> NDArray[np.int64]:
        """(n,) the samples that the reader of `step` needs from there to the end of the pass, each once, in
        the order in which it reads them: shards that it no longer needs are left out."""
        number, in_reader, reader = self._place(step, rank)
        visited = self._reader_visits(epoch, number, reader)[in_reader:].reshape(-1)
        draws = self.batches.draws_of(epoch, number, visited)
        samples, at = np.unique(draws.samples, return_index=True)
        shards = self.shard_of[np.searchsorted(self.batches.table.pids, draws.pids[at])]
        place = np.zeros(int(self.shard_of.max()) + 1, np.int64)
        place[self.reader_shards(epoch, number)[reader]] = np.arange(self._shards_each)
        return samples[np.lexsort((samples, place[shards]))]

    def reader_shards(self, epoch: int, number: int) -> NDArray[np.int64]:
        """(R, m) the shards of each reader in pass `number`, in the order in which it reads them."""
        key = (self.batches.seed, epoch, number)
        total = self._shards_each * self._all_readers
        left_out = np.argsort(keyed_bits(_SHARDS_LEFT_OUT, *key, self._shards), kind="stable")
        kept = np.sort(left_out[:total])  # still by identities
        bits = keyed_bits(_SHARD_READER, *key, self._shards)
        parts = []
        for rows in self._strata:
            block = kept[rows[0] * self._all_readers : (rows[-1] + 1) * self._all_readers]
            parts.append(block[np.argsort(bits[block], kind="stable")].reshape(self._all_readers, len(rows)))
        dealt = np.hstack(parts)
        order = np.argsort(keyed_bits(_SHARD_ORDER, *key, self._shards)[dealt], axis=1, kind="stable")
        return self._shards[np.take_along_axis(dealt, order, axis=1)]

    def summary(self) -> PlanSummary:
        whole = self.batches.summary()
        of_all = self._shards_each * self._all_readers
        return replace(
            whole,
            steps_per_epoch=self.steps_per_epoch,
            dropped_identities=whole.taking_part - self.steps_per_pass * self.batches.batch_identities,
            order=f"stream: {of_all} of {len(self._shards)} shards a pass, {self._shards_each} for each of "
            f"{self.world} ranks x {self.readers} readers; pools of {self.pool} identities",
        )

    @property
    def _all_readers(self) -> int:
        return self.world * self.readers

    @cached_property
    def _identities_of(self) -> NDArray[np.int64]:
        """Identities that take part, by shard number."""
        return np.bincount(self.shard_of[self.batches.eligible], minlength=1)

    @cached_property
    def _shards(self) -> NDArray[np.int64]:
        """(N,) the shards with identities that take part, those with fewest first."""
        counts = self._identities_of
        return np.argsort(counts, kind="stable")[int((counts == 0).sum()) :]

    @property
    def _shards_each(self) -> int:
        return len(self._shards) // self._all_readers

    @cached_property
    def _strata(self) -> list[NDArray[np.int64]]:
        """Which of a reader's shards, by identities, are dealt together."""
        return np.array_split(np.arange(self._shards_each), max(1, self._shards_each // STRATUM))

    @cached_property
    def _reader_identities(self) -> int:
        """What every deal gives every reader at least: of each stratum the smallest shards. Leaving some
        shards out makes the smallest of a stratum no smaller."""
        counts = self._identities_of[self._shards]
        starts = [(int(rows[0]) * self._all_readers, len(rows)) for rows in self._strata if len(rows)]
        return sum(int(counts[start : start + size].sum()) for start, size in starts)

    @property
    def _reader_steps(self) -> int:
        """T."""
        return self._reader_identities // self.share

    def _place(self, step: int, rank: int) -> tuple[int, int, int]:
        """Of a step of the epoch: its pass, which step of its reader it is there, and the reader of all."""
        if not 0 <= step < self.steps_per_epoch:
            raise IndexError(f"step {step}: the epoch has {self.steps_per_epoch}")
        if not 0 <= rank < self.world:
            raise IndexError(f"rank {rank} of {self.world}")
        number, in_pass = divmod(step, self.steps_per_pass)
        in_reader, reader = divmod(in_pass, self.readers)
        return number, in_reader, rank * self.readers + reader

    def _reader_visits(self, epoch: int, number: int, reader: int) -> NDArray[np.int64]:
        """(T, V) positions in the table; those of a pass are kept."""
        if (epoch, number, reader) not in self._visits:
            if any((epoch, number) != known[:2] for known in self._visits):
                self._visits.clear()
            self._visits[epoch, number, reader] = self._drawn_from_pool(epoch, number, reader)
        return self._visits[epoch, number, reader]

    def _drawn_from_pool(self, epoch: int, number: int, reader: int) -> NDArray[np.int64]:
        coming = self._in_reading_order(self.reader_shards(epoch, number)[reader])
        steps = np.arange(self._reader_steps * self.share)
        bits = keyed_bits(_POOL, self.batches.seed, epoch, number, reader, steps)
        visits = np.empty(len(steps), np.int64)
        pool: list[int] = []
        filled = 0
        for slot, word in enumerate(bits.tolist()):
            if slot % self.share == 0 and filled < len(coming):
                more = coming[filled : filled + self.pool - len(pool)].tolist()
                filled += len(more)
                pool += more
            place = word % len(pool)
            pool[place], pool[-1] = pool[-1], pool[place]
            visits[slot] = pool.pop()
        return visits.reshape(self._reader_steps, self.share)

    def _in_reading_order(self, shards: NDArray[np.int64]) -> NDArray[np.int64]:
        """The identities of these shards that take part, shard after shard, as they lie in each."""
        place = np.full(int(self.shard_of.max()) + 1, len(shards), np.int64)
        place[shards] = np.arange(len(shards))
        eligible = self.batches.eligible
        first, places = self.batches.table.first[eligible], place[self.shard_of[eligible]]
        order = np.lexsort((first, places))
        return eligible[order[: int((places < len(shards)).sum())]]
