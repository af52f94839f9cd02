"""`maskreid bench retrieval` on small sizes: table, CSV and exit status follow what was measured."""

import csv
from dataclasses import replace
from pathlib import Path

from typer.testing import CliRunner

from maskreid_dist.bench import retrieval
from maskreid_dist.cli.app import app
from maskreid_dist.retrieval import evaluate_retrieval


def test_figures_csv_and_status(tmp_path: Path) -> None:
    arguments = ["bench", "retrieval", "--share", "0.02", "--rounds", "1", "--output", str(tmp_path)]
    result = CliRunner().invoke(app, arguments)
    missed = "MISS" in result.output
    assert result.exit_code == (1 if missed else 0), result.output
    assert result.output.count("MISS") + result.output.count("PASS") == 4
    (path,) = tmp_path.glob("*-retrieval.csv")
    rows = list(csv.DictReader(path.open()))
    assert [row["case"] for row in rows] == [case.name for case in retrieval.cases(0.02)]
    assert all(float(row["evaluation_s"]) > 0 and float(row["product_s"]) > 0 for row in rows)


def test_promises_divide_by_the_floor_and_by_random_rows_of_that_size() -> None:
    cost = retrieval.Cost("random", 1, 1, 256, 1.0, 2.0, 1.0, 1.0)
    names = [case.name for case in retrieval.cases(1)]
    costs = [replace(cost, case=name, evaluation_s=2.0 + n) for n, name in enumerate(names)]
    assert [promise.value for promise in retrieval.promises(costs)] == [2.0, 3.0, 2.0, 6.0 / 5.0]


def test_cases_are_what_their_names_say() -> None:
    for case in retrieval.cases(0.02):
        data = retrieval._data(case)
        assert (len(data.query), len(data.gallery)) == (case.queries, case.gallery)
        assert (data.gallery == data.gallery[0]).all() == case.same
        found = evaluate_retrieval(data.query, *data.query_labels, data.gallery, *data.gallery_labels)
        assert (found.mAP > 0.5) == (case.noise is not None or (case.same and case.identities == 1))


def test_the_cost_of_reranking(tmp_path: Path) -> None:
    arguments = ["bench", "reranking", "--share", "0.03", "--output", str(tmp_path)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == (1 if "MISS" in result.output else 0), result.output
    (path,) = tmp_path.glob("*-reranking.csv")
    (row,) = csv.DictReader(path.open())
    assert row["images"] == str(round(0.03 * (3368 + 15913)))
    assert float(row["map_after"]) > float(row["map_before"]) > 0
    assert 50 < float(row["peak_mb"]) < 4000
    refused = CliRunner().invoke(app, ["bench", "reranking", "--size", "all"])
    assert refused.exit_code == 2 and "market1501" in refused.output
