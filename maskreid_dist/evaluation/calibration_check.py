"""Whether a calibration keeps its word: fitted on half of the persons, measured on the others."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from maskreid_dist.evaluation.calibration import LEVEL, Calibration, Interval, Threshold, calibrate
from maskreid_dist.retrieval.inputs import Features, Ids
from maskreid_dist.retrieval.verification import (
    BINS,
    CameraPair,
    Images,
    Similarities,
    count_similarities,
    named_images,
)


@dataclass(frozen=True)
class Measured:
    """A threshold of one half, and what it does on the other. `rate`: its false match rate there."""

    cameras: CameraPair | None
    threshold: float
    interval: Interval
    rate: float

    @property
    def inside(self) -> bool:
        return self.interval[0] <= self.rate <= self.interval[1]


@dataclass(frozen=True)
class SplitCheck:
    """Of one split of the persons: all pairs, and those camera pairs that have a threshold and impostors in
    both halves."""

    overall: Measured
    camera_pairs: tuple[Measured, ...]


def check_splits(
    features: Features,
    pids: Ids,
    camids: Ids,
    false_match_rate: float,
    splits: int,
    *,
    source: str,
    seed: int = 0,
    progress: Callable[[int, int], object] = lambda done, of: None,
) -> list[SplitCheck]:
    """Of N images (N, D), `splits` times, each with another half of the persons (pid > 0). Raises UserError
    where half of the persons have too few pairs for the rate."""
    rows, people, cameras = np.asarray(features), np.asarray(pids), np.asarray(camids)
    persons = np.unique(people[people > 0])
    rng = np.random.default_rng(seed)
    checks = []
    for number in range(splits):
        half = np.isin(people, rng.permutation(persons)[: len(persons) // 2])
        other = ~half & (people > 0)
        mine = rows[half], people[half], cameras[half]
        part = f"{source}, half of the persons"
        fitted = calibrate(*mine, false_match_rate, weights_sha256="", source=part, seed=number)
        checks.append(_measure(fitted, named_images(rows[other], people[other], cameras[other])))
        progress(number + 1, splits)
    return checks


def _measure(fitted: Calibration, others: Images) -> SplitCheck:
    found = count_similarities(others)
    groups = {pair: group for group, pair in enumerate(others.groups)}
    pairs = [
        _measured(one, found, groups[one.cameras]) for one in fitted.camera_pairs if one.cameras in groups
    ]
    overall = _measured(fitted.overall, found, 0)
    return SplitCheck(overall, tuple(one for one in pairs if not np.isnan(one.rate)))


def _measured(fitted: Threshold, others: Similarities, group: int) -> Measured:
    edge = round((fitted.threshold + 1.0) * (BINS / 2))
    return Measured(
        fitted.cameras, fitted.threshold, fitted.false_match_interval, others.rates(group, edge)[0]
    )


def check_lines(checks: list[SplitCheck], wanted: float) -> list[str]:
    """What the splits showed, a line each for all pairs and for pairs of cameras."""
    overall = [check.overall for check in checks]
    pairs = [one for check in checks for one in check.camera_pairs]
    rates = [100 * one.rate for one in overall]
    lows, highs = ([100 * one.interval[end] for one in overall] for end in (0, 1))
    lines = [
        f"{len(checks)} splits, fitted on half of the persons for {100 * wanted:g} % false matches, measured "
        f"on the others: within the {100 * LEVEL:g} % interval in {sum(one.inside for one in overall)} of "
        f"{len(checks)}",
        f"measured {min(rates):.3g} to {max(rates):.3g} %, mean {np.mean(rates):.3g} %; intervals from "
        f"{np.mean(lows):.3g} to {np.mean(highs):.3g} % on average",
    ]
    if pairs:
        inside = sum(one.inside for one in pairs)
        lines.append(f"pairs of cameras: within their intervals in {inside} of {len(pairs)}")
    return lines
