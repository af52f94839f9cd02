"""Two runs compared: paired intervals against a loop, queries that changed most, the program, the page."""

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from checkpoints import write_run
from maskreid_dist.evaluation.compare import _most, settings
from maskreid_dist.model.checkpoint import find_checkpoint
from maskreid_dist.retrieval import RetrievalResult, evaluate_retrieval
from maskreid_dist.retrieval.intervals import bootstrap_intervals
from maskreid_dist.retrieval.paired import paired_differences
from program import run


def result(noise: float, seed: int = 0, queries: int = 120) -> RetrievalResult:
    """Of queries whose hardness (their own noise) is the same for every `noise`."""
    rng = np.random.default_rng(seed)
    centre = rng.standard_normal((40, 16))
    pids = rng.integers(0, 40, queries) + 1
    gallery_pids = np.repeat(np.arange(1, 41), 4)
    hardness = rng.exponential(1.0, (queries, 1)) * rng.standard_normal((queries, 16))
    others = rng.standard_normal((len(gallery_pids), 16))
    query: NDArray[np.float64] = centre[pids - 1] + noise * hardness
    gallery = centre[gallery_pids - 1] + 0.5 * others
    ones = np.ones(queries, np.int64)
    return evaluate_retrieval(query, pids, ones, gallery, gallery_pids, np.full(len(gallery_pids), 2))


def test_intervals_are_those_of_a_loop_over_resamples() -> None:
    first, second = result(1.3), result(1.0)
    found = paired_differences(first, second, ranks=(1,), resamples=200, seed=3)
    rng = np.random.default_rng(3)
    differences = []
    for _ in range(200):
        rows = rng.integers(0, 120, 120)
        differences.append(second.average_precision[rows].mean() - first.average_precision[rows].mean())
    assert found["mAP"].interval == pytest.approx(np.quantile(differences, [0.025, 0.975]))
    assert found["mAP"].first == pytest.approx(first.mAP) and found["mAP"].second == pytest.approx(second.mAP)
    assert found["rank1"].value == pytest.approx(second.rank(1) - first.rank(1))
    assert list(found) == ["mAP", "rank1"]


def test_pairing_sees_what_two_intervals_do_not() -> None:
    first, second = result(1.1), result(1.0)
    found = paired_differences(first, second)["mAP"]
    alone = [bootstrap_intervals(one)["mAP"] for one in (first, second)]
    assert found.clear and found.value > 0
    assert alone[0][1] > alone[1][0]  # the two intervals overlap
    same = paired_differences(first, first)["mAP"]
    assert same.interval == (0.0, 0.0) and not same.clear
    assert paired_differences(second, first)["mAP"].value == -found.value


def test_different_queries_are_refused() -> None:
    with pytest.raises(ValueError, match="different queries"):
        paired_differences(result(1.0), result(1.0, queries=80))
    with pytest.raises(ValueError, match="level"):
        paired_differences(result(1.0), result(1.0), level=1.0)


def test_changed_queries_are_of_different_persons() -> None:
    change = np.array([0.5, np.nan, 0.4, -0.2, 0.1, 0.0])
    assert _most(change, np.array([1, 2, 1, 3, 4, 5])) == [0, 4]
    assert _most(-change, np.array([1, 2, 1, 3, 4, 5])) == [3]


def test_the_command_and_its_page(converted: Path, tmp_path: Path) -> None:
    origin = {"started": "2026-01-01T00:00:00+00:00", "commit": "abc123"}
    first = write_run(tmp_path / "first", origin=origin)
    second = write_run(tmp_path / "second", "optimizer.lr=0.5", seed=1)
    page, figures = tmp_path / "both.html", tmp_path / "both.json"
    status, said = run("compare", first, second, converted, "--html", page, "--output", figures)
    assert status == 0, said
    found = json.loads(figures.read_text())
    value = found["second"]["mAP_hits"] - found["first"]["mAP_hits"]
    assert found["differences"]["mAP"]["value"] == pytest.approx(value, abs=0.011)
    assert f"{found['differences']['mAP']['value']:+.2f}" in said
    html = page.read_text()
    assert "A: first, step 4" in html and "B: second, step 4" in html and str(second) in html
    assert "<td>optimizer.lr</td><td>0.003</td><td>0.5</td>" in html and "abc123" in html
    assert "<td>model.width" not in html  # is the same in both
    assert html.count("class='query'") > 0 and html.count("<h4><b>A</b>") == html.count("<h4><b>B</b>")
    # A run with itself: no query changed.
    status, said = run("compare", first, first, converted, "--html", page)
    assert status == 0 and "No query's AP changed" in page.read_text()
    # Without shards those of the first run's recipe.
    own = write_run(tmp_path / "own", f"data.shards={converted}")
    elsewhere = write_run(tmp_path / "elsewhere", "data.shards=none", f"run.evaluate_shards={converted}")
    for pair in ((own, second), (elsewhere, second)):
        status, said = run("compare", *pair, "--output", figures)
        assert status == 0 and f"shards of {pair[0]}: {converted}\n" in said, said
        assert json.loads(figures.read_text())["first"]["mAP_hits"] == found["first"]["mAP_hits"]
    status, said = run("compare", first, tmp_path / "none", converted)
    assert status == 2 and "no usable checkpoint" in said


def test_settings_hold_no_secrets(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / f"run{n}", f"data.shards=https://me:secret{n}@host/s", f"seed={n}")
        for n in range(2)
    ]
    first, second = (find_checkpoint(path)[0] for path in runs)
    found = settings(first, second)
    assert found["seed"] == ("0", "1") and "secret" not in str(found)
