"""`maskreid bench retrieval` on small sizes: table, CSV and exit status follow what was measured."""

import csv
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from maskreid_dist.bench import reranking, retrieval, retrieval_peers, retrieval_sizes
from maskreid_dist.cli.app import app
from maskreid_dist.retrieval import evaluate_retrieval
from maskreid_shards.bench.own_process import in_own_process, peak_mb


def test_figures_csv_and_status(tmp_path: Path) -> None:
    arguments = ["bench", "retrieval", "--share", "0.02", "--rounds", "1", "--output", str(tmp_path)]
    result = CliRunner().invoke(app, arguments)
    missed = "MISS" in result.output
    assert result.exit_code == (1 if missed else 0), result.output
    assert result.output.count("MISS") + result.output.count("PASS") == 7
    (path,) = tmp_path.glob("*-retrieval.csv")
    rows = list(csv.DictReader(path.open()))
    assert [row["case"] for row in rows] == [case.name for case in retrieval.cases(0.02)]
    assert all(float(row["evaluation_s"]) > 0 and float(row["product_s"]) > 0 for row in rows)


def test_promises_divide_by_the_floor_and_by_random_rows_of_that_size() -> None:
    cost = retrieval.Cost("random", 1, 1, 256, 1.0, 2.0, 1.0, 1.0, 0.5)
    names = [case.name for case in retrieval.cases(1)]
    costs = [replace(cost, case=name, evaluation_s=2.0 + n) for n, name in enumerate(names)]
    assert [promise.value for promise in retrieval.promises(costs)] == [
        2.0,
        3.0,
        *(2.0, 1.0),
        *(2.5, 1.0),
        7.0 / 6.0,
    ]
    assert [promise.value for promise in retrieval.promises([costs[0], costs[3]])] == [2.0, 2.5, 1.0]


def test_a_case_comes_with_what_it_is_compared_with() -> None:
    known = retrieval.cases(0.02)
    assert [case.name for case in retrieval.chosen(known, ["nearly-equal"])] == ["random", "nearly equal"]
    assert [case.name for case in retrieval.chosen(known, ["random-long"])] == ["random, long"]
    assert retrieval.chosen(known, []) == known
    refused = CliRunner().invoke(app, ["bench", "retrieval", "--case", "all"])
    assert refused.exit_code == 2 and "nearly-equal" in refused.output


def peer_lists() -> retrieval_peers.Lists:
    rng = np.random.default_rng(0)
    pids, camids = (rng.integers(0, most, 330) for most in (12, 4))
    rows = rng.standard_normal((330, 16)) + rng.standard_normal((12, 16))[pids]
    q, g = slice(0, 30), slice(30, None)
    features = rows.astype(np.float32)
    return retrieval_peers.Lists(features[q], features[g], (pids[q], camids[q]), (pids[g], camids[g]))


@pytest.mark.parametrize("name", retrieval_peers.PEERS)
def test_peers_find_our_map(name: str) -> None:
    if not retrieval_peers.installed(name):
        pytest.skip(f"{name} is not installed")
    lists = peer_lists()
    sides = lists.query, *lists.query_labels, lists.gallery, *lists.gallery_labels
    ours = evaluate_retrieval(*sides).mAP
    assert 0.3 < ours < 1 and abs(retrieval_peers.PEERS[name](lists) - ours) < 1e-6


def test_sizes_beside_peers_that_may_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval_sizes, "installed", lambda name: name.startswith("argsort"))
    monkeypatch.setattr(retrieval_sizes, "in_own_process", lambda work, *what: retrieval_sizes.cost_of(*what))
    arguments = ["bench", "retrieval", "--share", "0.01", "--output", str(tmp_path)]
    for name in retrieval_sizes.SIZES:
        arguments += ["--size", name]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == (1 if "MISS" in result.output else 0), result.output
    assert result.output.count("MISS") + result.output.count("PASS") == 4
    assert result.output.count("not installed") == 2
    (path,) = tmp_path.glob("*-retrieval-sizes.csv")
    rows = list(csv.DictReader(path.open()))
    works = [
        (size.name, work)
        for size in retrieval_sizes.SIZES.values()
        for work in ("ours", "product", *size.peers)
    ]
    assert [(row["size"], row["work"]) for row in rows] == works
    found = {(row["size"], row["work"]): row["mAP"] for row in rows}
    for size in ("market1501", "msmt17"):
        assert abs(float(found[size, "ours"]) - float(found[size, "argsort, NumPy"])) < 1e-6


def test_a_size_is_measured_in_a_process_of_its_own() -> None:
    size = replace(retrieval_sizes.MILLION, peers=())
    held = np.ones(4 << 28, np.uint8)  # 1 GB here, which is nobody's there
    cost, product = retrieval_sizes.measure(size, 0.001)
    assert peak_mb() > 1000 and len(held)
    assert cost.seconds and cost.mAP and cost.peak_mb and 50 < cost.peak_mb < 1000
    assert product.mAP is None and product.peak_mb and product.peak_mb < 1000


def test_what_a_size_is_asked_by() -> None:
    refused = CliRunner().invoke(app, ["bench", "retrieval", "--size", "all"])
    assert refused.exit_code == 2 and "msmt17" in refused.output
    both = CliRunner().invoke(app, ["bench", "retrieval", "--size", "million", "--case", "random"])
    assert both.exit_code == 2


def test_cases_are_what_their_names_say() -> None:
    for case in retrieval.cases(0.02):
        data = retrieval._data(case)
        assert (len(data.query), len(data.gallery)) == (case.queries, case.gallery)
        assert (data.gallery == data.gallery[0]).all() == case.same
        assert np.allclose(data.gallery, data.gallery[0], rtol=2e-7) == (case.same or case.ulp)
        found = evaluate_retrieval(data.query, *data.query_labels, data.gallery, *data.gallery_labels)
        assert (found.mAP > 0.5) == (case.noise is not None or (case.same and case.identities == 1))


def test_reranking_as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its work by tensors of a CPU, marked by float64; the memory is made up."""

    def placed(sides: reranking.Sides, device: str) -> reranking.Sides:
        q, g = (torch.from_numpy(rows).to(device, torch.float64) for rows in (sides[0], sides[3]))
        return q, sides[1], sides[2], g, sides[4], sides[5]

    found = {"memory_allocated": 1_000_000, "max_memory_allocated": 6_000_000}
    for name in ("memory_allocated", "max_memory_allocated", "reset_peak_memory_stats", "synchronize"):
        monkeypatch.setattr(torch.cuda, name, partial(found.get, name))
    monkeypatch.setattr(reranking, "_on", placed)
    there = "maskreid_dist.retrieval.reranking.stays_on_device"
    monkeypatch.setattr(there, lambda query, *_: query.features.dtype == torch.float64)
    monkeypatch.setattr(reranking, "CHECKED_IMAGES", 300)
    cost = reranking.measure_gpu(reranking.MSMT17, 0.005, "cpu")
    assert cost.peak_mb == 5.0 and cost.after > cost.before > 0
    assert cost.check and cost.check.others == cost.check.repeats == 0 and cost.check.queries == 37
    kept = reranking.promises([cost])
    assert [promise.bar for promise in kept] == [2, 2000, 0, 0]
    assert kept[0].kept and not reranking.promises([replace(cost, clock_s=2.1)])[0].kept


def test_the_cost_of_reranking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(work: Any, *what: Any) -> Any:
        ulp = what[-1]
        return work(*what) if ulp else in_own_process(work, *what)  # one start is enough

    monkeypatch.setattr(reranking, "in_own_process", measured)
    small = ["bench", "reranking", "--share", "0.03", "--device", "cpu"]
    arguments = [*small, "--nearly-equal", "--output", str(tmp_path)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == (1 if "MISS" in result.output else 0), result.output
    (path,) = tmp_path.glob("*-reranking.csv")
    row, equal = csv.DictReader(path.open())
    assert (row["rows"], equal["rows"]) == ("persons", "one ulp")
    assert result.output.count("MISS") + result.output.count("PASS") == 3
    assert row["images"] == str(round(0.03 * (3368 + 15913)))
    assert float(row["map_after"]) > float(row["map_before"]) > 0
    assert 50 < float(row["peak_mb"]) < 4000
    refused = CliRunner().invoke(app, ["bench", "reranking", "--size", "all"])
    assert refused.exit_code == 2 and "market1501" in refused.output
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refused = CliRunner().invoke(app, ["bench", "reranking", "--device", "cuda"])
    assert refused.exit_code == 2 and "finds no GPU" in refused.output
