"""Re-ranking against its definition with whole matrices, written from the paper."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gloo import run_ranks
from maskreid_dist.retrieval import (
    ReRanking,
    RetrievalError,
    evaluate_reranked,
    evaluate_retrieval,
    expand_queries,
    reranking,
)
from maskreid_dist.retrieval.distance import Metric
from maskreid_dist.retrieval.inputs import both_sides
from maskreid_dist.retrieval.reranking import reranked_blocks

Array = NDArray[Any]


def dense(query: Array, gallery: Array, options: ReRanking, metric: Metric) -> NDArray[np.float64]:
    """N x N distances, sets and vectors of N entries, one image after the other."""
    rows = np.concatenate([query, gallery]).astype(np.float64)
    if metric == "cosine":
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        d = 1.0 - rows @ rows.T
    else:
        d = np.square(rows[:, None] - rows[None]).sum(axis=2)
    if options.power == "fourth":
        d = d**2
    d = d / d.max(axis=1, keepdims=True)
    order = np.argsort(d, axis=1, kind="stable")

    def mutual(i: int, k: int) -> set[int]:
        return {int(j) for j in order[i, : k + 1] if i in order[j, : k + 1]}

    N = len(rows)
    V = np.zeros((N, N))
    for i in range(N):
        own = mutual(i, options.k1)
        members = set(own)
        for c in own:
            theirs = mutual(c, round(options.k1 / 2))
            if len(theirs & own) > 2 / 3 * len(theirs):
                members |= theirs
        chosen = sorted(members)
        V[i, chosen] = np.exp(-d[i, chosen])
        V[i] /= V[i].sum()
    V = np.stack([V[order[i, : options.k2]].mean(axis=0) for i in range(N)])
    Q = len(query)
    shared = np.stack([np.minimum(V[i], V[Q:]).sum(axis=1) for i in range(Q)])
    jaccard = 1.0 - shared / (2.0 - shared)
    final: NDArray[np.float64] = (1.0 - options.weight) * jaccard + options.weight * d[:Q, Q:]
    return final


def people(queries: int, images: int, seed: int, noise: float = 0.7) -> tuple[Array, ...]:
    """Features, pids and cameras of both sides, some images junk."""
    rng = np.random.default_rng(seed)
    pids = rng.integers(0, max(2, images // 8), queries + images)
    centres = rng.standard_normal((pids.max() + 1, 8))
    rows = (centres[pids] + noise * rng.standard_normal((len(pids), 8))).astype(np.float32)
    cameras = rng.integers(0, 3, len(pids))
    pids[queries:][rng.random(images) < 0.05] = -1
    Q = queries
    return rows[:Q], pids[:Q], cameras[:Q], rows[Q:], pids[Q:], cameras[Q:]


def sparse(query: Array, gallery: Array, options: ReRanking, metric: Metric) -> NDArray[np.float64]:
    ids = [np.zeros(len(rows), np.int64) for rows in (query, gallery)]
    sides = both_sides(query, ids[0], ids[0], gallery, ids[1], ids[1], metric=metric)
    return np.concatenate([block.copy() for block in reranked_blocks(*sides, options, metric, 17)])


@settings(max_examples=40)
@given(
    queries=st.integers(1, 40),
    images=st.integers(1, 90),
    k1=st.integers(1, 30),
    k2=st.integers(1, 9),
    weight=st.sampled_from([0.0, 0.3, 1.0]),
    power=st.sampled_from(["squared", "fourth"]),
    metric=st.sampled_from(["cosine", "euclidean"]),
    seed=st.integers(0, 99),
)
def test_the_sparse_form_is_the_definition(
    queries: int,
    images: int,
    k1: int,
    k2: int,
    weight: float,
    power: Literal["squared", "fourth"],
    metric: Metric,
    seed: int,
) -> None:
    q, _, _, g, _, _ = people(queries, images, seed)
    options = ReRanking(k1, k2, weight, power)
    assert np.abs(sparse(q, g, options, metric) - dense(q, g, options, metric)).max() < 1e-9


def test_two_thousand_images_and_the_papers_values() -> None:
    q, _, _, g, _, _ = people(200, 1800, 1)
    options = ReRanking()
    assert (options.k1, options.k2, options.weight) == (20, 6, 0.3)
    assert np.abs(sparse(q, g, options, "cosine") - dense(q, g, options, "cosine")).max() < 1e-9


def test_copies_of_one_image() -> None:
    q, g = np.ones((3, 4)), np.ones((30, 4))
    found = sparse(q, g, ReRanking(), "cosine")
    assert np.isfinite(found).all()


@pytest.mark.parametrize("seed", range(3))
def test_figures_are_those_of_the_definitions_lists(seed: int) -> None:
    """A distance matrix d ranks as the features do whose distances it holds: the loop is written out here."""
    q, qp, qc, g, gp, gc = people(60, 240, seed, noise=0.8)
    options = ReRanking()
    final = dense(q, g, options, "cosine")
    average, inp, first = [], [], []
    for i in range(len(q)):
        listed = np.flatnonzero((gp != -1) & ~((gp == qp[i]) & (gc == qc[i])))
        order = listed[np.argsort(final[i, listed], kind="stable")]
        places = np.flatnonzero(gp[order] == qp[i]) + 1
        if len(places):
            average.append(np.mean(np.arange(1, len(places) + 1) / places))
            inp.append(len(places) / places[-1])
            first.append(places[0])
    found = evaluate_reranked(q, qp, qc, g, gp, gc, options)
    assert found.mAP == pytest.approx(np.mean(average), abs=1e-12)
    assert found.mINP == pytest.approx(np.mean(inp), abs=1e-12)
    assert found.rank(1) == pytest.approx(np.mean(np.array(first) == 1), abs=1e-6)
    assert found.valid_queries == len(average)
    assert found.mAP > evaluate_retrieval(q, qp, qc, g, gp, gc).mAP  # what it is for


def test_the_weight_of_the_distance_alone_changes_nothing() -> None:
    q, qp, qc, g, gp, gc = people(40, 200, 5)
    plain = evaluate_retrieval(q, qp, qc, g, gp, gc)
    assert evaluate_reranked(q, qp, qc, g, gp, gc, ReRanking(weight=1.0)).mAP == pytest.approx(
        plain.mAP, abs=1e-12
    )


@pytest.mark.parametrize(
    ("values", "word"),
    [({"k1": 0}, "k1"), ({"k2": 1.5}, "k2"), ({"weight": 2.0}, "weight"), ({"power": "x"}, "power")],
)
def test_bad_options_are_one_line(values: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        ReRanking(**values)


def test_no_valid_query_says_why() -> None:
    q, qp, _, g, gp, _ = people(10, 40, 6)
    with pytest.raises(RetrievalError, match="camera"):
        evaluate_reranked(q, qp, np.zeros(10, int), g, gp, np.zeros(40, int))


def pieces_of(name: str) -> None:
    """So that each of three ranks has a share; but two have none of the last."""
    reranking._CHUNK, reranking._BLOCK = (512, 64) if name == "no_mean" else (16, 4)


def _rank_part(rank: int, world: int, results: Path) -> None:
    group = dist.group.WORLD
    q, qp, qc, g, gp, gc = people(30, 170, 8)
    own = slice(*([0, 90, 90, 170][rank : rank + 2]))  # the second has none
    for name, options in RERANKED.items():
        pieces_of(name)
        found = evaluate_reranked(q, qp, qc, g[own], gp[own], gc[own], options, group=group)
        np.savez(
            results / f"{name}-{rank}.npz", ap=found.average_precision, cmc=found.cmc, first=found.first_rank
        )
    np.save(results / f"expanded-{rank}.npy", expand_queries(q, g[own], k=5, group=group))
    with pytest.raises(ValueError, match="rank 1 of the group: gallery features: 1 of 1 rows hold NaN"):
        rows = np.full((1, 8), np.nan if rank == 1 else 1.0, np.float32)
        evaluate_reranked(q, qp, qc, rows, gp[:1], gc[:1], group=group)
    with pytest.raises(ValueError, match="re-ranking"):
        evaluate_reranked(q, qp, qc, g, gp, gc, ReRanking(k1=5 + rank), group=group)
    with pytest.raises(ValueError, match="k is at least 1"):
        expand_queries(q, g, k=rank, group=group)


RERANKED = {"paper": ReRanking(), "ports": ReRanking(power="fourth"), "no_mean": ReRanking(k2=1)}


def test_over_ranks_bit_by_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_CHUNK", "_BLOCK"):
        monkeypatch.setattr(reranking, name, getattr(reranking, name))
    q, qp, qc, g, gp, gc = people(30, 170, 8)
    run_ranks(_rank_part, 3, tmp_path, tmp_path)
    for name, options in RERANKED.items():
        pieces_of(name)
        one = evaluate_reranked(q, qp, qc, g, gp, gc, options)
        for rank in range(3):
            found = np.load(tmp_path / f"{name}-{rank}.npz")
            assert np.array_equal(found["ap"], one.average_precision, equal_nan=True)
            assert np.array_equal(found["cmc"], one.cmc) and np.array_equal(found["first"], one.first_rank)
    expanded = expand_queries(q, g, k=5)
    assert all(np.array_equal(np.load(tmp_path / f"expanded-{n}.npy"), expanded) for n in range(3))
