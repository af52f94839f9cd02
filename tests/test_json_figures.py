"""`--json`: every command that prints figures has it, prints one line of JSON and nothing else."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from checkpoints import write_run
from command_table import commands
from market import write_market
from maskreid_dist.terminal import say_json
from maskreid_kernels.bench.exactness import Exactness
from maskreid_kernels.bench.records import Job, Record, Say
from program import run

# Without figures, or with others' form: what these leave in files is said.
NO_FIGURES = {
    "embed", "enrol", "forget",  # how many images, and where
    "init", "page", "push", "version",  # what was written, and where
    "recipe",  # JSON itself
    "train", "supervise", "top",  # runs/NAME/metrics.jsonl, status.json; maskreid runs --json
    "segment",  # masks; maskreid masks --json judges them
}  # fmt: skip


def test_every_command_with_figures_has_the_option() -> None:
    lacking = {
        " ".join(command.words)
        for command in commands()
        if not any("--json" in one.flags for one in command.parameters)
    }
    lacking = {"segment" if name.startswith("segment ") else name for name in lacking}
    assert lacking == NO_FIGURES


def figures(*words: object, status: int = 0) -> Any:
    found, said = run(*words, "--json")
    assert found == status and said.count("\n") == 1, said
    return json.loads(said)


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("runs")
    first, second = (write_run(folder / name, seed=number) for number, name in enumerate("ab"))
    return first, second


def test_evaluate_and_compare(two_runs: tuple[Path, Path], converted: Path, tmp_path: Path) -> None:
    asked = ("--intervals", "--multiple-query", "--single-shot", 2, "--camera-pairs", "--verification")
    kept = tmp_path / "figures.json"
    found = figures("evaluate", two_runs[0], converted, *asked, "--rerank", "--output", kept)
    assert found == json.loads(kept.read_text())
    assert {"mAP_hits", "valid_queries", "reranked", "multiple_query", "single_shot"} <= set(found)
    low, high = found["intervals"]["mAP"]
    assert low <= high and found["camera_pairs"][0]["queries"] == 2
    assert set(found["true_match_rate_at_false_match_rate"]) == {"10", "1", "0.1", "0.01"}
    assert {"mAP", "rank1"} <= set(found["multiple_query"]["reranked"])
    status, said = run("evaluate", two_runs[0], converted, *asked)
    assert status == 0 and f"{low:.2f} to {high:.2f}" in said and "camera 1 to camera 2, 2 queries" in said
    compared = figures("compare", *two_runs, converted)
    assert compared["first"]["mAP_hits"] == found["mAP_hits"] and "mAP" in compared["differences"]


def test_the_demo(converted: Path, tmp_path: Path) -> None:
    found = figures("demo", "--pretrained", "--shards", converted, "--runs", tmp_path)
    kept = json.loads((tmp_path / "pretrained_walkers" / "metrics.json").read_text())
    assert {key: found[key] for key in kept} == kept and found["valid_queries"] == 2
    assert Path(found["report"]).is_file()


def test_conversion_and_merging(tmp_path: Path) -> None:
    src = write_market(tmp_path / "src", identities=3, images=2)
    part = figures("convert", "market1501", src, tmp_path / "out", "--part", "1/1", "--workers", 1)
    assert part["images"] == 21 and part["number"] == part["count"] == 1
    found = figures("convert", "market1501", src, tmp_path / "out", "--finish")
    assert found["splits"]["train"]["images"] == 7 and found["masks"]["bad"] == 0
    other = write_market(tmp_path / "other", identities=2, images=2)
    figures("convert", "market1501", other, tmp_path / "two", "--workers", 1)
    merged = figures("merge", tmp_path / "both", f"a={tmp_path / 'out'}", f"b={tmp_path / 'two'}")
    assert merged["splits"]["train"]["images"] == 7 + 5


def test_benchmarks(converted: Path, tmp_path: Path) -> None:
    rows = figures("bench", "mixing", converted, "--identities", 2, "--images", 2, "--epochs", 2)["rows"]
    assert {"access", "steps_per_epoch", "one_shard"} <= set(rows[0])
    status, said = run("bench", "plan", "--identities", 1000, "--json")
    found = json.loads(said)
    assert status == 0 and [one["kept"] for one in found["promises"]] == [True, True]


def test_benchmarks_of_the_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which have their options in maskreid_kernels.bench. Nothing is measured: the libraries beside ours take
    seconds to import."""
    record = Record(
        *("n_pair", "eager", "both", "time"), N=16, M=16, D=8, K=4, violators=None, active=1.0,
        dtype="float32", y50=math.nan, y20=1.0, y80=2.0, unit="ms", status="ok",
    )  # fmt: skip

    def job(job: Job, *, say: Say, **words: object) -> list[Record]:
        say("a line for people")
        return [record]

    monkeypatch.setattr("maskreid_kernels.bench.loss.run_job", job)
    found = figures("bench", "loss", "--kernel", "n_pair", "--rows", 16, "--columns", 8, "--images", 4)
    assert found["machine"]["threads"] and found["promises"] == []
    assert found["rows"] == [{**vars(record), "y50": None}]
    off = [Exactness("ranking", "maskreid", 1, error, math.nan, 1.0) for error in (1e-7, 2e-6)]
    monkeypatch.setattr("maskreid_kernels.bench.exactness.measure_exactness", lambda *sizes: off)
    found = figures("bench", "exactness", "--ranks", 1, status=1)
    assert [row["rounding_error"] for row in found["rows"]] == [None, None]
    assert found["promises"][0]["value"] == pytest.approx(2.0) and not found["promises"][0]["kept"]


def test_a_number_that_is_none_becomes_null(capsys: pytest.CaptureFixture[str]) -> None:
    say_json({"a": math.nan, "b": [math.inf, 1.5], "c": Path("x"), 4: None})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [None, 1.5], "c": "x", "4": None}
