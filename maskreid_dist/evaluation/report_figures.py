"""The numbers behind the report's charts: distances of pairs, and two principal components.

Shapes: N images, D features.
"""

import math

import numpy as np
from numpy.typing import NDArray

from maskreid_dist.errors import RetrievalError
from maskreid_dist.evaluation.calibration import Calibration
from maskreid_dist.report.html import Distances, EmbeddingMap
from maskreid_dist.report.plots import LETTERS
from maskreid_dist.retrieval.pairs import IntArray
from maskreid_dist.retrieval.verification import BINS, named_images, pairs_of
from maskreid_shards import SourceNames

Rows = NDArray[np.floating]
MOST_IMAGES = 8_000  # whose pairs are counted
MOST_BARS = 60
MOST_POINTS = 1_200  # of the map


def distances(
    features_ND: Rows, pids_N: IntArray, camids_N: IntArray, calibration: Calibration | None
) -> Distances | str:
    """Of all pairs, of different cameras where there are several; of more than MOST_IMAGES images, those of
    evenly spaced persons. What prevents it, as text, where nobody is there twice."""
    pids = np.unique(pids_N[pids_N > 0])
    step = math.ceil(len(pids_N) / MOST_IMAGES)
    taken = np.flatnonzero(np.isin(pids_N, pids[::step]))
    try:
        images = named_images(features_ND[taken], pids_N[taken], camids_N[taken])
    except RetrievalError as error:
        return f"No distances of pairs: {error}."
    count_KB = np.zeros((2, BINS), np.int64)
    for pairs in pairs_of(images):
        count_KB += np.bincount(pairs.genuine * BINS + pairs.bin, minlength=2 * BINS).reshape(2, BINS)
    other, same = (_shares(counts) for counts in count_KB)
    occupied = np.flatnonzero(count_KB.sum(axis=0))
    first, stop = int(occupied[0]), int(occupied[-1]) + 1
    width = math.ceil((stop - first) / MOST_BARS)
    starts = np.arange(first, stop, width)
    # From the greatest similarity down, so that distances ascend.
    edges = 1.0 - (2.0 * np.append(starts, starts[-1] + width) / BINS - 1.0)
    return Distances(
        edges=edges[::-1].tolist(),
        same=_sums(same, starts)[::-1].tolist(),
        other=_sums(other, starts)[::-1].tolist(),
        threshold=None if calibration is None else 1.0 - calibration.overall.threshold,
        note=_note(count_KB, images.persons, len(pids), len(images.cameras), calibration),
    )


def _note(count_KB: IntArray, shown: int, persons: int, cameras: int, calibration: Calibration | None) -> str:
    other, same = (int(counts.sum()) for counts in count_KB)
    text = f"Distances of {same} pairs of one person and {other} of two"
    text += ", each of two cameras" if cameras > 1 else ""
    text += f", of {shown} of {persons} persons." if shown < persons else "."
    if calibration is None:
        return f"{text} Not calibrated: maskreid calibrate finds a threshold."
    edge = round((calibration.overall.threshold + 1.0) * (BINS / 2))
    false, true = (float(counts[edge:].sum() / counts.sum()) for counts in count_KB)
    return (
        f"{text} Calibrated for {100 * calibration.wanted:g} % false matches: two images within "
        f"{1 - calibration.overall.threshold:.4f} match; here {100 * false:.3g} % of other and "
        f"{100 * true:.3g} % of the same persons do."
    )


def _shares(count_B: IntArray) -> NDArray[np.float64]:
    return count_B / max(1, int(count_B.sum()))


def _sums(share_B: NDArray[np.float64], starts: IntArray) -> NDArray[np.float64]:
    return np.add.reduceat(share_B, starts)


def embedding_map(features_ND: Rows, pids_N: IntArray, names: list[str], source: SourceNames) -> EmbeddingMap:
    """The images of the persons with most, by letter, and evenly spaced others up to MOST_POINTS. The same
    rows give the same picture."""
    pids, counts = np.unique(pids_N[pids_N > 0], return_counts=True)
    chosen = pids[np.argsort(-counts, kind="stable")][: len(LETTERS)]
    named = np.flatnonzero(np.isin(pids_N, chosen))[:MOST_POINTS]
    others = np.setdiff1d(np.arange(len(pids_N)), named)
    room = min(len(others), MOST_POINTS - len(named))
    others = others[np.linspace(0, max(0, len(others) - 1), room).astype(np.int64)]
    shown = np.concatenate([named, others])
    points, explained = principal_components(features_ND[shown])
    where = {int(row): (float(x), float(y)) for row, (x, y) in zip(shown, points, strict=True)}
    persons = {
        source.person(pid): [(*where[int(row)], names[int(row)]) for row in named[pids_N[named] == pid]]
        for pid in chosen.tolist()
    }
    count = "all" if len(shown) == len(pids_N) else f"{len(shown)} of {len(pids_N)}"
    return EmbeddingMap(
        [where[int(row)] for row in others],
        persons,
        f"{count} images of query and gallery; the two components hold {100 * explained:.0f} % of their "
        f"variance. Letters: the persons with most images.",
    )


def principal_components(rows_ND: Rows) -> tuple[NDArray[np.float64], float]:
    """(N, 2) coordinates and their part of the variance; a component's largest entry is positive."""
    centred = rows_ND.astype(np.float64)
    centred -= centred.mean(axis=0)
    left, sizes, right = np.linalg.svd(centred, full_matrices=False)
    found = np.zeros((len(centred), 2))
    for number in range(min(2, len(sizes))):
        sign = np.sign(right[number, np.abs(right[number]).argmax()]) or 1.0
        found[:, number] = sign * sizes[number] * left[:, number]
    total = float((sizes**2).sum())
    return found, float((sizes[:2] ** 2).sum() / total) if total else 1.0
