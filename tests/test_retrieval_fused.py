"""Evaluation's count in the Triton program, interpreted: every figure is that of the CPU's own path, bit for
bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from gloo import run_ranks
from maskreid_dist.retrieval import evaluate, evaluate_retrieval, fused_counting
from maskreid_dist.retrieval.distance import Metric
from maskreid_dist.retrieval.fused_counting import FusedCounter, _float32
from test_retrieval_exact import KINDS, Data, copies, hard_features, same


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """On a CPU too; whether each tile was counted by it."""
    counted: list[bool] = []
    add = FusedCounter.add

    def noted(self: FusedCounter, tile: Any) -> bool:
        counted.append(add(self, tile))
        return counted[-1]

    monkeypatch.setattr(FusedCounter, "add", noted)
    monkeypatch.setattr(fused_counting, "TILE", 100)
    return counted


def both(data: Data, monkeypatch: pytest.MonkeyPatch, **options: Any) -> bool:
    whole = evaluate_retrieval(*data, **options)
    with monkeypatch.context() as patched:
        patched.setattr(evaluate, "counts_on", lambda device: True)
        return same(evaluate_retrieval(*data, **options), whole)


def labelled(q: Any, g: Any, identities: int, rng: np.random.Generator) -> Data:
    qp, gp = rng.integers(1, identities, len(q)), rng.integers(-1, identities, len(g))
    gp[-len(q) :] = qp
    qc, gc = np.zeros(len(q), int), rng.integers(0, 3, len(g))
    gc[-len(q) :] = 1
    return q, qp, qc, g, gp, gc


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("identities", [2, 40])
def test_ragged_shapes_with_junk_and_distractors(
    metric: Metric, identities: int, fused: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(identities)
    for queries, gallery, dims in ((3, 7, 5), (35, 140, 40)):
        q, g = (rng.standard_normal((n, dims)).astype(np.float32) for n in (queries, gallery))
        assert both(labelled(q, g, identities, rng), monkeypatch, metric=metric)
    assert fused == [True] * 3


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
def test_near_ties(
    metric: Metric, kind: str, dtype: torch.dtype, fused: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(3)
    q, g = (hard_features(kind, rng, count, 17).clamp(-6e4, 6e4).to(dtype) for count in (6, 120))
    q[:2] = g[:2]
    data = labelled(q, g, 5, rng)
    if kind in ("lengths", "tiny"):  # lengths far from 1 are left to the other path
        assert both(data, monkeypatch, metric=metric)
        return
    monkeypatch.setattr("maskreid_dist.retrieval.tile._COPIES", 10**9)
    monkeypatch.setattr(fused_counting, "_CHUNK_ITEMS", 100)
    assert both(data, monkeypatch, metric=metric) and fused == [True, True]


def test_copies_across_tiles_go_by_index(fused: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskreid_dist.retrieval.tile._COPIES", 10**9)
    for seed in range(3):
        assert both(copies(seed), monkeypatch)
    assert fused == [True] * 6


def test_many_queries_take_smaller_tiles(fused: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_counting, "_MOST_PAIRS", 30 * 70)
    assert both(copies(), monkeypatch) and len(fused) == 3


def test_what_is_too_much_or_merged_goes_the_other_way(
    fused: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert both(copies(distinct=3), monkeypatch)  # merged
    assert fused == [False] * 2
    monkeypatch.setattr("maskreid_dist.retrieval.tile._COPIES", 10**9)
    monkeypatch.setattr(fused_counting, "_LEAST_CAPACITY", 1)
    assert both(copies(distinct=3), monkeypatch)  # too many undecided
    assert fused == [False] * 4
    with monkeypatch.context() as patched:
        patched.setattr(fused_counting, "_MOST_GOOD", 1)
        assert both(copies(), monkeypatch) and len(fused) == 4


def test_thresholds_are_rounded_outwards() -> None:
    values = torch.tensor([1 + 2.0**-30, 1.0, -1 - 2.0**-30, -torch.inf], dtype=torch.float64)
    low, high = _float32(values, -torch.inf), _float32(values, torch.inf)
    assert low.tolist() == [1.0, 1.0, -1 - 2.0**-23, -torch.inf]
    assert high.tolist() == [1 + 2.0**-23, 1.0, -1.0, -torch.inf]


def _on_two_ranks(rank: int, world: int, results: Path) -> None:
    data = copies(gallery=100)
    part = slice(0, 41) if rank == 0 else slice(41, None)
    whole = evaluate_retrieval(*data)
    evaluate.counts_on = lambda device: True
    found = evaluate_retrieval(*data[:3], *(array[part] for array in data[3:]), group=dist.group.WORLD)
    (results / f"{rank}.txt").write_text(str(same(found, whole)))


def test_over_ranks(tmp_path: Path) -> None:
    run_ranks(_on_two_ranks, 2, tmp_path, tmp_path)
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in range(2)] == ["True"] * 2
