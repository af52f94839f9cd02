"""Same person or not: how similar pairs of images are, and the error rates of a threshold.

Shapes: N images, I persons, C cameras, G groups of pairs: 0 all pairs, then one for each two cameras.
A pair is two images of different cameras; without camera ids (all alike) any two images. It is genuine where
both show one person, else an impostor. Images of pid 0 and -1 show nobody in particular and are left out.

    false match rate at t   share of the impostors with a cosine similarity of at least t
    true match rate at t    share of the genuine pairs with one

Similarities are counted in bins of 2 / BINS; a threshold is an edge between bins, so both rates are exact
there.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from maskreid_dist.errors import RetrievalError
from maskreid_dist.retrieval.inputs import Features, Ids, image_set
from maskreid_dist.retrieval.pairs import IntArray

Values = NDArray[np.float64]
CameraPair = tuple[int, int]

BINS = 1 << 15  # of similarities from -1 to 1
_TILE = 1024  # images whose pairs with as many others are held at once


@dataclass(frozen=True, eq=False)
class Images:
    """The named images: unit rows (N, D) float32, person_N 0..I-1, camera_N 0..C-1, cameras: their ids."""

    unit_ND: NDArray[np.float32]
    person_N: IntArray
    camera_N: IntArray
    persons: int
    cameras: tuple[int, ...]

    @property
    def groups(self) -> list[CameraPair | None]:
        """What each group holds: None, all pairs; or the ids of two cameras."""
        return [None, *combinations(self.cameras, 2)]

    @property
    def images_IC(self) -> IntArray:
        """How many images of each person each camera has."""
        counts = np.zeros((self.persons, len(self.cameras)), np.int64)
        np.add.at(counts, (self.person_N, self.camera_N), 1)
        return counts


def named_images(features: Features, pids: Ids, camids: Ids) -> Images:
    """Raises ValueError for bad input, RetrievalError where no two persons, or no person twice, are there."""
    images = image_set("gallery", features, pids, camids, metric="cosine")
    kept = np.flatnonzero(images.pids > 0)
    persons, person_N = np.unique(images.pids[kept], return_inverse=True)
    cameras, camera_N = np.unique(images.camids[kept], return_inverse=True)
    norms = images.norms[kept].clamp_min(1e-12)
    unit = (images.features[kept].double() / norms[:, None]).float().cpu().numpy()
    found = Images(unit, person_N, camera_N, len(persons), tuple(cameras.tolist()))
    counts_IC = found.images_IC
    if len(cameras) == 1:
        genuine = (counts_IC.sum(axis=1) > 1).any()
    else:
        genuine = ((counts_IC > 0).sum(axis=1) > 1).any()
    if len(persons) < 2 or not genuine:
        raise RetrievalError(
            f"{len(kept)} images of {len(persons)} persons in {len(cameras)} cameras: no two persons, or "
            "none of them in two cameras, so there is nothing to compare"
        )
    return found


@dataclass(frozen=True, eq=False)
class Similarities:
    """impostor_GB and genuine_GB: counts of the pairs by bin."""

    impostor_GB: IntArray
    genuine_GB: IntArray

    def rates(self, group: int, edge: int) -> tuple[float, float]:
        """False and true match rate at the lower edge of bin `edge`; nan without a pair of the kind."""
        return _share(self.impostor_GB[group], edge), _share(self.genuine_GB[group], edge)

    def threshold(self, group: int, false_match_rate: float) -> int:
        """The lowest edge whose false match rate is at most this."""
        above = np.cumsum(self.impostor_GB[group][::-1])[::-1]
        return int(np.count_nonzero(above > false_match_rate * max(1, above[0])))


def true_match_rates(found: Similarities, false_match_rates: Sequence[float]) -> list[float | None]:
    """Of all pairs, at the lowest thresholds that keep each false match rate; None where it would stand for
    less than one false match."""
    impostors = int(found.impostor_GB[0].sum())
    return [
        found.rates(0, found.threshold(0, rate))[1] if impostors * rate >= 1 else None
        for rate in false_match_rates
    ]


def roc_curve(found: Similarities, most: int = 200) -> tuple[Values, Values]:
    """False and true match rates of all pairs, (P,) each and rising, P at most `most` + 1: at the lowest
    thresholds that keep a false match rate of 0, and rates evenly spaced by their logarithm from that of one
    false match to 1."""
    false_B1, true_B1 = (_shares_from(counts[0]) for counts in (found.impostor_GB, found.genuine_GB))
    wanted = np.geomspace(1 / found.impostor_GB[0].sum(), 1.0, most)
    # Rates fall with the edge. A rate that is one false match must not be missed by a rounding.
    edges = np.searchsorted(-false_B1, -np.append(0.0, wanted * (1 + 1e-9)), side="left")
    edges = np.unique(edges)[::-1]
    return false_B1[edges], true_B1[edges]


def similarity(edge: int) -> float:
    """Of a bin's lower edge."""
    return 2.0 * edge / BINS - 1.0


def count_similarities(images: Images) -> Similarities:
    """All pairs, by group, kind and bin, in the memory of a tile and G x BINS numbers."""
    groups = len(images.groups)
    counts = np.zeros((2, groups, BINS), np.int64)
    for pairs in pairs_of(images):
        at = (pairs.genuine * groups + pairs.group) * BINS + pairs.bin
        counts += np.bincount(at, minlength=counts.size).reshape(counts.shape)
    counts[:, 0] = counts.sum(axis=1)
    return Similarities(counts[0], counts[1])


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of a tile as parallel arrays: persons a and b, group (0: one camera only), bin, kind."""

    a: IntArray
    b: IntArray
    group: IntArray
    bin: IntArray
    genuine: NDArray[np.bool_]


def pairs_of(images: Images, lowest: IntArray | None = None) -> Iterator[Pairs]:
    """Every pair once, tile by tile. lowest (G,): only impostors in at least this bin of their group or, for
    group 0, of all."""
    group_CC = _group_of_cameras(len(images.cameras))
    N = len(images.person_N)
    for start in range(0, N, _TILE):
        for other in range(start, N, _TILE):
            rows, columns = np.arange(start, min(start + _TILE, N)), np.arange(other, min(other + _TILE, N))
            similarity_RC = images.unit_ND[rows] @ images.unit_ND[columns].T
            bin_RC = ((similarity_RC + 1.0) * (BINS / 2)).astype(np.int64).clip(0, BINS - 1)
            group_RC = group_CC[images.camera_N[rows][:, None], images.camera_N[columns]]
            wanted = group_RC >= 0
            if lowest is not None:
                wanted &= bin_RC >= np.minimum(lowest[0], lowest[group_RC])
                wanted &= images.person_N[rows][:, None] != images.person_N[columns]
            if start == other:
                wanted &= rows[:, None] < columns
            r, c = wanted.nonzero()
            a, b = images.person_N[rows[r]], images.person_N[columns[c]]
            yield Pairs(a, b, group_RC[r, c], bin_RC[r, c], a == b)


def _group_of_cameras(cameras: int) -> IntArray:
    """(C, C) the group of two cameras; -1: the same one, no pair, unless it is the only one."""
    group = np.full((cameras, cameras), 0 if cameras == 1 else -1, np.int64)
    for number, (a, b) in enumerate(combinations(range(cameras), 2), 1):
        group[a, b] = group[b, a] = number
    return group


def _shares_from(count_B: IntArray) -> Values:
    """(B + 1,) of what lies at or above each bin's lower edge, and above the last bin."""
    above_B = np.cumsum(count_B[::-1])[::-1]
    return np.append(above_B, 0) / max(1, int(above_B[0]))


def _share(count_B: IntArray, edge: int) -> float:
    total = int(count_B.sum())
    return float(count_B[edge:].sum() / total) if total else float("nan")
