"""Retrieval does not depend on tiling, sharding or copies: ties across tiles and ranks, and failures on one
rank."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from gloo import run_ranks
from maskreid_dist.retrieval import RetrievalResult, evaluate, evaluate_retrieval
from maskreid_dist.retrieval.counting import _count_below_by_search, count_below
from maskreid_dist.retrieval.distance import Metric, error_bound, pair_distances, row_norms, tile_distances

Array = NDArray[Any]
Data = tuple[Array, Array, Array, Array, Array, Array]


def copies(seed: int = 0, distinct: int = 40, gallery: int = 200, queries: int = 30, dims: int = 24) -> Data:
    """A gallery in which every image occurs about five times, under different identities: (q, qp, qc, g, gp,
    gc)."""
    generator = np.random.default_rng(seed)
    pictures = generator.normal(size=(distinct, dims)).astype(np.float32)
    return (
        generator.normal(size=(queries, dims)).astype(np.float32),
        generator.integers(1, 6, queries),
        generator.integers(1, 4, queries),
        pictures[generator.integers(0, distinct, gallery)],
        generator.integers(-1, 6, gallery),
        generator.integers(1, 4, gallery),
    )


def mean_ap_by_distinct_order(data: Data) -> float:
    """Slow AP by hits: the distances of the distinct pictures are far apart, so float64 sorts them, copies by
    index."""
    q, qp, qc, g, gp, gc = data
    unit_q, unit_g = (
        x.astype(float) / np.linalg.norm(x.astype(float), axis=1, keepdims=True) for x in (q, g)
    )
    distance = np.round(1 - np.einsum("qd,gd->qg", unit_q, unit_g), 12)
    scores = []
    for row in range(len(q)):
        order = sorted(range(len(g)), key=lambda i: (distance[row, i], i))
        listed = [i for i in order if gp[i] != -1 and not (gp[i] == qp[row] and gc[i] == qc[row])]
        places = [place for place, i in enumerate(listed, 1) if gp[i] == qp[row]]
        if places:
            scores.append(sum(n / place for n, place in enumerate(places, 1)) / len(places))
    return float(np.mean(scores))


def same(a: RetrievalResult, b: RetrievalResult) -> bool:
    equal = np.array_equal(a.average_precision, b.average_precision, equal_nan=True)
    return equal and np.array_equal(a.cmc, b.cmc) and a.mINP == b.mINP and a.mAP_trapezoid == b.mAP_trapezoid


@pytest.mark.parametrize("seed", range(4))
def test_copies_in_one_tile_are_ordered_by_index(seed: int) -> None:
    data = copies(seed)
    assert evaluate_retrieval(*data).mAP == pytest.approx(mean_ap_by_distinct_order(data), abs=1e-12)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize(("block", "tile"), [(1, 1), (7, 3), (30, 64), (256, 199)])
def test_no_tiling_changes_a_bit(
    monkeypatch: pytest.MonkeyPatch, metric: Metric, block: int, tile: int
) -> None:
    whole = evaluate_retrieval(*copies(), metric=metric)
    monkeypatch.setattr(evaluate, "QUERY_BLOCK", block)
    monkeypatch.setattr(evaluate, "GALLERY_TILE", tile)
    assert same(evaluate_retrieval(*copies(), metric=metric), whole)


def test_torch_and_numpy_agree_and_dtypes_widen_exactly() -> None:
    q, qp, qc, g, gp, gc = copies()
    whole = evaluate_retrieval(q, qp, qc, g, gp, gc)
    tensors = [torch.from_numpy(x) for x in (q, qp, qc, g, gp, gc)]
    assert same(evaluate_retrieval(*tensors), whole)
    assert same(evaluate_retrieval(q.astype(float), qp, qc, g.astype(float), gp, gc), whole)


def test_the_gpu_s_counting_equals_the_cpu_s() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(0, 50, (9, 300), generator=generator).double()  # many ties with the thresholds
    values[:, ::7] = torch.inf
    thresholds = torch.randint(0, 50, (9, 6), generator=generator).double().sort(dim=1).values
    thresholds[4, 3:] = torch.inf
    number = np.array([6, 6, 6, 6, 3, 6, 6, 6, 6])
    by_rows, by_search = count_below(values, thresholds, number), _count_below_by_search(values, thresholds)
    for row, used in enumerate(number):
        expected = [(values[row] < t).sum().item() for t in thresholds[row, :used]]
        assert by_rows[row, :used].tolist() == expected == by_search[row, :used].tolist()


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e12])
def test_the_matrix_product_stays_within_the_bound(metric: Metric, scale: float) -> None:
    generator = torch.Generator().manual_seed(1)
    q = torch.randn(20, 256, dtype=torch.float64, generator=generator) * scale
    g = q.repeat(3, 1) * torch.linspace(0.5, 2, 60)[:, None]  # near copies: cancellation at its worst
    q_norms, g_norms = row_norms(q), row_norms(g)
    rows, columns = (x.flatten() for x in torch.meshgrid(torch.arange(20), torch.arange(60), indexing="ij"))
    exact = pair_distances(q, q_norms, rows, g, g_norms, columns, metric).view(20, 60)
    bound = error_bound(q_norms, g_norms, 256, metric)[:, None]
    assert ((tile_distances(q, q_norms, g, g_norms, metric) - exact).abs() <= bound).all()


def _on_two_ranks(rank: int, world: int, results: Path) -> None:
    q, qp, qc, g, gp, gc = copies()
    part = slice(0, 77) if rank == 0 else slice(77, None)
    lines = []
    for metric in ("cosine", "euclidean"):
        found = evaluate_retrieval(
            q, qp, qc, g[part], gp[part], gc[part], metric=metric, group=dist.group.WORLD
        )
        lines.append(str(same(found, evaluate_retrieval(q, qp, qc, g, gp, gc, metric=metric))))
    broken, other = g[part].copy(), q.copy()
    broken[5, 3] = np.nan if rank == 1 else broken[5, 3]
    other[0] += rank
    for queries, gallery in ((q, broken), (other, g[part])):
        try:
            evaluate_retrieval(queries, qp, qc, gallery, gp[part], gc[part], group=dist.group.WORLD)
        except ValueError as error:
            lines.append(str(error))
    (results / f"{rank}.txt").write_text("\n".join(lines))


def test_copies_across_ranks_and_an_error_on_one_of_them(tmp_path: Path) -> None:
    run_ranks(_on_two_ranks, 2, tmp_path, tmp_path)
    first, second = ((tmp_path / f"{rank}.txt").read_text().splitlines() for rank in range(2))
    assert first[:2] == second[:2] == ["True", "True"]
    assert first[2:] == second[2:]
    assert first[2].startswith("rank 1 of the group: gallery features") and "first row 5" in first[2]
    assert first[3].startswith("the ranks' options differ: rank 1 of the group has query='")


def _raised(arguments: Iterable[Any], **options: Any) -> str:
    """The line that every rank raises, which is the same on all of them."""
    with pytest.raises(ValueError) as raised:  # compared by the caller
        evaluate_retrieval(*arguments, group=dist.group.WORLD, **options)
    lines = [""] * dist.get_world_size()
    dist.all_gather_object(lines, str(raised.value))
    assert lines == [lines[0]] * len(lines) and "\n" not in lines[0]
    return lines[0]


def _refusals(rank: int, world: int) -> None:
    q, qp, qc, g, gp, gc = copies()
    mine = slice(rank * 77, None if rank else 77)
    good = {"q": q, "qp": qp, "qc": qc, "g": g[mine], "gp": gp[mine], "gc": gc[mine]}
    me = "rank 1 of the group"
    for name, value, words in (
        ("q", [*q.tolist()[:3], [0.0]], f"{me}: query features must be an array of floating point numbers"),
        ("q", [["a"]], f"{me}: query features must be an array of floating point numbers"),
        ("q", torch.from_numpy(q).long(), f"{me}: query features must be floating point"),
        ("q", q[:, :3], f"{me}: query features have 3 columns, gallery features {g.shape[1]}"),
        ("q", q[:0], f"{me}: query_pids must be one integer per feature row (0)"),
        (
            "q",
            q[::-1],
            f"the ranks' options differ: {me} has query='{len(q)} x {q.shape[1]} numbers of checksum",
        ),
        ("qp", qp + 1, f"the ranks' options differ: {me} has query_pids='{len(q)} numbers of checksum"),
        ("qc", qc + 1, f"the ranks' options differ: {me} has query_camids='{len(q)} numbers of checksum"),
        ("qc", None, f"{me}: query_camids: none given; for data without cameras"),
        ("g", good["g"] * np.nan, f"{me}: gallery features"),
        ("gp", good["gp"].astype(float), f"{me}: gallery_pids must be integers, not float64"),
        ("gc", good["gc"][:, None], f"{me}: gallery_camids must be one integer per feature row"),
    ):
        assert _raised({**good, name: value}.values() if rank else good.values()).startswith(words), words
    for options, usual, words in (
        ({"max_rank": 10}, {}, f"the ranks' options differ: {me} has max_rank=10, others max_rank=50"),
        ({"max_rank": 0}, {}, f"{me}: max_rank: expected an integer of at least 1, got 0"),
        ({"max_rank": "10"}, {}, f"{me}: max_rank: expected an integer of at least 1, got '10'"),
        ({"ap": "hit"}, {}, f"{me}: ap 'hit' is unknown: choose one of hits, trapezoid"),
        ({"ap": "trapezoid"}, {}, f"the ranks' options differ: {me} has ap='trapezoid', others ap='hits'"),
        ({"metric": "l1"}, {}, f"{me}: metric 'l1' is unknown"),
        ({}, {"metric": "euclidean"}, f"{me} has metric='cosine', others metric='euclidean'"),
    ):
        assert words in _raised(good.values(), **(options if rank else usual)), words
    none = {**good, "g": g[:0], "gp": gp[:0], "gc": gc[:0]}
    assert _raised(none.values()) == "there is no gallery image"


def test_what_is_wrong_on_one_rank_is_one_line_on_all(tmp_path: Path) -> None:
    run_ranks(_refusals, 2, tmp_path)


def test_a_group_of_one_rank_is_no_group_and_a_group_is_checked(tmp_path: Path) -> None:
    run_ranks(_alone, 1, tmp_path)
    with pytest.raises(ValueError, match="process group or None, got str"):
        evaluate_retrieval(*copies(), group="world")  # type: ignore[arg-type]


def _alone(rank: int, world: int) -> None:
    data = copies()
    assert same(evaluate_retrieval(*data, group=dist.group.WORLD), evaluate_retrieval(*data))
    with pytest.raises(ValueError, match="max_rank: expected"):
        evaluate_retrieval(*data, group=dist.group.WORLD, max_rank=0)
