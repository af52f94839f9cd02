"""Protocols beside the usual one, each against a slow loop."""

import numpy as np
import pytest
from numpy.typing import NDArray

from maskreid_dist.retrieval import RetrievalError, evaluate_retrieval
from maskreid_dist.retrieval.intervals import bootstrap_intervals
from maskreid_dist.retrieval.protocols import (
    camera_pairs,
    cameras_of_keys,
    gallery_growth,
    pool_queries,
    pool_tracklets,
    single_shot_cmc,
)
from test_retrieval import cosine_distance, problem, slow


def test_without_cameras_only_the_query_s_own_image_is_left_out() -> None:
    q, qp, _, g, gp, _ = problem(4)
    g[:25] = q[:25]
    gp[:25] = qp[:25]
    query_keys = np.array([b"image %d" % i for i in range(len(q))])
    gallery_keys = np.array([b"image %d" % (i if i < 25 else i + 1000) for i in range(len(g))])
    distance, scores = cosine_distance(q, g), []
    for row in range(len(q)):
        order = [i for i in np.argsort(distance[row], kind="stable") if gp[i] != -1]
        order = [i for i in order if gallery_keys[i] != query_keys[row]]
        places = [place for place, i in enumerate(order, 1) if gp[i] == qp[row]]
        scores.append(np.mean([n / place for n, place in enumerate(places, 1)]))
    q_cams, g_cams = cameras_of_keys(query_keys, gallery_keys)
    found = evaluate_retrieval(q, qp, q_cams, g, gp, g_cams)
    assert found.mAP == pytest.approx(np.mean(scores), abs=1e-14)


def test_multiple_query_is_the_mean_of_unit_features() -> None:
    q, qp, qc, *_ = problem(5)
    pooled, pids, camids = pool_queries(q, qp, qc)
    expected: dict[tuple[int, int], list[NDArray[np.floating]]] = {}
    for row, pid, cam in zip(q, qp.tolist(), qc.tolist(), strict=True):
        expected.setdefault((pid, cam), []).append(row / np.linalg.norm(row))
    assert list(zip(pids.tolist(), camids.tolist(), strict=True)) == sorted(expected)
    for row, label in zip(pooled, sorted(expected), strict=True):
        mean = np.mean(expected[label], axis=0)
        assert row == pytest.approx(mean / np.linalg.norm(mean), abs=1e-12)


def test_single_shot_equals_a_loop_over_its_draws() -> None:
    q, qp, qc, g, gp, gc = data = problem(6)
    distance, rng = cosine_distance(q, g), np.random.default_rng(3)
    rows = []
    for _ in range(4):
        order = rng.permutation(len(g))
        for row in range(len(q)):
            drawn: dict[int, int] = {}
            for i in order:
                junk = gp[i] == -1 or (gp[i] == qp[row] and gc[i] == qc[row])
                if not junk:
                    drawn.setdefault(int(gp[i]), int(i))
            if qp[row] in drawn:
                ranked = sorted(drawn, key=lambda pid: (distance[row, drawn[pid]], drawn[pid]))
                rank = ranked.index(qp[row])
                rows.append([0] * rank + [1] * (12 - rank))
    expected = np.mean([row[:12] for row in rows], axis=0)
    found = single_shot_cmc(*data, repeats=4, seed=3, max_rank=12)
    assert found == pytest.approx(expected, abs=1e-14)
    assert found[-1] == 1.0
    with pytest.raises(RetrievalError, match="another camera"):
        single_shot_cmc(q, qp, np.ones(len(q), int), g, gp, np.ones(len(g), int))
    with pytest.raises(ValueError, match="repeats"):
        single_shot_cmc(*data, repeats=0)


def test_camera_pairs_are_evaluations_of_their_images() -> None:
    q, qp, qc, g, gp, gc = data = problem(7)
    qp[qc == 1] = 99  # no match from camera 1
    found = camera_pairs(*data)
    assert [(pair.query_camera, pair.gallery_camera) for pair in found] == [
        (a, b) for a in (1, 2, 3) for b in (1, 2, 3) if a != b
    ]
    for pair in found:
        a, b = qc == pair.query_camera, gc == pair.gallery_camera
        assert pair.queries == a.sum()
        if pair.query_camera == 1:
            assert pair.result is None
            continue
        assert pair.result is not None
        cmc, hits, *_ = slow(cosine_distance(q[a], g[b]), qp[a], qc[a], gp[b], gc[b])
        assert np.array_equal(pair.result.cmc, cmc) and pair.result.mAP == hits


def test_intervals_hold_the_figures_and_shrink_with_queries() -> None:
    small, large = (evaluate_retrieval(*problem(8, queries=count)) for count in (30, 600))
    one, other = bootstrap_intervals(small), bootstrap_intervals(large)
    for found, result in ((one, small), (other, large)):
        assert found["mAP"][0] < result.mAP < found["mAP"][1]
        assert found["rank1"][0] <= result.rank(1) <= found["rank1"][1]
    scores = large.average_precision[large.first_rank > 0]
    error = scores.std() / np.sqrt(len(scores))  # of a mean, by the central limit theorem
    low, high = other["mAP"]
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.15)
    assert high - low < one["mAP"][1] - one["mAP"][0]
    assert bootstrap_intervals(small, seed=1) != one == bootstrap_intervals(small)
    assert [(large.first_rank[large.first_rank > 0] <= k).mean() for k in (1, 5)] == pytest.approx(
        [large.rank(1), large.rank(5)]
    )
    with pytest.raises(ValueError, match="level"):
        bootstrap_intervals(small, level=1.0)


def test_tracklets_are_means_of_their_images() -> None:
    q, qp, qc, _, _, _ = problem(3)
    tracklets = np.random.default_rng(0).integers(0, 2, len(q))
    rows, pids, camids = pool_tracklets(q, qp, qc, tracklets)
    names = sorted(set(zip(qp.tolist(), qc.tolist(), tracklets.tolist(), strict=True)))
    assert list(zip(pids.tolist(), camids.tolist(), strict=True)) == [name[:2] for name in names]
    for row, (pid, camid, tracklet) in zip(rows, names, strict=True):
        mine = q[(qp == pid) & (qc == camid) & (tracklets == tracklet)]
        mean = (mine / np.linalg.norm(mine, axis=1, keepdims=True)).sum(axis=0)
        assert np.allclose(row, mean / np.linalg.norm(mean))
    with pytest.raises(ValueError, match="one integer per feature row"):
        pool_tracklets(q, qp, qc, tracklets[1:])


def test_a_gallery_that_grows() -> None:
    q, qp, qc, g, gp, gc = problem(4)
    more = np.random.default_rng(1).standard_normal((300, q.shape[1]))
    sizes = [len(g), len(g) + 100, len(g) + 300]
    first, second, third = gallery_growth(q, qp, qc, g, gp, gc, more, sizes)
    assert first.mAP == evaluate_retrieval(q, qp, qc, g, gp, gc).mAP
    assert first.mAP >= second.mAP >= third.mAP and first.mAP > third.mAP
    zeros = np.zeros(300, int)
    whole = np.concatenate([g, more]), np.concatenate([gp, zeros]), np.concatenate([gc, zeros])
    assert third.mAP == evaluate_retrieval(q, qp, qc, *whole).mAP
    for bad in ([len(g) - 1], [len(g) + 301], []):
        with pytest.raises(ValueError, match="sizes lie between"):
            gallery_growth(q, qp, qc, g, gp, gc, more, bad)
