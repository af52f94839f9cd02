"""Data sets without a fixed split: train identities drawn by seed, the others split by camera into query and
gallery."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ..errors import ShardError
from ..keyed import keyed_bits
from ..samples import Layout
from .images import ImageEntry, sources


def draw_identities(src: Path, identities: Iterable[int], count: int, seed: int) -> set[int]:
    """`count` of the identities, by (seed, pid) alone. Raises ShardError unless some are left over."""
    pids = np.array(sorted(identities), np.int64)
    if not 1 <= count < len(pids):
        raise ShardError(f"{src}: {count} train identities of {len(pids)}; take 1 to {len(pids) - 1}")
    return set(pids[np.argsort(keyed_bits(seed, pids), kind="stable")[:count]].tolist())


def drawn_layout(
    name: str,
    src: Path,
    found: Iterable[ImageEntry],
    train: set[int],
    *,
    strays: Iterable[str],
    seed: int,
) -> Layout:
    """Of the identities not in `train`, camera 1 has the queries (where camera 2 shows them too), camera 2
    the gallery."""
    images = list(found)
    in_gallery = {image.pid for image in images if image.camid == 2}
    splits: dict[str, list[ImageEntry]] = {"train": [], "query": [], "gallery": []}
    for image in images:
        if image.pid in train:
            splits["train"].append(image)
        elif image.camid == 2:
            splits["gallery"].append(image)
        elif image.pid in in_gallery:
            splits["query"].append(image)
    for split, part in splits.items():
        if not part:
            raise ShardError(f"{src}: no image is left for the split {split}; is it the whole data set?")
    return Layout(
        name,
        {split: sources(src, split, part) for split, part in splits.items()},
        tuple(strays),
        searched=(src,),
        roots=(src,),
        notes=(
            f"{len(train)} train identities drawn with split seed {seed}; queries are camera 1, the gallery "
            "camera 2",
        ),
    )
