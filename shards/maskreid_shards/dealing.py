"""Which images go into which shard."""

from collections.abc import Iterator, Sequence

import numpy as np

from .keyed import keyed_bits
from .manifest import shard_name
from .samples import DISTRACTOR_PID, Layout, Source, Sources
from .writing import member_bytes, sample_json

ARRAY_BYTES = 20_000  # an image inside a larger file: about that of CUHK03 as PNG
MADE_MASK_BYTES = 2_000  # a mask that is yet to be made: about that of a crop of 128 x 64 pixels


def dealt(
    layout: Layout, dataset: str, shard_bytes: int, seed: int, *, made_masks: bool = False
) -> Iterator[tuple[str, int, Sources]]:
    """Every shard to write: its name, its number in its split, its sources."""
    for split, sources in layout.splits.items():
        parts = deal(sources, dataset=dataset, shard_bytes=shard_bytes, seed=seed, made_masks=made_masks)
        for number, part in enumerate(parts):
            yield shard_name(split, number), number, part


def deal(
    sources: Sequence[Source], *, dataset: str, shard_bytes: int, seed: int, made_masks: bool = False
) -> list[Sources]:
    """Divide a split's sources among shards of about equal size, near `shard_bytes`.

    Identities stand in an order keyed by (seed, pid), each whole in one shard, its images in source order.
    Junk and distractors are no identities, so their runs may continue in the next shard. Sizes are those of
    the source files, with `made_masks` MADE_MASK_BYTES of each mask, whether it is there yet or not.
    """
    sources = Sources.of(sources)
    pids = sources.pids
    by_identity = np.lexsort((np.arange(len(pids)), pids, keyed_bits(seed, pids)))
    pids = pids[by_identity]
    ordered = sources.take(by_identity)
    sizes = np.fromiter((_estimate(source, dataset, made_masks) for source in ordered), np.int64)
    # A unit is what must not be divided: an identity, or one image of junk or distractors.
    starts_unit = np.r_[True, (pids[1:] != pids[:-1]) | (pids[1:] <= DISTRACTOR_PID)]
    unit_start_bytes = (np.cumsum(sizes) - sizes)[starts_unit]
    total = int(sizes.sum())
    count = -(-total // shard_bytes)
    shard_of_unit = unit_start_bytes * count // total
    # A unit larger than a shard leaves numbers unused: renumber.
    shard_of_unit = np.unique(shard_of_unit, return_inverse=True)[1]
    shard_of = shard_of_unit[np.cumsum(starts_unit) - 1]
    first_of_shard = np.flatnonzero(np.r_[True, shard_of[1:] != shard_of[:-1]])
    return [sources.take(part) for part in np.split(by_identity, first_of_shard[1:])]


def _estimate(source: Source, dataset: str, made_masks: bool) -> int:
    """A sample's bytes in a tar file, from the file sizes; a missing mask counts as one block."""
    sizes = [len(sample_json(source, dataset))] + [ARRAY_BYTES] * (source.array is not None)
    sizes += [MADE_MASK_BYTES] * made_masks
    for path in (source.path if source.array is None else None, None if made_masks else source.mask_path):
        try:
            sizes.append(path.stat().st_size if path is not None else 1)
        except OSError:
            sizes.append(1)  # writing decides what a missing file means
    return sum(map(member_bytes, sizes))
