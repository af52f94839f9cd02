"""Re-ranking as a GPU does it, here on a CPU, beside the definition and the path of a CPU."""

from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from maskreid_dist.retrieval import (
    ReRanking,
    evaluate_reranked,
    nearest_device,
    reranking,
    reranking_device,
)
from maskreid_dist.retrieval.distance import DOUBLE, Metric, place_bound, place_line, tile_scale
from maskreid_dist.retrieval.inputs import both_sides, unlabelled
from maskreid_dist.retrieval.nearest import nearest_and_largest
from maskreid_dist.retrieval.pairs import GalleryIndex
from maskreid_dist.retrieval.reranking_device import final_blocks, good_ranks
from test_retrieval_reranking import Array, dense, people
from test_retrieval_reranking import sparse as on_host

METRICS: tuple[Metric, ...] = ("cosine", "euclidean")


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that small sets take several of each."""
    monkeypatch.setattr(nearest_device, "_PRODUCT_ELEMENTS", 128 * 20)
    for name, value in {"_MEMBERS": 20000, "_ENTRIES": 3000, "_FINAL": 1000, "_APART": 3}.items():
        monkeypatch.setattr(reranking_device, name, value)


def final(q: Array, g: Array, options: ReRanking, metric: Metric) -> NDArray[np.float64]:
    ids = [np.zeros(len(rows), np.int64) for rows in (q, g)]
    sides = both_sides(q, ids[0], ids[0], g, ids[1], ids[1], metric=metric)
    return np.concatenate([block.numpy().copy() for _, block in final_blocks(*sides, options, metric)])


def errors(q: Array, g: Array, options: ReRanking, metric: Metric) -> NDArray[np.float64]:
    """What final distances may differ by, as the module says, doubled, as the host errs too: (Q, 1)."""
    ids = [np.zeros(len(rows), np.int64) for rows in (q, g)]
    images = unlabelled(*both_sides(q, ids[0], ids[0], g, ids[1], ids[1], metric=metric))
    _, largest = nearest_and_largest(images, images, 1, metric)
    _, unit = place_line(images.norms, metric, tile_scale(images.norms, images.norms, metric))
    noise = 4 * options.weight * place_bound(q.shape[1], DOUBLE) * unit.numpy()
    found: NDArray[np.float64] = 1e-12 + noise / np.maximum(largest, 1e-300)
    return found[: len(q), None]


def alike(q: int, images: int, seed: int, kind: str) -> tuple[Array, ...]:
    """As `people`, some or all images copies of others."""
    qf, qp, qc, gf, gp, gc = people(q, images, seed)
    rng = np.random.default_rng(seed)
    if kind == "copies":
        gf = gf[rng.integers(0, max(1, images // 6), images)]
    if kind == "one":
        qf, gf = np.ones_like(qf), np.ones_like(gf)
    return qf, qp, qc, gf, gp, gc


@pytest.mark.usefixtures("small_pieces")
@settings(max_examples=15)
@given(
    queries=st.integers(1, 30),
    images=st.integers(1, 100),
    k1=st.integers(1, 30),
    k2=st.integers(1, 9),
    weight=st.sampled_from([0.0, 0.3, 1.0]),
    power=st.sampled_from(["squared", "fourth"]),
    metric=st.sampled_from(["cosine", "euclidean"]),
    kind=st.sampled_from(["people", "people", "copies", "one"]),
    seed=st.integers(0, 99),
)
def test_distances_and_ranks_are_those_of_the_definition(
    queries: int,
    images: int,
    k1: int,
    k2: int,
    weight: float,
    power: Literal["squared", "fourth"],
    metric: Metric,
    kind: str,
    seed: int,
) -> None:
    q, qp, qc, g, gp, gc = alike(queries, images, seed, kind)
    options = ReRanking(k1, k2, weight, power)
    host_QG = on_host(q, g, options, metric)
    error_Q1 = errors(q, g, options, metric)
    assert (np.abs(final(q, g, options, metric) - host_QG) <= error_Q1).all()
    if kind == "people" and images < 40:  # rounding orders copies in the definition's matrix
        assert np.abs(final(q, g, options, metric) - dense(q, g, options, metric)).max() < 1e-9
    ranks, listed = good_ranks(
        *both_sides(q, qp, qc, g, gp, gc, metric=metric), GalleryIndex.build(gp, gc), options, metric
    )
    for i, (rank_R, length) in enumerate(zip(ranks, listed, strict=True)):
        kept = np.flatnonzero((gp != -1) & ~((gp == qp[i]) & (gc == qc[i])))
        good = kept[gp[kept] == qp[i]]
        assert length == len(kept) and len(rank_R) == len(good)
        d_K = host_QG[i, kept]
        low, high = (
            np.sort([1 + np.count_nonzero(d_K < host_QG[i, j] + side * 2 * error_Q1[i]) for j in good])
            for side in (-1, 1)
        )
        assert (low <= rank_R).all() and (rank_R < high).all()
        if kind == "one" and weight == 1.0:  # all are alike: by index
            assert np.array_equal(rank_R, np.searchsorted(kept, good) + 1)


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("kind", ["people", "copies", "one", "ulp"])
@pytest.mark.parametrize("metric", METRICS)
def test_neighbours_and_largest_distances_have_the_same_bits(kind: str, metric: Metric) -> None:
    q, qp, qc, g, gp, gc = alike(20, 280, 3, kind)
    if kind == "ulp":
        g = np.nextafter(np.ones_like(g), np.where(g > 0, 2, 1).astype(g.dtype))
    images = unlabelled(*both_sides(q, qp, qc, g, gp, gc, metric=metric))
    index, largest = nearest_device.nearest_and_largest_on_device(images, 21, metric)
    expected_index, expected_largest = nearest_and_largest(images, images, 21, metric)
    assert np.array_equal(index.numpy(), expected_index)
    assert np.array_equal(largest.numpy(), expected_largest)


def test_lists_of_distinct_images_are_proven(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*_: object) -> None:
        raise AssertionError("a list was not proven")

    monkeypatch.setattr(nearest_device, "nearest_and_largest", asked)
    for metric in METRICS:
        images = unlabelled(*both_sides(*people(30, 400, 4), metric=metric))
        nearest_device.nearest_and_largest_on_device(images, 21, metric)


def test_figures_through_the_public_function(monkeypatch: pytest.MonkeyPatch) -> None:
    q, qp, qc, g, gp, gc = people(60, 340, 2, noise=0.8)
    host = evaluate_reranked(q, qp, qc, g, gp, gc)
    monkeypatch.setattr(reranking, "stays_on_device", lambda *_: True)
    monkeypatch.setattr(reranking, "_ranked", None)  # the host's path
    found = evaluate_reranked(q, qp, qc, g, gp, gc)
    assert np.array_equal(found.average_precision, host.average_precision, equal_nan=True)
    assert np.array_equal(found.first_rank, host.first_rank) and found.skipped_queries == host.skipped_queries
    again = evaluate_reranked(torch.from_numpy(q), qp, qc, torch.from_numpy(g), gp, gc)
    assert np.array_equal(again.average_precision, found.average_precision, equal_nan=True)
