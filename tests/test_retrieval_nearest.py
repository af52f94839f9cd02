"""The exact k nearest, against a sort of all distances: ties, copies, near copies, tiles, ranks; query
expansion."""

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gloo import run_ranks
from maskreid_dist.retrieval import expand_queries, nearest
from maskreid_dist.retrieval.distance import Metric, block_distances
from maskreid_dist.retrieval.inputs import image_set
from maskreid_dist.retrieval.nearest import nearest_and_largest, nearest_images
from maskreid_dist.retrieval.tile import LARGEST_TILE

Array = NDArray[Any]


def whole(query: Array, gallery: Array, metric: Metric) -> NDArray[np.float64]:
    """Distances of all pairs in one float64 piece."""
    q, g = query.astype(np.float64), gallery.astype(np.float64)
    distance: NDArray[np.float64]
    if metric == "euclidean":
        distance = np.sqrt(np.square(q[:, None] - g[None]).sum(axis=2))
        return distance
    norms = [np.maximum(np.linalg.norm(rows, axis=1), 1e-12) for rows in (q, g)]
    distance = 1.0 - (q / norms[0][:, None]) @ (g / norms[1][:, None]).T
    return distance


def check(query: Array, gallery: Array, k: int, metric: Metric) -> None:
    found = nearest(query, gallery, k, metric=metric)
    distance = whole(query, gallery, metric)
    width = min(k, len(gallery))
    assert found.index_QK.shape == found.distance_QK.shape == (len(query), width)
    assert all(len(set(row)) == width for row in found.index_QK.tolist())
    at = np.take_along_axis(distance, found.index_QK, axis=1)
    assert np.allclose(found.distance_QK, at, rtol=1e-12, atol=1e-7 if metric == "euclidean" else 1e-14)
    expected = np.sort(distance, axis=1)[:, :width]
    assert np.allclose(at, expected, rtol=1e-12, atol=1e-7 if metric == "euclidean" else 1e-14)


@settings(max_examples=60)
@given(
    queries=st.integers(1, 150),
    images=st.integers(1, 300),
    dimensions=st.integers(1, 20),
    k=st.integers(1, 40),
    metric=st.sampled_from(["cosine", "euclidean"]),
    spread=st.sampled_from([1.0, 1e-4, 1e-9]),
    seed=st.integers(0, 99),
)
def test_any_shape(
    queries: int, images: int, dimensions: int, k: int, metric: Metric, spread: float, seed: int
) -> None:
    """A small spread: all rows alike, so that float32 leaves nearly everything open."""
    rng = np.random.default_rng(seed)
    rows = 1.0 + spread * rng.standard_normal((queries + images, dimensions))
    check(rows[:queries], rows[queries:], k, metric)


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> int:
    module = importlib.import_module("maskreid_dist.retrieval.nearest")  # the package has its function
    monkeypatch.setattr(module, "LARGEST_TILE", 1000)
    return 1000


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_several_tiles_and_blocks(metric: Metric, small_tiles: int) -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((2 * small_tiles + 400, 12)).astype(np.float32)
    check(rows[:150], rows[150:], 21, metric)


def test_ties_are_ordered_by_gallery_index() -> None:
    rng = np.random.default_rng(1)
    rows = rng.integers(-2, 3, (LARGEST_TILE + 900, 3)).astype(
        np.float32
    )  # many copies, whole numbers: exact
    query, gallery = rows[:140], rows[140:]
    found = nearest(query, gallery, 30, metric="euclidean")
    expected = np.argsort(whole(query, gallery, "euclidean"), axis=1, kind="stable")[:, :30]
    assert np.array_equal(found.index_QK, expected)
    same = nearest(query[:2], np.repeat(gallery[:1], 10_000, axis=0), 7)
    assert np.array_equal(same.index_QK, np.tile(np.arange(7), (2, 1)))


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("copies", [1, 9])
def test_rows_one_ulp_apart(monkeypatch: pytest.MonkeyPatch, metric: Metric, copies: int) -> None:
    """All are candidates, and mostly tied: whole blocks of exact distances, two tiles, merged copies too."""
    rng = np.random.default_rng(6)
    rows = (1 + 2.0**-23 * rng.integers(0, 2, (60, 40))).astype(np.float32)
    gallery = rows[rng.permutation(np.repeat(np.arange(60), copies))]
    ids = np.zeros(len(gallery), np.int64)
    images = image_set("query", gallery, ids, ids, metric=metric)
    sides = images.features, images.norms
    exact = block_distances(*sides, *sides, metric).numpy()
    module = importlib.import_module("maskreid_dist.retrieval.nearest")  # the package has its function
    monkeypatch.setattr(module, "LARGEST_TILE", 50 * copies)
    for k in (1, 3, 55 * copies, 70 * copies):
        index, largest = nearest_and_largest(images, images, k, metric)
        assert np.array_equal(index, exact.argsort(axis=1, kind="stable")[:, :k])
        assert np.array_equal(largest, exact.max(axis=1))


@pytest.mark.parametrize("spread", [1.0, 1e-4])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_largest_distances_are_exact(metric: Metric, spread: float, small_tiles: int) -> None:
    """Over two tiles; a small spread: float32 leaves all rows open."""
    rng = np.random.default_rng(2)
    rows = 1.0 + spread * rng.standard_normal((small_tiles + 300, 3))
    ids = np.zeros(len(rows), np.int64)
    images = image_set("query", rows, ids, ids, metric=metric)
    index, found = nearest_and_largest(images, images, 4, metric)
    some = slice(small_tiles - 100, small_tiles + 100)
    mine = images.features[some], images.norms[some]
    whole_rows = block_distances(*mine, images.features, images.norms, metric)  # the definition, bit for bit
    assert np.array_equal(found[some], whole_rows.amax(dim=1).numpy())
    alone = nearest_images(images, images, 4, metric).index_QK
    assert np.array_equal(index, alone)


def _rank_part(rank: int, world: int, parts: list[tuple[int, int]], results: Path) -> None:
    rows = torch.from_numpy(np.random.default_rng(3).integers(-3, 4, (200, 3)).astype(np.float32))
    gallery = rows[50:][slice(*parts[rank])]
    found = nearest(rows[:50], gallery, 12, group=dist.group.WORLD)
    torch.save([found.index_QK.tolist(), found.distance_QK.tolist()], results / f"{rank}.pt")


def test_a_gallery_over_ranks_gives_the_lists_of_one_process(tmp_path: Path) -> None:
    parts = [(0, 5), (5, 5), (5, 150)]
    run_ranks(_rank_part, 3, tmp_path, parts, tmp_path)
    rows = np.random.default_rng(3).integers(-3, 4, (200, 3)).astype(np.float32)
    expected = nearest(rows[:50], rows[50:], 12)
    for rank in range(3):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found == [expected.index_QK.tolist(), expected.distance_QK.tolist()]


@pytest.mark.parametrize(
    ("query", "k", "word"),
    [(np.ones((2, 4)), 3, "columns"), (np.ones((2, 3)), 0, "k"), (np.full((2, 3), np.nan), 3, "NaN")],
)
def test_bad_input_is_one_line(query: Array, k: int, word: str) -> None:
    with pytest.raises(ValueError, match=word) as caught:
        nearest(query, np.ones((5, 3)), k)
    assert "\n" not in str(caught.value)


def test_expanded_queries_are_the_weighted_mean() -> None:
    rng = np.random.default_rng(4)
    query, gallery = rng.standard_normal((300, 6)), rng.standard_normal((40, 6))
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (query, gallery)]
    similarity = unit[0] @ unit[1].T
    for k, alpha in ((5, 3.0), (1, 0.0), (100, 1.0)):
        expected = []
        for q in range(len(query)):
            first = np.argsort(-similarity[q], kind="stable")[:k]
            weights = np.maximum(similarity[q, first], 0.0) ** alpha
            total = unit[0][q] + (weights[:, None] * unit[1][first]).sum(axis=0)
            expected.append(total / np.linalg.norm(total))
        assert np.allclose(expand_queries(query, gallery, k=k, alpha=alpha), expected, atol=1e-6)
