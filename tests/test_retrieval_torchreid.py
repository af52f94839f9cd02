"""Where no two distances are tied, Torchreid's own evaluation prints our figures: all kept ranks of the
curve, and mAP. `make test-adapters` puts Torchreid into an environment of its own."""

import importlib
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from libraries import package
from maskreid_dist.bench.retrieval_peers import torchreid_module
from maskreid_dist.retrieval import evaluate_retrieval

Array = NDArray[Any]
JUNK = -1


@pytest.fixture(scope="module")
def torchreid() -> ModuleType:
    package("torchreid")
    return importlib.import_module(torchreid_module())


def distances(query: Array, gallery: Array, metric: str) -> Array:
    """(Q, G) in float64."""
    q, g = query.astype(np.float64), gallery.astype(np.float64)
    if metric == "euclidean":
        return np.asarray(np.sqrt(((q[:, None] - g[None]) ** 2).sum(2)))
    return np.asarray(
        1 - q @ g.T / np.linalg.norm(q, axis=1)[:, None] / np.linalg.norm(g, axis=1)[None],
    )


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize(("seed", "cameras", "identities"), [(0, 2, 10), (1, 4, 25), (2, 8, 60), (3, 6, 4)])
def test_torchreid_prints_our_figures(
    torchreid: ModuleType, seed: int, cameras: int, identities: int, metric: Any
) -> None:
    """Junk of a query's own camera is left out there too; that of pid -1 Torchreid never reads from a data
    set, so only we are given it. Some queries have no match."""
    rng = np.random.default_rng(seed)
    pids = rng.integers(1, identities + 1, 480)
    camids = rng.integers(1, cameras + 1, 480)
    rows = rng.standard_normal((480, 24)) + rng.standard_normal((identities + 1, 24))[pids]
    rows = rows.astype(np.float32)
    pids[470:] = JUNK
    pids[:3] = identities + 7  # no image of the gallery
    q, g = slice(0, 60), slice(60, None)
    kept = pids[g] != JUNK
    distance_QG = distances(rows[q], rows[g][kept], metric)
    assert np.diff(np.sort(distance_QG, axis=1)).min() > 1e-12, "tied: another seed"

    own = (pids[q][:, None] == pids[g][kept]) & (camids[q][:, None] == camids[g][kept])
    ranks = int(kept.sum() - own.sum(axis=1).max())  # that every list has: Torchreid fills none up
    labels = (pids[q], pids[g][kept], camids[q], camids[g][kept])
    cmc, mean_ap = torchreid.evaluate_rank(distance_QG, *labels, max_rank=ranks, use_cython=False)
    ours = evaluate_retrieval(
        rows[q], pids[q], camids[q], rows[g], pids[g], camids[g], metric=metric, max_rank=ranks
    )

    assert own.any() and ours.skipped_queries >= 3 and 0.01 < ours.mAP < 0.99
    assert np.abs(ours.cmc - cmc).max() <= 1e-6 and abs(ours.mAP - mean_ap) <= 1e-6
    printed = [f"{x:.1%}" for x in (mean_ap, *cmc)]  # as its engine prints them
    assert [f"{x:.1%}" for x in (ours.mAP, *ours.cmc)] == printed
