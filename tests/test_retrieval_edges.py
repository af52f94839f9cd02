"""Galleries and queries at the edge of what there may be, through every call that takes them."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from maskreid_dist.retrieval import (
    RetrievalError,
    RetrievalResult,
    evaluate_reranked,
    evaluate_retrieval,
    expand_queries,
    nearest,
)
from maskreid_dist.retrieval.protocols import gallery_growth, single_shot_cmc

EVALUATIONS = (evaluate_retrieval, evaluate_reranked)
each_evaluation = pytest.mark.parametrize("evaluate", EVALUATIONS, ids=lambda call: call.__name__)
Evaluation = Callable[..., RetrievalResult]


def data() -> list[Any]:
    """Four persons, three cameras, four queries and sixteen gallery images; no two rows alike."""
    rng = np.random.default_rng(0)
    pids = np.arange(20) % 4 + 1
    rows = (np.eye(4)[pids - 1].repeat(2, axis=1) + 0.4 * rng.standard_normal((20, 8))).astype(np.float32)
    cameras = np.arange(20) // 4 % 3
    return [rows[:4], pids[:4], cameras[:4], rows[4:], pids[4:], cameras[4:]]


@each_evaluation
def test_one_gallery_image(evaluate: Evaluation) -> None:
    q, qp, qc, g, gp, gc = data()
    found = evaluate(q, qp, qc, g[:1], gp[:1], gc[:1])
    assert (found.valid_queries, found.skipped_queries) == (1, 3)
    assert found.mAP_hits == found.mAP_trapezoid == found.mINP == found.rank(1) == 1.0
    assert len(found.cmc) == 1


def test_a_gallery_smaller_than_k() -> None:
    q, _, _, g, _, _ = data()
    lists = nearest(q, g[:3], 20)
    assert lists.index_QK.shape == (4, 3) and (np.sort(lists.index_QK, axis=1) == np.arange(3)).all()
    assert np.array_equal(expand_queries(q, g[:3], k=20), expand_queries(q, g[:3], k=3))


@each_evaluation
def test_no_valid_query_and_no_image_at_all_are_one_line(evaluate: Evaluation) -> None:
    q, qp, qc, g, gp, gc = data()
    with pytest.raises(RetrievalError, match="no query has a match"):
        evaluate(q, qp, qc, g, gp + 10, gc)
    for few in ((q[:0], qp[:0], qc[:0], g, gp, gc), (q, qp, qc, g[:0], gp[:0], gc[:0])):
        with pytest.raises(ValueError, match=r"quer|gallery") as caught:
            evaluate(*few)
        assert "\n" not in str(caught.value)
    with pytest.raises(RetrievalError, match="no query has a match"):
        single_shot_cmc(q, qp, qc, g, gp + 10, gc)


@each_evaluation
def test_values_that_are_not_finite_are_named(evaluate: Evaluation) -> None:
    for side, number, value in ((0, 2, np.nan), (3, 5, np.inf), (3, 0, -np.inf)):
        sides = data()
        sides[side][number, 3] = value
        name = "query" if side == 0 else "gallery"
        with pytest.raises(
            ValueError, match=rf"{name} features: 1 of \d+ rows hold NaN.* first row {number}$"
        ):
            evaluate(*sides)
        with pytest.raises(ValueError, match=f"{name} features: 1 of"):
            nearest(sides[0], sides[3], 2)
        with pytest.raises(ValueError, match=f"{name} features: 1 of"):
            expand_queries(sides[0], sides[3], k=2)


@each_evaluation
def test_junk_leaves_the_lists_and_distractors_stay(evaluate: Evaluation) -> None:
    """Junk nearest to every query changes no figure of the evaluation; as distractors it comes first."""
    q, qp, qc, g, gp, gc = data()
    near = q.repeat(3, axis=0)
    more = [
        np.concatenate([g, near]),
        np.concatenate([gp, np.full(12, -1)]),
        np.concatenate([gc, np.zeros(12, int)]),
    ]
    junk = evaluate(q, qp, qc, *more)
    if evaluate is evaluate_retrieval:
        plain = evaluate(q, qp, qc, g, gp, gc)
        assert np.array_equal(junk.average_precision, plain.average_precision)
    assert junk.rank(1) == 1.0
    more[1] = np.concatenate([gp, np.zeros(12, int)])
    distractors = evaluate(q, qp, qc, *more)
    assert distractors.valid_queries == 4 and distractors.rank(3) == 0.0
    nobody = evaluate(q, np.array([-1, 0, 3, 4]), qc, *more)  # all of pid 0 are of the queries' own camera
    assert (nobody.valid_queries, nobody.skipped_queries) == (2, 2)


@each_evaluation
def test_a_query_in_its_own_gallery_is_not_its_own_match(evaluate: Evaluation) -> None:
    q, qp, qc, g, gp, gc = data()
    for n in range(4):
        own = slice(n, n + 1)
        with_own = [np.concatenate(pair) for pair in ((q[own], g), (qp[own], gp), (qc[own], gc))]
        found, plain = (evaluate(q[own], qp[own], qc[own], *sides) for sides in (with_own, (g, gp, gc)))
        assert found.valid_queries == 1 and found.first_rank[0] == 1
        if evaluate is evaluate_retrieval:
            assert found.mAP == plain.mAP
        assert nearest(q[own], with_own[0], 1).index_QK.tolist() == [[0]]


@each_evaluation
def test_copies_are_ordered_by_their_index(evaluate: Evaluation) -> None:
    """All rows are one: the list is the gallery's order."""
    q, qp, qc, g, gp, gc = data()
    q[:], g[:] = q[0], q[0]
    found = evaluate(q, qp, qc, g, gp, gc)
    for n in range(4):
        listed = [p for p, c in zip(gp, gc, strict=True) if (p, c) != (qp[n], qc[n])]
        assert found.first_rank[n] == listed.index(qp[n]) + 1
    assert nearest(q, g, 5).index_QK.tolist() == [[0, 1, 2, 3, 4]] * 4


@each_evaluation
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_narrow_features_are_ranked_as_what_they_hold(evaluate: Evaluation, dtype: torch.dtype) -> None:
    q, qp, qc, g, gp, gc = data()
    narrow = [torch.from_numpy(rows).to(dtype) for rows in (q, g)]
    wide = [rows.double() for rows in narrow]
    found, expected = (evaluate(a, qp, qc, b, gp, gc) for a, b in (narrow, wide))
    assert np.array_equal(found.average_precision, expected.average_precision)
    lists = [nearest(a, b, 4) for a, b in (narrow, wide)]
    assert np.array_equal(lists[0].index_QK, lists[1].index_QK)
    assert np.array_equal(lists[0].distance_QK, lists[1].distance_QK)


def test_read_only_files_are_taken_without_a_warning(tmp_path: Path) -> None:
    q, qp, qc, g, gp, gc = data()
    for name, rows in (("q", q), ("g", g)):
        np.save(tmp_path / name, rows)
    mapped = np.load(tmp_path / "q.npy", mmap_mode="r"), np.load(tmp_path / "g.npy", mmap_mode="r")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for evaluate in EVALUATIONS:
            found, plain = (evaluate(a, qp, qc, b, gp, gc) for a, b in (mapped, (q, g)))
            assert np.array_equal(found.average_precision, plain.average_precision)
        nearest(mapped[0], mapped[1], 3)
        expand_queries(mapped[0], mapped[1], k=3)
        assert len(gallery_growth(mapped[0], qp, qc, mapped[1], gp, gc, mapped[1], [16, 32])) == 2
