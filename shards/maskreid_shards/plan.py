"""The plan: which samples make each batch, a pure function of the identities, the seed, epoch and step.

No I/O and no state: to resume is to ask for (epoch, step) again. Legend: I identities in the plan, G groups
in a global batch, S slots (identities) in a group, B samples in a batch.

A global batch is G groups; a group is S visits of an identity each, and a rank takes whole groups, so the
same global batches come out for every world size that divides G.

    pk       G = P groups of one identity with K images
    paper    G groups of 1 identity with 10 images and 54 others with one: the batch of MaskReID
             (arXiv 1804.03864v1), meant as one group a rank
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import ShardError
from .identities import IdentityTable
from .keyed import keyed_bits

FewImages = Literal["repeat", "all", "skip"]

PAPER_ANCHOR_IMAGES = 10
PAPER_OTHERS = 54
# First word of every key, so that no two uses of the keyed bits share any.
_IDENTITY_ORDER, _IMAGE_ORDER, _AUGMENTATION = 1, 2, 3


@dataclass(frozen=True, eq=False)
class Draws:
    """The samples of a batch, in order. Identities are adjacent.

    `samples` (B,) int64 numbers in the split; `pids` (B,) int64; `k` (B,) int64 counts the identity's draws
    within the epoch; `seeds` (B,) uint64 are the augmentation keys. An image drawn twice differs in `k` and
    so in its augmentation.
    """

    samples: NDArray[np.int64]
    pids: NDArray[np.int64]
    k: NDArray[np.int64]
    seeds: NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.samples)


@dataclass(frozen=True)
class PlanSummary:
    """What a plan does to its split; say it at the start of a run.

    `few_image_identities` have fewer images than a visit asks for; under "skip" they are left out.
    `dropped_identities` of the identities that take part find no place in each pass (another set each time).
    `batch` is the global batch in samples, an upper bound under "all".
    """

    identities: int
    taking_part: int
    few_image_identities: int
    few_images: FewImages
    batch: int
    batch_identities: int
    steps_per_epoch: int
    passes: int
    dropped_identities: int
    order: str = ""  # where the order of the identities needs a line of its own

    def lines(self) -> list[str]:
        few = {
            "repeat": "their images are repeated",
            "all": "all of them are taken, once",
            "skip": "left out",
        }
        at_most = " at most" if self.few_images == "all" and self.few_image_identities else ""
        passes = "1 pass" if self.passes == 1 else f"{self.passes} passes"
        taking_part = f"{self.taking_part} of {self.identities} identities"
        return [
            f"batch: {self.batch} images of {self.batch_identities} identities{at_most}",
            f"epoch: {self.steps_per_epoch} steps, {passes} over {taking_part}",
            f"identities without a place in a pass: {self.dropped_identities} (others each time)",
            f"identities with too few images: {self.few_image_identities} ({few[self.few_images]})",
            *([self.order] if self.order else []),
        ]


@dataclass(frozen=True, eq=False)
class Plan:
    """See the module. Make one with `Plan.pk` or `Plan.paper`.

    An epoch is `passes` passes; a pass visits every identity that takes part once, in an order keyed by
    (seed, epoch, pass), and drops the last incomplete batch, so all ranks have equally many steps. A visit
    takes the next images of the identity's own order, keyed by (seed, epoch, pid): with passes >= ceil(images
    / K) an identity that is not dropped has every image drawn.

    `few_images`, for an identity with fewer images than a visit asks for: "repeat" cycles through them, "all"
    takes each once (the batch is then smaller), "skip" leaves the identity out of the plan.
    """

    table: IdentityTable
    groups: int
    group_images: tuple[int, ...]
    seed: int
    few_images: FewImages
    passes: int = 1
    _orders: dict[tuple[int, int], NDArray[np.int64]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.few_images not in get_args(FewImages):
            raise ShardError(f"few_images {self.few_images!r}: use one of {', '.join(get_args(FewImages))}")
        for name, value in (
            ("groups", self.groups),
            ("passes", self.passes),
            *(("images", n) for n in self.group_images),
        ):
            if value < 1:
                raise ShardError(f"batch plan: {name} is {value}, must be at least 1")
        if self.steps_per_epoch == 0:
            left_out = " with enough images" if self.few_images == "skip" else ""
            a_group = len(self.group_images)  # of the paper's batch, one a rank
            ranks = (
                f": at most {len(self.eligible) // a_group} ranks, each has {a_group}" if a_group > 1 else ""
            )
            raise ShardError(
                f"batch plan: a global batch takes {self.batch_identities} identities, the split has "
                f"{len(self.eligible)}{left_out}; use fewer identities a batch{ranks}"
            )

    @classmethod
    def pk(
        cls,
        table: IdentityTable,
        *,
        identities: int,
        images: int,
        seed: int,
        few_images: FewImages = "repeat",
        passes: int = 1,
    ) -> "Plan":
        """P = `identities` x K = `images` a global batch.

        Raises ShardError: too few identities, a value below 1.
        """
        return cls(table, identities, (images,), seed, few_images, passes)

    @classmethod
    def paper(
        cls,
        table: IdentityTable,
        *,
        groups: int,
        seed: int,
        few_images: FewImages = "all",
        passes: int = 1,
        anchor_images: int = PAPER_ANCHOR_IMAGES,
        others: int = PAPER_OTHERS,
    ) -> "Plan":
        """`groups` times (1 identity x `anchor_images` + `others` x 1 image), all of them different.

        By default an anchor identity with fewer images gives what it has, and its group is smaller. Raises
        ShardError as `pk`.
        """
        return cls(table, groups, (anchor_images, *[1] * others), seed, few_images, passes)

    @property
    def batch_identities(self) -> int:
        """Identities in a global batch."""
        return self.groups * len(self.group_images)

    @cached_property
    def steps_per_pass(self) -> int:
        return len(self.eligible) // self.batch_identities

    @property
    def steps_per_epoch(self) -> int:
        """The same on every rank."""
        return self.passes * self.steps_per_pass

    @property
    def dropped_per_pass(self) -> int:
        """Identities that take part but find no place in a pass."""
        return len(self.eligible) - self.steps_per_pass * self.batch_identities

    def global_draws(self, epoch: int, step: int) -> Draws:
        """The global batch of a step. Raises IndexError for a step that the epoch does not have."""
        return self._draws(epoch, step, 0, self.groups)

    def rank_draws(self, epoch: int, step: int, rank: int, world: int) -> Draws:
        """Rank `rank`'s part: those of ranks 0 ... world-1 in sequence are the global batch.

        Raises ShardError when `world` does not divide the groups (P), IndexError for a step the epoch does
        not have.
        """
        self.check_world(world)
        if not 0 <= rank < world:
            raise IndexError(f"rank {rank} of {world}")
        share = self.groups // world
        return self._draws(epoch, step, rank * share, (rank + 1) * share)

    def global_batch(self, epoch: int, step: int) -> NDArray[np.int64]:
        """(B,) int64 sample numbers of the global batch."""
        return self.global_draws(epoch, step).samples

    def rank_batch(self, epoch: int, step: int, rank: int, world: int) -> NDArray[np.int64]:
        """(B / world,) int64 sample numbers of a rank's part."""
        return self.rank_draws(epoch, step, rank, world).samples

    def check_world(self, world: int) -> None:
        """Raise ShardError when `world` ranks cannot share the groups equally, naming numbers that work."""
        if world >= 1 and self.groups % world == 0:
            return
        unit = "identities (P)" if len(self.group_images) == 1 else "groups"
        below = self.groups - self.groups % world if world >= 1 else 0
        near = [str(count) for count in (below, below + world) if count >= 1]
        worlds = [str(count) for count in range(1, self.groups + 1) if self.groups % count == 0]
        raise ShardError(
            f"{self.groups} {unit} a global batch cannot be shared equally by {world} ranks; use "
            f"{' or '.join(near)} {unit}, or {', '.join(worlds)} ranks"
        )

    def summary(self) -> PlanSummary:
        few = int((self.table.count[self.table.pids > 0] < max(self.group_images)).sum())
        return PlanSummary(
            identities=int((self.table.pids > 0).sum()),
            taking_part=len(self.eligible),
            few_image_identities=few,
            few_images=self.few_images,
            batch=self.groups * sum(self.group_images),
            batch_identities=self.batch_identities,
            steps_per_epoch=self.steps_per_epoch,
            passes=self.passes,
            dropped_identities=self.dropped_per_pass,
        )

    @cached_property
    def eligible(self) -> NDArray[np.int64]:
        """(I,) positions in the table of the identities that take part; junk and distractors never do."""
        taking_part = self.table.pids > 0
        if self.few_images == "skip":
            taking_part &= self.table.count >= max(self.group_images)
        return np.flatnonzero(taking_part)

    def _identity_order(self, epoch: int, number: int) -> NDArray[np.int64]:
        """(I,) positions in the table, in the order of pass `number`; the last one asked for is kept."""
        if (epoch, number) not in self._orders:
            bits = keyed_bits(_IDENTITY_ORDER, self.seed, epoch, number, self.table.pids[self.eligible])
            order = self.eligible[np.argsort(bits, kind="stable")]
            self._orders.clear()
            self._orders[epoch, number] = order
        return self._orders[epoch, number]

    def _draws(self, epoch: int, step: int, group_start: int, group_stop: int) -> Draws:
        if not 0 <= step < self.steps_per_epoch:
            raise IndexError(f"step {step}: the epoch has {self.steps_per_epoch}")
        number, step_in_pass = divmod(step, self.steps_per_pass)
        slots = len(self.group_images)
        start = step_in_pass * self.batch_identities
        places = slice(start + group_start * slots, start + group_stop * slots)
        return self.draws_of(epoch, number, self._identity_order(epoch, number)[places])

    def draws_of(self, epoch: int, number: int, visited: NDArray[np.int64]) -> Draws:
        """The draws of whole groups in pass `number`; `visited` (V,) are their identities, as positions in
        the table."""
        pids, first, count = self.table.pids[visited], self.table.first[visited], self.table.count[visited]
        take = np.tile(np.array(self.group_images, np.int64), len(visited) // len(self.group_images))
        if self.few_images != "repeat":
            take = np.minimum(take, count)
        row, k = _ragged_arange(take)
        k += number * max(self.group_images)
        images, image_start = _image_orders(self.seed, epoch, pids, count)
        samples = first[row] + images[image_start[row] + k % count[row]]
        return Draws(samples, pids[row], k, augmentation_key(self.seed, epoch, pids[row], k))


def augmentation_key(seed: int, epoch: int, pid: ArrayLike, k: ArrayLike) -> NDArray[np.uint64]:
    """64 bits to seed the augmentation of an identity's k-th draw in an epoch; arrays broadcast."""
    return keyed_bits(_AUGMENTATION, seed, epoch, pid, k)


def _image_orders(
    seed: int, epoch: int, pids: NDArray[np.int64], count: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Each identity's permutation of 0 ... count-1, end to end, and where each one starts."""
    row, image = _ragged_arange(count)
    bits = keyed_bits(_IMAGE_ORDER, seed, epoch, pids[row], image)
    return image[np.lexsort((bits, row))], np.cumsum(count) - count


def _ragged_arange(lengths: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For lengths (2, 3): rows 0 0 1 1 1 and positions 0 1 0 1 2."""
    row = np.repeat(np.arange(len(lengths)), lengths)
    return row, np.arange(len(row)) - (np.cumsum(lengths) - lengths)[row]
