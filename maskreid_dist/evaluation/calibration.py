"""A threshold on similarity at a wanted false match rate, overall and for each two cameras, with intervals;
and the probability of a match.

Shapes: I persons, G groups of pairs (`verification`), L levels: thresholds that the bootstrap can choose.

Intervals say what to expect of as many *other* persons. Pairs that share a person are not independent, so
persons are resampled, not pairs (the subsets bootstrap, Bolle, Ratha and Pankanti, 2004): an impostor pair of
persons a and b counts w_a w_b times, where w is how often each was drawn. A replicate draws twice: the
threshold is chosen on one draw and its rate measured on the other.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from maskreid_dist.errors import UserError
from maskreid_dist.retrieval.inputs import Features, Ids
from maskreid_dist.retrieval.pairs import IntArray
from maskreid_dist.retrieval.verification import (
    BINS,
    CameraPair,
    Images,
    Similarities,
    count_similarities,
    named_images,
    pairs_of,
    similarity,
)

LEVEL = 0.99  # of the intervals
REPLICATES = 500
FEWEST = 10  # false matches that a rate must stand for
SPAN = 8.0  # thresholds are resampled between this much less and more than the wanted rate
Interval = tuple[float, float]


@dataclass(frozen=True)
class Threshold:
    """Of the pairs of two cameras, or of all (None). Rates are shares; intervals of LEVEL, for as many other
    persons."""

    cameras: CameraPair | None
    threshold: float
    false_match_rate: float
    false_match_interval: Interval
    true_match_rate: float
    true_match_interval: Interval
    impostors: int
    genuine: int


@dataclass(frozen=True)
class Calibration:
    """wanted: the false match rate asked for. slope, offset: log-odds of a match at even odds beforehand are
    slope * similarity + offset. too_few: camera pairs without enough pairs for a threshold of their own."""

    weights_sha256: str
    source: str
    wanted: float
    persons: int
    images: int
    overall: Threshold
    camera_pairs: tuple[Threshold, ...]
    too_few: tuple[CameraPair, ...]
    slope: float
    offset: float

    def probability(self, similarity: float, prior: float = 0.5) -> float:
        """That two images with this cosine similarity show one person, if `prior` was it before looking."""
        odds = self.slope * similarity + self.offset + math.log(prior / (1 - prior))
        return 1 / (1 + math.exp(-max(-700.0, min(700.0, odds))))

    def knows(self, a: int, b: int) -> bool:
        """Whether the pair of cameras was among those calibrated on."""
        known = [t.cameras for t in self.camera_pairs] + list(self.too_few)
        return (min(a, b), max(a, b)) in known


def calibrate(
    features: Features,
    pids: Ids,
    camids: Ids,
    false_match_rate: float,
    *,
    weights_sha256: str,
    source: str,
    seed: int = 0,
) -> Calibration:
    """Of N images (N, D). Raises UserError where too few pairs can stand for the wanted rate, ValueError and
    RetrievalError for bad input."""
    if not 0 < false_match_rate < 1:
        raise UserError(f"a false match rate lies between 0 and 1, not at {false_match_rate:g}")
    images = named_images(features, pids, camids)
    found = count_similarities(images)
    impostors_G = found.impostor_GB.sum(axis=1)
    if impostors_G[0] * false_match_rate < FEWEST:
        raise UserError(
            f"{source}: {impostors_G[0]} pairs of different persons; for a false match rate of "
            f"{false_match_rate:g} at least {math.ceil(FEWEST / false_match_rate)} are needed: "
            "ask for a higher rate or give more images"
        )
    enough = (impostors_G * false_match_rate >= FEWEST) & (found.genuine_GB.sum(axis=1) > 0)
    bootstrap = _Bootstrap(images, found, false_match_rate, np.flatnonzero(enough), seed)
    thresholds = [bootstrap.threshold(group) for group in np.flatnonzero(enough).tolist()]
    few = [cameras for cameras, yes in zip(images.groups, enough, strict=True) if cameras and not yes]
    slope, offset = fit_log_odds(found.genuine_GB[0], found.impostor_GB[0])
    return Calibration(
        weights_sha256=weights_sha256,
        source=source,
        wanted=false_match_rate,
        persons=images.persons,
        images=len(images.person_N),
        overall=thresholds[0],
        camera_pairs=tuple(thresholds[1:]),
        too_few=tuple(few),
        slope=slope,
        offset=offset,
    )


class _Bootstrap:
    """The pairs that resampled thresholds can divide, kept as counts of (persons, level)."""

    def __init__(
        self, images: Images, found: Similarities, wanted: float, groups: IntArray, seed: int
    ) -> None:
        self.images, self.found, self.wanted, self.seed = images, found, wanted, seed
        self.images_IC = images.images_IC
        lowest = np.full(len(images.groups), BINS, np.int64)
        for group in groups:
            lowest[group] = found.threshold(int(group), min(1.0, SPAN * wanted))
        self.lowest = lowest
        parts = list(pairs_of(images, lowest))
        self.a, self.b, self.group, self.bin = (
            np.concatenate([getattr(part, name) for part in parts]) for name in ("a", "b", "group", "bin")
        )
        genuine = pairs_of_persons(images)
        self.genuine_a, self.genuine_group, self.genuine_bin = (
            np.concatenate([part[n] for part in genuine]) for n in range(3)
        )

    def threshold(self, group: int) -> Threshold:
        edge = self.found.threshold(group, self.wanted)
        false, true = self.found.rates(group, edge)
        low_high = self._intervals(group, edge)
        return Threshold(
            self.images.groups[group],
            similarity(edge),
            false,
            low_high[0],
            true,
            low_high[1],
            int(self.found.impostor_GB[group].sum()),
            int(self.found.genuine_GB[group].sum()),
        )

    def _intervals(self, group: int, edge: int) -> tuple[Interval, Interval]:
        rng = np.random.default_rng([self.seed, group])
        mine = slice(None) if group == 0 else self.group == group
        a, b, bins = self.a[mine], self.b[mine], self.bin[mine]
        above = bins >= self.lowest[group]
        a, b, bins = a[above], b[above], bins[above]
        levels, level_P = np.unique(bins, return_inverse=True)
        theirs = slice(None) if group == 0 else self.genuine_group == group
        genuine_a, genuine_high = self.genuine_a[theirs], self.genuine_bin[theirs] >= edge
        persons = self.images.persons
        false, true = [], []
        for _ in range(REPLICATES):
            draws = rng.integers(0, persons, (2, persons))
            chosen, measured = (np.bincount(draw, minlength=persons) for draw in draws)
            rate_L = self._rates(group, a, b, level_P, len(levels), chosen)
            # The lowest threshold that keeps the wanted rate; beyond all levels where none does.
            at = int(np.count_nonzero(rate_L > self.wanted))
            other_L = self._rates(group, a, b, level_P, len(levels), measured)
            false.append(other_L[at] if at < len(levels) else 0.0)
            weight = measured[genuine_a]
            true.append((weight * genuine_high).sum() / max(1, weight.sum()))
        return _interval(false), _interval(true)

    def _rates(
        self, group: int, a: IntArray, b: IntArray, level_P: IntArray, levels: int, w_I: IntArray
    ) -> NDArray[np.float64]:
        """False match rate at each level of the drawn persons."""
        counts = np.bincount(level_P, weights=w_I[a] * w_I[b], minlength=levels)
        return np.cumsum(counts[::-1])[::-1] / max(1.0, _impostors(self.images_IC, w_I, self._cameras(group)))

    def _cameras(self, group: int) -> CameraPair | None:
        pair = self.images.groups[group]
        return pair and (self.images.cameras.index(pair[0]), self.images.cameras.index(pair[1]))


def _impostors(images_IC: IntArray, w_I: IntArray, cameras: CameraPair | None) -> float:
    """Impostor pairs of the drawn persons: pairs of images of different cameras less those of one person."""
    drawn_IC = w_I[:, None] * images_IC
    if cameras:
        first, second = drawn_IC[:, cameras[0]], drawn_IC[:, cameras[1]]
        return float(first.sum()) * float(second.sum()) - float((first * second).sum())
    if images_IC.shape[1] == 1:
        return (float(drawn_IC.sum()) ** 2 - float((drawn_IC**2).sum())) / 2
    across = float(drawn_IC.sum()) ** 2 - float((drawn_IC.sum(axis=0).astype(float) ** 2).sum())
    own = float((drawn_IC.sum(axis=1) ** 2).sum()) - float((drawn_IC**2).sum())
    return (across - own) / 2


def pairs_of_persons(images: Images) -> list[tuple[IntArray, IntArray, IntArray]]:
    """(person, group, bin) of all genuine pairs."""
    found = []
    for pairs in pairs_of(images):
        mine = pairs.genuine
        found.append((pairs.a[mine], pairs.group[mine], pairs.bin[mine]))
    return found


def _interval(values: list[float]) -> Interval:
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def fit_log_odds(genuine_B: IntArray, impostor_B: IntArray) -> tuple[float, float]:
    """Logistic regression of kind on similarity, both kinds weighing alike: slope and offset, by Newton's
    method.

    Raises UserError where similar pairs are not more often genuine.
    """
    x = similarity(0) + (np.arange(BINS) + 0.5) * 2.0 / BINS
    used = (genuine_B + impostor_B) > 0
    x, g, i = x[used], genuine_B[used] / genuine_B.sum(), impostor_B[used] / impostor_B.sum()
    mean = float(((g + i) * x).sum() / 2)
    centred = np.stack([x - mean, np.ones_like(x)])
    beta = np.zeros(2)
    for _ in range(100):
        p = 1 / (1 + np.exp(-np.clip(beta @ centred, -50, 50)))
        gradient = centred @ (g * (1 - p) - i * p) - 1e-6 * beta  # a little ridge: kinds may be separable
        hessian = (centred * ((g + i) * p * (1 - p))) @ centred.T + 1e-6 * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        beta += step * min(1.0, 5.0 / float(np.abs(step).max() + 1e-12))
        if np.abs(step).max() < 1e-9:
            break
    if beta[0] <= 0:
        raise UserError("similar pairs show one person no more often than others: nothing to calibrate")
    return float(beta[0]), float(beta[1] - beta[0] * mean)


MOST_IMAGES = 20_000  # whose pairs are looked at to see whether a calibration holds


def doubts(
    calibration: Calibration, features: NDArray[np.floating], pids: IntArray, camids: IntArray
) -> list[str]:
    """What in these images lies outside the calibration, a line each: pairs of cameras it has not seen, and
    those whose false match rate is not within its interval. Of more than MOST_IMAGES evenly spaced ones are
    taken.
    """
    step = max(1, math.ceil(len(features) / MOST_IMAGES))
    images = named_images(features[::step], pids[::step], camids[::step])
    found = count_similarities(images)
    lines = []
    strange = [pair for pair in images.groups[1:] if pair and not calibration.knows(*pair)]
    if strange:
        names = ", ".join(f"{a} and {b}" for a, b in strange[:5])
        more = f" and {len(strange) - 5} more pairs" if len(strange) > 5 else ""
        lines.append(f"not calibrated for the cameras {names}{more}: the overall threshold is a guess there")
    thresholds = {t.cameras: t for t in (calibration.overall, *calibration.camera_pairs)}
    for group, pair in enumerate(images.groups):
        known = thresholds.get(pair)
        impostors = int(found.impostor_GB[group].sum())
        if known is None or impostors * calibration.wanted < FEWEST:
            continue
        rate = found.rates(group, round((known.threshold + 1.0) * (BINS / 2)))[0]
        low, high = known.false_match_interval
        if not low <= rate <= high:
            where = "all pairs" if pair is None else f"cameras {pair[0]} and {pair[1]}"
            lines.append(
                f"{where}: {100 * rate:.3g} % of different persons match at the calibrated threshold, "
                f"outside {100 * low:.3g} to {100 * high:.3g} %"
            )
    return lines
