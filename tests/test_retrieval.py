"""Retrieval evaluation against a slow loop written from the protocol's definition, and its properties."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gloo import run_ranks
from maskreid_dist.retrieval import RetrievalError, evaluate_retrieval, rank_list
from maskreid_dist.retrieval.distance import Metric
from maskreid_dist.retrieval.inputs import image_set

Array = NDArray[Any]


def slow(
    distance: Array, q_pids: Array, q_cams: Array, g_pids: Array, g_cams: Array, max_rank: int = 50
) -> tuple[Array, float, float, float, int]:
    """Torchreid's documented arithmetic: float32 sums of CMC rows over valid queries, AP in float64."""
    max_rank = min(max_rank, len(g_pids))
    rows: list[Array] = []
    hits: list[float] = []
    trapezoid: list[float] = []
    inp: list[float] = []
    for q in range(len(q_pids)):
        ranked = []
        for g in sorted(range(len(g_pids)), key=lambda g: (distance[q, g], g)):
            if g_pids[g] == -1 or (g_pids[g] == q_pids[q] and g_cams[g] == q_cams[q]):
                continue
            ranked.append(int(g_pids[g] == q_pids[q]))
        if not any(ranked):
            continue
        row = np.minimum(np.cumsum(ranked), 1)
        rows.append(np.pad(row, (0, max(0, max_rank - len(row))), mode="edge")[:max_rank].astype(np.float32))
        places = [i + 1 for i, hit in enumerate(ranked) if hit]
        along = np.asarray([seen / (place + 1) for place, seen in enumerate(np.cumsum(ranked))]) * np.asarray(
            ranked
        )
        # Summed over the whole list: the order of a sum shows in its last bit.
        hits.append(along.sum() / len(places))
        precision = along[np.asarray(places) - 1]
        before = [1.0 if place == 1 else i / (place - 1) for i, place in enumerate(places)]
        trapezoid.append(mean([(b + p) / 2 for b, p in zip(before, precision, strict=True)]))
        inp.append(len(places) / places[-1])
    cmc = np.asarray(rows, np.float32).sum(axis=0) / len(rows)
    return cmc, mean(hits), mean(trapezoid), mean(inp), len(rows)


def mean(values: list[float]) -> float:
    return float(np.mean(values))


def problem(
    seed: int, queries: int = 40, gallery: int = 150, identities: int = 12, cameras: int = 4, dims: int = 16
) -> tuple[Array, Array, Array, Array, Array, Array]:
    """Queries and gallery, in the order of evaluate_retrieval's arguments."""
    generator = np.random.default_rng(seed)
    q, g = generator.normal(size=(queries, dims)), generator.normal(size=(gallery, dims))
    q_pids, g_pids = generator.integers(1, identities, queries), generator.integers(-1, identities, gallery)
    return (
        q,
        q_pids,
        generator.integers(1, cameras, queries),
        g,
        g_pids,
        generator.integers(1, cameras, gallery),
    )


def cosine_distance(q: Array, g: Array) -> Array:
    q, g = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (q, g))
    return np.asarray(1 - q @ g.T)


def euclidean_distance(q: Array, g: Array) -> Array:
    return np.asarray(np.sqrt(((q[:, None] - g[None]) ** 2).sum(axis=2)))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    ("metric", "distance"), [("cosine", cosine_distance), ("euclidean", euclidean_distance)]
)
def test_equals_the_slow_loop_exactly(
    seed: int, metric: Metric, distance: Callable[[Array, Array], Array]
) -> None:
    q, qp, qc, g, gp, gc = data = problem(seed, gallery=(30, 150)[seed % 2])
    cmc, hits, trapezoid, inp, valid = slow(distance(q, g), qp, qc, gp, gc)
    result = evaluate_retrieval(*data, metric=metric)
    assert np.array_equal(result.cmc, cmc)
    assert result.cmc.dtype == np.float32
    assert result.mAP == hits == result.mAP_hits
    assert result.mAP_trapezoid == pytest.approx(trapezoid, abs=1e-14)
    assert result.mINP == pytest.approx(inp, abs=1e-14)
    assert (result.valid_queries, result.skipped_queries) == (valid, len(q) - valid)
    assert evaluate_retrieval(*data, metric=metric, ap="trapezoid").mAP == result.mAP_trapezoid


def test_hits_at_ranks_1_3_6() -> None:
    angles = np.array([0.01, 0.02, 0.03, 0.04, 0.05, 0.06])
    gallery = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    pids = np.array([7, 1, 7, 1, 1, 7])
    ones = np.ones(6, np.int64)
    result = evaluate_retrieval(np.array([[1.0, 0.0]]), np.array([7]), np.array([2]), gallery, pids, ones)
    assert result.mAP_hits == pytest.approx((1 + 2 / 3 + 3 / 6) / 3)
    assert round(result.mAP_hits, 4) == 0.7222
    assert round(result.mAP_trapezoid, 4) == 0.6778
    assert result.mINP == 0.5


def test_ties_are_ordered_by_gallery_index_across_tiles() -> None:
    vector = np.array([[0.3, 0.4, 0.5]])
    count = 20_000  # more than two tiles of equal distances
    pids = np.ones(count, np.int64)
    for right in (0, 8191, 8192, count - 1):
        pids[:] = 1
        pids[right] = 7
        result = evaluate_retrieval(
            vector, [7], [1], np.repeat(vector, count, axis=0), pids, np.full(count, 2)
        )
        assert result.mAP_hits == 1 / (right + 1)


def test_tied_distances_equal_the_slow_loop() -> None:
    generator = np.random.default_rng(0)
    g = generator.integers(0, 3, (200, 3)).astype(float) + 1
    q = generator.integers(0, 3, (30, 3)).astype(float) + 1
    qp, gp = generator.integers(1, 6, 30), generator.integers(-1, 6, 200)
    qc, gc = generator.integers(1, 3, 30), generator.integers(1, 3, 200)
    cmc, hits, *_ = slow(((q[:, None] - g[None]) ** 2).sum(axis=2), qp, qc, gp, gc)  # small integers: exact
    result = evaluate_retrieval(q, qp, qc, g, gp, gc, metric="euclidean")
    assert np.array_equal(result.cmc, cmc)
    assert result.mAP == hits


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_order_of_the_gallery_and_junk_do_not_matter(seed: int) -> None:
    q, qp, qc, g, gp, gc = problem(seed)
    result = evaluate_retrieval(q, qp, qc, g, gp, gc)
    order = np.random.default_rng(seed).permutation(len(g))
    shuffled = evaluate_retrieval(q, qp, qc, g[order], gp[order], gc[order])
    kept = gp != -1
    clean = evaluate_retrieval(q, qp, qc, g[kept], gp[kept], gc[kept])
    for other in (shuffled, clean):
        assert np.array_equal(other.average_precision, result.average_precision, equal_nan=True)
        assert other.mINP == result.mINP
    assert result.mAP_trapezoid <= result.mAP_hits
    assert np.all(np.diff(result.cmc) >= 0)


def _rank_part(rank: int, world: int, q_parts: list[tuple[int, int]], results: Path) -> None:
    q, qp, qc, g, gp, gc = problem(3)
    part = slice(*q_parts[rank])
    found = evaluate_retrieval(q, qp, qc, g[part], gp[part], gc[part], group=dist.group.WORLD)
    torch.save([found.cmc.tolist(), found.mAP, found.mINP, found.skipped_queries], results / f"{rank}.pt")


@pytest.mark.parametrize(
    "parts",
    [
        [(0, 100), (100, 100), (100, 150)],
        [(0, 7), (7, 80), (80, 80), (80, 150)],
    ],  # unequal, one of them empty
    ids=["3 ranks", "4 ranks"],
)
def test_a_gallery_over_ranks_equals_one_process(tmp_path: Path, parts: list[tuple[int, int]]) -> None:
    run_ranks(_rank_part, len(parts), tmp_path, parts, tmp_path)
    whole = evaluate_retrieval(*problem(3))
    for rank in range(len(parts)):
        found = torch.load(Path(tmp_path) / f"{rank}.pt", weights_only=True)
        assert found == [whole.cmc.tolist(), whole.mAP, whole.mINP, whole.skipped_queries]


def test_a_single_camera_says_why() -> None:
    q, qp, _, g, gp, _ = problem(1)
    counted = rf"all {len(q)} queries and all {len(g)} gallery images come from camera 1$"
    with pytest.raises(RetrievalError, match=counted):
        evaluate_retrieval(q, qp, np.ones(len(q), int), g, gp, np.ones(len(g), int))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda a: a.__setitem__(0, a[0][:, :5]), "16"),
        (lambda a: a.__setitem__(1, a[1][:-1]), "pids"),
        (lambda a: a[3].__setitem__((2, 1), np.nan), "row 2|finite|nan|NaN"),
    ],
)
def test_bad_input_is_one_line(change: Callable[[list[Any]], object], word: str) -> None:
    arguments = list(problem(0))
    change(arguments)
    with pytest.raises(ValueError, match=word) as caught:
        evaluate_retrieval(*arguments)
    assert "\n" not in str(caught.value)


def test_ranked_lists_are_the_order_that_is_evaluated() -> None:
    q, qp, qc, g, gp, gc = data = problem(2)
    distance = cosine_distance(q, g)
    for found in rank_list(*data, queries=[0, 7, 20], top=12):
        row = found.query
        listed = [
            i
            for i in sorted(range(len(g)), key=lambda i: (distance[row, i], i))
            if gp[i] != -1 and not (gp[i] == qp[row] and gc[i] == qc[row])
        ]
        assert found.gallery_index.tolist() == listed[:12]
        assert found.distance == pytest.approx(distance[row, listed[:12]])
        assert found.correct.tolist() == [bool(gp[i] == qp[row]) for i in listed[:12]]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_read_only_gallery_in_a_file_is_read_where_it_lies(
    tmp_path: Path, dtype: type, order: Literal["C", "F"]
) -> None:
    rng = np.random.default_rng(0)
    query: Array = rng.normal(size=(6, 8)).astype(dtype)
    gallery: Array = rng.normal(size=(40, 8)).astype(dtype)
    pids, camids = np.arange(46) % 4, np.arange(46) % 3
    labels: dict[str, Any] = {"query_pids": pids[:6], "query_camids": camids[:6]}
    labels |= {"gallery_pids": pids[6:], "gallery_camids": camids[6:]}
    expected = evaluate_retrieval(query, gallery=gallery, **labels)
    path = tmp_path / "gallery.npy"
    np.save(path, np.asarray(gallery, order=order))
    before = path.read_bytes()
    mapped = np.load(path, mmap_mode="r")
    torch.set_warn_always(True)  # else torch says it once a process
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = evaluate_retrieval(query, gallery=mapped, **labels)
            rank_list(query, gallery=mapped, **labels, queries=[0])
            images = image_set("gallery", mapped, pids[6:], camids[6:], metric="cosine")
    finally:
        torch.set_warn_always(False)
    assert images.features.data_ptr() == mapped.ctypes.data and path.read_bytes() == before
    for name, value in vars(expected).items():
        np.testing.assert_array_equal(getattr(found, name), value)
    backwards = evaluate_retrieval(query[:, ::-1], gallery=mapped[:, ::-1], **labels)
    np.testing.assert_allclose(backwards.mAP, expected.mAP)


def test_a_rank_beyond_the_curve_is_refused_not_guessed() -> None:
    features = np.eye(9, dtype=np.float32) + np.arange(9, dtype=np.float32)
    gallery = (features, np.arange(9), np.ones(9, dtype=int))
    query = (features[:1], np.array([0]), np.array([0]))
    short = evaluate_retrieval(*query, *gallery, max_rank=5)
    assert short.rank(5) == evaluate_retrieval(*query, *gallery).rank(5)
    with pytest.raises(ValueError, match="rank 10: the curve ends at rank 5; evaluate with max_rank=10"):
        short.rank(10)
    with pytest.raises(ValueError, match="max_rank=10"):
        short.metrics()
    assert evaluate_retrieval(*query, *gallery).rank(10) == 1.0  # of nine images: the last rank's
