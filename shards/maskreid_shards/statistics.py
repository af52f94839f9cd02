"""What a split holds, and what P x K batches would do to its identities with few images."""

from dataclasses import dataclass
from typing import get_args

import numpy as np

from .errors import ShardError
from .plan import FewImages, Plan
from .reading import Split

QUANTILES = {"min": 0.0, "p05": 0.05, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95, "max": 1.0}


@dataclass(frozen=True)
class SplitStatistics:
    """`images_per_identity` are quantiles, `identities_by_images` the histogram: how many identities have n
    images.

    `images_per_camera` counts every sample, `identities_by_cameras` how many identities n cameras see. Junk
    and distractors are no identities.
    """

    samples: int
    identities: int
    junk: int
    distractors: int
    images_per_identity: dict[str, float]
    identities_by_images: dict[int, int]
    images_per_camera: dict[int, int]
    identities_by_cameras: dict[int, int]


@dataclass(frozen=True)
class FewImagesEffect:
    """P x K under one policy; see `order.Plan`. `never_drawn` is the expected share of the images of all
    identities that one pass does not draw. `problem` says why there is no plan; the numbers are then 0."""

    few_images: FewImages
    few_image_identities: int
    taking_part: int
    dropped_identities: int
    steps_per_epoch: int
    never_drawn: float
    problem: str = ""


def split_statistics(split: Split) -> SplitStatistics:
    """Counts of a split, from its index alone."""
    count = split.table.count[split.table.pids > 0]
    people = split.pids > 0
    pairs = np.unique(np.stack([split.pids[people], split.camids[people]]), axis=1)
    quantiles = np.quantile(count, list(QUANTILES.values())).tolist() if len(count) else []
    return SplitStatistics(
        samples=len(split),
        identities=len(count),
        junk=int((split.pids < 0).sum()),
        distractors=int((split.pids == 0).sum()),
        images_per_identity=dict(zip(QUANTILES, quantiles, strict=False)),
        identities_by_images=_histogram(count),
        images_per_camera=_histogram(split.camids),
        identities_by_cameras=_histogram(np.unique(pairs[0], return_counts=True)[1]),
    )


def few_images_effects(split: Split, *, identities: int, images: int) -> list[FewImagesEffect]:
    """What P = `identities` x K = `images` does to a split, under each policy."""
    count = split.table.count[split.table.pids > 0]
    few = int((count < images).sum())
    effects = []
    for policy in get_args(FewImages):
        try:
            plan = Plan.pk(split.table, identities=identities, images=images, seed=0, few_images=policy)
        except ShardError as error:
            effects.append(FewImagesEffect(policy, few, 0, 0, 0, 0.0, str(error)))
            continue
        summary = plan.summary()
        # An identity that takes part is visited with the same probability in each pass.
        visited = 1 - summary.dropped_identities / summary.taking_part
        takes_part = count[count >= images] if policy == "skip" else count
        drawn = visited * float(np.minimum(takes_part, images).sum())
        effects.append(
            FewImagesEffect(
                policy,
                few,
                summary.taking_part,
                summary.dropped_identities,
                summary.steps_per_epoch,
                1 - drawn / float(count.sum()),
            )
        )
    return effects


def _histogram(values: np.ndarray) -> dict[int, int]:
    found, times = np.unique(values, return_counts=True)
    return dict(zip(found.tolist(), times.tolist(), strict=True))
