"""The ROC curve over pairs, against a loop over all pairs and thresholds."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from maskreid_dist.retrieval.verification import count_similarities, named_images, roc_curve
from test_calibration import people


def every_point(rows: NDArray[np.floating], pids: list[int], camids: list[int]) -> list[tuple[float, float]]:
    """False and true match rate at each similarity that occurs, from the greatest down, and above all."""
    genuine: list[float] = []
    impostor: list[float] = []
    several = len({cam for pid, cam in zip(pids, camids, strict=True) if pid > 0}) > 1
    for i, j in combinations(range(len(pids)), 2):
        if min(pids[i], pids[j]) > 0 and (not several or camids[i] != camids[j]):
            (genuine if pids[i] == pids[j] else impostor).append(float(rows[i] @ rows[j]))
    points = [(0.0, 0.0)]
    for threshold in sorted({*genuine, *impostor}, reverse=True):
        rates = (sum(one >= threshold for one in kind) / len(kind) for kind in (impostor, genuine))
        points.append((next(rates), next(rates)))
    return points


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), cameras=st.integers(1, 3), most=st.sampled_from([2, 7, 200]))
def test_the_curve_is_the_loops(seed: int, cameras: int, most: int) -> None:
    """Rows of 16 signs: similarities are multiples of 1/8, exact in float32, and often tied."""
    rng = np.random.default_rng(seed)
    pids = rng.integers(-1, 6, 40)
    camids = rng.integers(1, cameras + 1, 40)
    pids[:4], camids[:4] = [1, 1, 2, 2], [1, cameras, 1, cameras]
    signs = np.where(rng.random((7, 16)) < 0.5, 1.0, -1.0)[pids] * np.where(rng.random((40, 16)) < 0.8, 1, -1)
    points = every_point(signs / 4, pids.tolist(), camids.tolist())
    found = count_similarities(named_images(signs, pids, camids))
    false, true = roc_curve(found, most)
    impostors = int(found.impostor_GB[0].sum())
    wanted = [0.0, *np.geomspace(1 / impostors, 1.0, most).tolist()]
    # By whole pairs: a rate is compared as the count that it is.
    kept = {max(one for one in points if round(one[0] * impostors) <= w * impostors + 1e-6) for w in wanted}
    assert np.stack([false, true], axis=1) == pytest.approx(np.array(sorted(kept)), abs=1e-12)
    assert (false[0], false[-1], true[-1]) == (0, 1, 1) and len(false) <= most + 1


def test_it_lies_within_a_bin_of_the_exact_curve() -> None:
    rows, pids, camids = people(30, 5, each=4, cameras=2)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    false, true = roc_curve(count_similarities(named_images(rows, pids, camids)))
    points = np.array(every_point(unit.astype(np.float64), pids.tolist(), camids.tolist()))
    for a, b in zip(false, true, strict=True):
        assert np.abs(points - [a, b]).max(axis=1).min() < 0.003  # a few pairs of a bin, of some 1,700
    # Few thresholds tell the area that all do.
    assert np.trapezoid(true, false) == pytest.approx(np.trapezoid(points[:, 1], points[:, 0]), abs=0.005)
