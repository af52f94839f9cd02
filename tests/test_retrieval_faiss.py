"""The nearest by FAISS are ours, bit for bit, ties too; approximate lists say so. `make test-adapters` puts
FAISS into an environment of its own; without it one line says how to get it."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from libraries import package
from maskreid_dist.errors import UserError
from maskreid_dist.gallery import Gallery
from maskreid_dist.gallery.store import Model
from maskreid_dist.retrieval import ReRanking, evaluate_reranked, faiss_lists, nearest
from maskreid_dist.retrieval.distance import Metric
from maskreid_dist.retrieval.inputs import image_set
from maskreid_dist.retrieval.nearest import nearest_and_largest
from program import run
from test_retrieval_reranking import people

KINDS = ("apart", "whole numbers", "one ulp apart", "large and small")


def features(kind: str) -> tuple[Any, Any]:
    """Queries and a gallery of two of FAISS's tiles."""
    rng = np.random.default_rng(7)
    rows = rng.standard_normal((700, 24)).astype(np.float32)
    if kind == "whole numbers":
        rows = np.round(rows[:, :3])
    if kind == "one ulp apart":
        rows = (1 + 2.0**-23 * rng.integers(0, 2, (700, 24))).astype(np.float32)
    if kind == "large and small":
        rows *= np.float32(10) ** rng.integers(-6, 7, (700, 1))
    return rows[:60], rows[60:]


@pytest.fixture
def proven(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The share of proven lists of each call."""
    package("faiss")
    monkeypatch.setattr(faiss_lists, "_TILE", 400)
    monkeypatch.setattr(faiss_lists, "_QUERIES", 25)
    kept: list[float] = []
    found = faiss_lists.faiss_lists

    def noted(*arguments: Any, **options: Any) -> faiss_lists.Found:
        lists = found(*arguments, **options)
        kept.append(float(lists.proven_Q.mean()))
        return lists

    monkeypatch.setattr(sys.modules["maskreid_dist.retrieval.nearest"], "faiss_lists", noted)
    return kept


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_lists_are_ours(kind: str, metric: Metric, proven: list[float]) -> None:
    query, gallery = features(kind)
    for k in (1, 12, 640, 700):
        ours, theirs = (nearest(query, gallery, k, metric=metric, index=name) for name in ("exact", "faiss"))
        assert np.array_equal(ours.index_QK, theirs.index_QK)
        assert np.array_equal(ours.distance_QK, theirs.distance_QK)
    assert proven[2:] == [1.0, 1.0]  # all images are candidates
    assert proven[0] == 1.0 or kind != "apart"  # else our own tiles would have made the lists
    assert proven[0] < 1.0 or kind not in ("whole numbers", "one ulp apart")
    ids = np.zeros(len(gallery), np.int64)
    ids[::7] = -1  # junk, such as those taken out of a gallery
    asked, images = (
        image_set("query", x, ids[: len(x)], ids[: len(x)], metric=metric) for x in (query, gallery)
    )
    for one, other in zip(
        nearest_and_largest(asked, images, 9, metric),
        nearest_and_largest(asked, images, 9, metric, "faiss"),
        strict=True,
    ):
        assert np.array_equal(one, other)


def test_a_gallery_and_re_ranking(proven: list[float], tmp_path: Path) -> None:
    query, rows = features("apart")
    with Gallery.create(tmp_path / "gallery", 24, Model("m", 1, "0")) as gallery:
        gallery.append(rows, [str(n) for n in range(640)], np.arange(640) // 4, np.ones(640, int))
        gallery.forget(pids=range(0, 160, 3))
        ours, theirs = (gallery.search(query, 5, index=name) for name in ("exact", "faiss"))
    assert np.array_equal(ours.index_QK, theirs.index_QK) and proven == [1.0]
    q, qp, qc, g, gp, gc = people(60, 240, 3)
    plain, by_faiss = (
        evaluate_reranked(q, qp, qc, g, gp, gc, ReRanking(index=name)) for name in ("exact", "faiss")
    )
    assert np.array_equal(plain.average_precision, by_faiss.average_precision, equal_nan=True)
    assert len(proven) == 3


def test_approximate_lists_are_some_of_ours_and_say_so(proven: list[float]) -> None:
    query, gallery = features("apart")
    ours = nearest(query, gallery, 10).index_QK
    found = nearest(query, gallery, 10, index="faiss:IVF4,Flat;nprobe=2")
    shared = np.mean(
        [len(set(a) & set(b)) for a, b in zip(ours.tolist(), found.index_QK.tolist(), strict=True)]
    )
    assert 2 < shared < 10 and (np.diff(found.distance_QK, axis=1) >= 0).all()
    assert np.array_equal(nearest(query, gallery, 10, index="faiss:IVF4,Flat;nprobe=4").index_QK, ours)
    assert "APPROXIMATE" in faiss_lists.index_text("faiss:HNSW32")
    assert "IndexFlat: exact" in faiss_lists.index_text("faiss")
    for bad, word in (
        ("faiss:Nothing", "Nothing"),
        ("faiss:IVF4,Flat;probe=4", "probe"),
        ("faiss:IVF64,Flat", "few"),
    ):
        with pytest.raises(UserError, match=word) as caught:
            nearest(query, gallery, 300, index=bad)
        assert "\n" not in str(caught.value)


def test_what_is_said_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    for command in (
        ("search", "pretrained:walkers", "nowhere", "nothing.jpg", "--index", "faiss"),
        ("score", "nowhere", "nowhere", "--rerank", "--rerank-index", "faiss"),
        ("evaluate", "pretrained:walkers", "nowhere", "--rerank", "--rerank-index", "faiss"),
    ):
        status, said = run(*command)
        assert status == 2 and "FAISS is not installed: pip install 'maskreid-dist[faiss]'" in said
    status, said = run("search", "pretrained:walkers", "nowhere", "nothing.jpg", "--index", "flat")
    assert status == 2 and "exact, faiss or faiss:FACTORY" in said
    with pytest.raises(ValueError, match="index is exact or faiss"):
        ReRanking(index="flat")  # type: ignore[arg-type]
    assert faiss_lists.index_text("exact") == ""
