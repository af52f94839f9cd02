"""Studies: the file, intervals against a loop and their coverage, children that stop, the whole way."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from maskreid_dist.cli import study_run
from maskreid_dist.cli.study_run import StudyRun
from maskreid_dist.errors import RecipeError, UserError
from maskreid_dist.retrieval.paired import paired_differences
from maskreid_dist.study.differences import NORMAL, STUDENT, Interval, row_difference, seed_paired_interval
from maskreid_dist.study.result import RowResult, packed_queries, read_result, write_result
from maskreid_dist.study.side_by_side import SideBySide, environment_of
from maskreid_dist.study.state import State, look, part_of
from maskreid_dist.study.study_file import Task, load_study
from maskreid_dist.study.summary import Figure, summarise
from maskreid_dist.study.tables import markdown, rows_csv
from maskreid_shards import open_shards
from program import run
from test_compare import result as ranked_result

ROOT = Path(__file__).parent.parent
RECIPE = """name = "base"
[data]
shards = "{shards}"
height = 36
width = 14
resize_height = 40
resize_width = 16
workers = 0
[batch]
identities = 3
images = 2
[model]
width = 0.1
[optimizer]
name = "adamw"
lr = 0.003
steps = 3
warmup_steps = 1
[run]
log_every = 1
tracker = []
"""
STUDY = """name = "small"
base = "recipe.toml"
base_row = "both"
seeds = [1, 2]
set = ["model.embedding_dim=16"]
[[rows]]
name = "both"
[[rows]]
name = "raw"
claim = "masks"
set = ['model.streams=["raw"]']
[[claims]]
name = "masks"
text = "Masks help"
better = "both"
than = "raw"
"""
DAMAGED = """network_of = "both"
set = ['data.mask_damage="swap=1"']"""


def write_study(folder: Path, shards: Path | str = "nowhere", text: str = STUDY) -> Path:
    (folder / "recipe.toml").write_text(RECIPE.format(shards=shards))
    path = folder / "study.toml"
    path.write_text(text)
    return path


# The file.


def test_a_study_is_rows_times_seeds(tmp_path: Path) -> None:
    loaded = load_study(write_study(tmp_path))
    assert [task.name for task in loaded.tasks] == ["both-s1", "both-s2", "raw-s1", "raw-s2"]
    raw = loaded.tasks[3].config
    assert (raw.seed, raw.model.streams, raw.model.embedding_dim) == (2, ("raw",), 16)
    assert loaded.tasks[0].config.model.streams == ("raw", "masked")
    # The run's name says what is trained: another recipe of the same row does not continue it.
    path = write_study(tmp_path, text=STUDY.replace("dim=16", "dim=8"))
    assert load_study(path).tasks[0].config.name != loaded.tasks[0].config.name
    path = write_study(tmp_path, "elsewhere", STUDY.replace("set = [", 'set = ["run.log_every=2", ', 1))
    assert load_study(path).tasks[0].config.name == loaded.tasks[0].config.name


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("seeds = [1, 2]\n", "", ["key seeds is missing"]),
        ("seeds = [1, 2]", "seeds = [1, 1]", ["seeds", "each seed once"]),
        ("seeds = [1, 2]", "seeds = []", ["seeds", "at least 1"]),
        ("seeds = [1, 2]", "seeds = [1.5]", ["seeds.0", "integer", "1.5"]),
        ("seeds = [1, 2]", "seeds = [1, 2]\nsedes = 3", ["unknown key sedes", "did you mean seeds"]),
        ('claim = "masks"', 'clam = "masks"', ["rows.1.clam", "did you mean rows.claim"]),
        ('claim = "masks"', 'claim = "mask"', ["row raw", "none of the claims"]),
        ('base_row = "both"', 'base_row = "all"', ["base_row = 'all'", "both, raw"]),
        ('than = "raw"', 'than = "rwa"', ["claim masks: than = 'rwa'", "both, raw"]),
        ('name = "raw"', 'name = "both"', ["two rows are called 'both'"]),
        ('name = "raw"', 'name = "../raw"', ["rows.1.name", "pattern"]),
        ("model.streams", "model.stream", ["row raw", "model.stream", "did you mean model.streams"]),
        ("model.embedding_dim=16", "seed=3", ["row both", "seed", "the study's to set"]),
        ('base = "recipe.toml"', 'base = "other.toml"', ["row both", "other.toml", "no such recipe"]),
        ("[[rows]]", "[[rows", ["not valid TOML"]),
        (
            'claim = "masks"',
            'network_of = "rwa"',
            ["row raw", "network_of = 'rwa'", "no row that is trained"],
        ),
        ('claim = "masks"', 'network_of = "raw"', ["row raw", "no row that is trained"]),
        ('claim = "masks"', 'network_of = "both"', ["row raw", "model.streams is of the network"]),
    ],
)
def test_a_bad_study_is_one_line(tmp_path: Path, old: str, new: str, words: list[str]) -> None:
    path = write_study(tmp_path, text=STUDY.replace(old, new, 1))
    with pytest.raises(RecipeError) as caught:
        load_study(path)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    assert all(word in message for word in words), message


def test_bad_calls_are_one_line(converted: Path, tmp_path: Path) -> None:
    path = write_study(tmp_path, converted)
    (tmp_path / "other").mkdir()
    nowhere = write_study(tmp_path / "other", "nowhere")
    for arguments, words in (
        ((tmp_path / "none.toml",), "no such study"),
        ((path, "--row", "rwa"), "--row rwa"),
        ((path, "--seed", "7"), "--seed 7"),
        ((path, "--part", "3/2"), "--part 3/2"),
        ((path, "--list", "--report"), "give one of them"),
        ((path, "--again"), "none of these trainings is done"),
        ((nowhere, "--list"), "row both"),
    ):
        status, said = run("study", *arguments, "--runs", tmp_path / "runs")
        assert status == 2 and said.count("\n") == 1 and words in said, said


@pytest.mark.parametrize("name", ["paper_walkers", "mask_quality"])
def test_the_committed_study_is_valid(name: str) -> None:
    loaded = load_study(ROOT / "launch" / "studies" / f"{name}.toml")
    study = loaded.study
    assert len(study.seeds) >= 3
    decided = {name for claim in study.claims for name in (claim.better, claim.than)}
    named = {row.claim for row in study.rows if row.claim}
    assert named == {claim.name for claim in study.claims}
    assert {row.name for row in study.rows} - decided <= {
        row.name
        for row in study.rows
        if "pull" in row.name or name == "mask_quality"  # a grid; compared with the base row alone
    }
    digests = {task.config.name.rpartition("-")[2] for task in loaded.tasks}
    own = [row for row in study.rows if row.shards and not row.network_of]
    assert len(digests) == len(loaded.tasks) - len(own) * len(study.seeds)  # where shards lie is no change


# Intervals.


def changes(seeds: int, rng: np.random.Generator, of_seed: float = 0.03) -> NDArray[np.float64]:
    """(S, 200), of mean 0.02: what queries, seeds and both have of their own."""
    own = 0.1 * rng.standard_normal((1, 200)) + of_seed * rng.standard_normal((seeds, 1))
    return np.asarray(0.02 + own + 0.1 * rng.standard_normal((seeds, 200)))


def test_the_interval_is_that_of_a_loop_over_resamples() -> None:
    change_SQ = changes(3, np.random.default_rng(5))
    found = seed_paired_interval(change_SQ, resamples=100, seed=4)
    rng, means = np.random.default_rng(4), []
    stretch = (3 / 2) ** 0.5 * 4.303 / 1.959964
    for _ in range(100):
        queries = rng.integers(0, 200, 200)
        picked = rng.integers(0, 3, 3)
        of_seeds = [sum(change_SQ[s, q] for q in queries) / 200 for s in range(3)]
        middle = sum(of_seeds) / 3
        means.append(middle + stretch * (sum(of_seeds[s] for s in picked) / 3 - middle))
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])))
    assert found.value == pytest.approx(change_SQ.mean()) and found.seeds == 3
    assert abs(NORMAL - 1.959964) < 1e-6 and STUDENT[1] == 4.303


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_the_interval_covers_the_truth_as_often_as_it_says(seeds: int) -> None:
    """Where seeds differ more than queries blur: drawn as they are, 2 seeds cover it in 6 of 10, 3 in 8."""
    rng = np.random.default_rng(seeds)
    found = [seed_paired_interval(changes(seeds, rng), resamples=300, seed=n) for n in range(200)]
    assert np.mean([one.low <= 0.02 <= one.high for one in found]) >= 0.92


def test_one_seed_is_a_bootstrap_over_queries_and_decides_nothing() -> None:
    first, second = ranked_result(1.3), ranked_result(0.9)
    change_Q = second.average_precision - first.average_precision
    found = seed_paired_interval(change_Q[None])
    other = paired_differences(first, second, resamples=2000)["mAP"].interval
    assert (found.low, found.high) == pytest.approx(other, abs=0.01)
    assert found.low > 0 and found.verdict == "undecided"


@pytest.mark.parametrize(
    ("low", "high", "seeds", "verdict"),
    [
        (0.01, 0.02, 3, "holds"),
        (-0.02, -0.01, 3, "does not hold"),
        (-0.01, 0.02, 3, "undecided"),
        (0.0, 0.02, 3, "undecided"),
        (0.01, 0.02, 1, "undecided"),
    ],
)
def test_the_verdict_is_the_intervals(low: float, high: float, seeds: int, verdict: str) -> None:
    assert Interval((low + high) / 2, low, high, seeds).verdict == verdict


def row_result(noise: float, seed: int, **others: Any) -> RowResult:
    ranked = ranked_result(noise, seed)
    values: dict[str, Any] = {
        "format": "maskreid-study-result-1",
        "study": "small",
        "row": "both",
        "seed": seed,
        "steps": 3,
        "figures": {key: 100 * value for key, value in ranked.metrics().items()},
        "queries_of": "q",
        "queries": packed_queries(ranked.average_precision, ranked.first_rank),
        "minutes": 2.0,
        "threads": 1,
        "processor": "P",
        "versions": {"torch": "2"},
        "commit": None,
        "finished": "2026-01-01T00:00:00+00:00",
        "weights_sha256": "0" * 64,
        "shards": "f" * 64,
        "recipe": {},
    }
    return RowResult.model_validate({**values, **others})


def test_rows_are_compared_over_the_seeds_that_both_have() -> None:
    first = {seed: row_result(1.3, seed) for seed in (1, 2, 3)}
    second = {seed: row_result(0.9, seed) for seed in (2, 3, 4)}
    found = row_difference(first, second)
    assert found is not None and found["mAP"].seeds == 2
    expected = np.mean([ranked_result(0.9, s).mAP - ranked_result(1.3, s).mAP for s in (2, 3)])
    assert found["mAP"].value == pytest.approx(expected, abs=1e-6)  # APs are kept in float32
    rank1 = np.mean([ranked_result(0.9, s).rank(1) - ranked_result(1.3, s).rank(1) for s in (2, 3)])
    assert found["rank1"].value == pytest.approx(rank1)
    assert row_difference(first, {9: row_result(0.9, 9)}) is None
    assert row_difference(first, {1: row_result(0.9, 1, queries_of="other")}) is None


def test_queries_come_back_as_they_were_and_damage_is_named(tmp_path: Path) -> None:
    ap = np.array([0.25, np.nan, 1.0])
    packed = packed_queries(ap, np.array([3, 0, 1]))
    one = row_result(1.0, 1, queries=packed)
    assert np.array_equal(one.average_precision(), ap, equal_nan=True)
    assert one.first_rank().tolist() == [3, 0, 1]
    path = tmp_path / "both-s1.json"
    for spoil, words in (
        ({"queries": {**packed.model_dump(), "count": 4}}, "are not 4"),
        ({"queries": {**packed.model_dump(), "count": 2}}, "are not 2"),
        ({"queries": {**packed.model_dump(), "first_rank": "AAAA"}}, "damaged"),
        ({"format": "other"}, "format"),
        ({"seed": -1}, "seed"),
    ):
        path.write_text(json.dumps({**one.model_dump(mode="json"), **spoil}))
        with pytest.raises(UserError, match=words) as caught:
            read_result(path)
        assert "\n" not in str(caught.value) and "run its row again" in str(caught.value)


def test_figures_over_seeds() -> None:
    assert Figure([50.0, 52.0]).text() == "51.00 ± 1.41"
    assert Figure([50.0]).text() == "50.00"


# Children.


def test_parts_are_all_trainings_once(tmp_path: Path) -> None:
    tasks = load_study(write_study(tmp_path)).tasks
    parts = [part_of(tasks, (number, 3)) for number in (1, 2, 3)]
    assert sorted(task.name for part in parts for task in part) == sorted(task.name for task in tasks)
    assert part_of(tasks, None) == list(tasks)


def test_a_child_has_its_share_and_is_no_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    found = environment_of(1, 3, 8, ["4", "6"])
    assert (found["OMP_NUM_THREADS"], found["CUDA_VISIBLE_DEVICES"]) == ("2", "6")
    assert not {"RANK", "SLURM_STEP_NUM_TASKS"} & set(found)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert environment_of(0, 1, 8, [])["OMP_NUM_THREADS"] == "5"


CHILD = (
    "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(75)); print('ready', flush=True)\n"
    "while sys.argv[1] == 'wait': signal.pause()"
)


def test_ctrl_c_stops_every_child_and_starts_no_other() -> None:
    """Two run side by side when the signal comes, and a third waits."""
    tasks: list[Any] = [SimpleNamespace(name=str(number)) for number in range(4)]
    ends: list[tuple[str, int]] = []
    said: list[str] = []

    def start(task: Task, environment: Mapping[str, str]) -> "subprocess.Popen[bytes]":
        kind = "end" if task.name == "0" else "wait"
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, kind], stdout=subprocess.PIPE, start_new_session=True
        )
        assert child.stdout and child.stdout.readline() == b"ready\n"
        if task.name == "2":
            os.kill(os.getpid(), signal.SIGINT)
        return child

    children = SideBySide(
        start,
        lambda task, status: ends.append((task.name, status)),
        2,
        2,
        asking=lambda: said.append("asked"),
    )
    before = signal.getsignal(signal.SIGINT)
    children.run(tasks)
    assert children.asked and said == ["asked"]
    assert sorted(ends) == [("0", 0), ("1", 75), ("2", 75)]
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(
    "threads, gpus, trainings, expected",
    [(None, [], 100, 6), ("2", [], 100, 3), ("2,1", [], 100, 3), ("8", [], 100, 1), ("0", [], 100, 6),
     (None, [], 4, 4), (None, [], 0, 1), ("2", ["0", "3"], 100, 2), (None, ["0"], 100, 1)],
)  # fmt: skip
def test_how_many_run_side_by_side(
    monkeypatch: pytest.MonkeyPatch, threads: str | None, gpus: list[str], trainings: int, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(6)))
    monkeypatch.setattr(study_run, "gpus_here", lambda: gpus)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if threads is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
    assert study_run.jobs_here(trainings) == expected


# The whole way.


def test_a_study_from_its_file_to_its_table(converted: Path, tmp_path: Path) -> None:
    """Trainings in this process, one of them stopped and continued; one of them again, as a child."""
    from maskreid_dist.training import loop

    path, page = write_study(tmp_path, converted), tmp_path / "page.html"
    runs, kept = tmp_path / "runs", tmp_path / "results" / "small"
    command: list[object] = ["study", path, "--runs", runs]
    status, said = run(*command, "--list")
    assert status == 0 and "4 trainings: 0 done, 4 to run" in said and "plan-run's arithmetic" in said
    assert not (tmp_path / "results").exists() and not runs.exists()

    own, stop = loop.training_step, [True]

    def stopped_once(*arguments: Any) -> Any:
        if stop and stop.pop():
            os.kill(os.getpid(), signal.SIGTERM)
        return own(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "training_step", stopped_once)
        assert run(*command, "--here", "--row", "both", "--seed", "1")[0] == 75
    assert not kept.exists()
    status, said = run(*command, "--here", "--row", "both", "--seed", "1")
    assert status == 0 and "continuing from" in said
    for row, seed in (("both", 2), ("raw", 1), ("raw", 2)):
        assert run(*command, "--here", "--row", row, "--seed", seed)[0] == 0

    status, said = run(*command, "--html", page)
    assert status == 0, said
    assert "4 of 4 trainings are done, 2 of 2 rows with every seed" in said
    found = {file.stem: read_result(file) for file in kept.glob("*.json")}
    assert sorted(found) == ["both-s1", "both-s2", "raw-s1", "raw-s2"]
    assert found["both-s1"].figures != found["both-s2"].figures or (
        found["both-s1"].weights_sha256 != found["both-s2"].weights_sha256
    )
    for one in found.values():
        ap = one.average_precision()
        assert 100 * np.nanmean(ap) == pytest.approx(one.figures["mAP_hits"], abs=0.006)
        assert one.steps == 3 and one.minutes is not None and one.versions["torch"]
    table = (kept / "table.md").read_text()
    summary = summarise(look(load_study(path), kept))
    assert table == markdown(summary)
    mean = np.mean([found[f"raw-s{seed}"].figures["mAP_hits"] for seed in (1, 2)])
    assert f"| raw | masks | 2 of 2 | {mean:.2f} ± " in table and "| the base row |" in table
    assert f"Masks help: {summary.claims[0].verdict} (mAP " in table and str(tmp_path) not in table
    rows = rows_csv(summary).splitlines()
    assert rows == (kept / "rows.csv").read_text().splitlines() and len(rows) == 3
    assert (kept / "figure.png").read_bytes()[:4] == b"\x89PNG"
    html = page.read_text()
    assert (
        "Masks help" in html
        and "data:image/png;base64," in html
        and "http:" not in html
        and "https:" not in html
    )

    status, said = run(*command, "--again", "--row", "raw", "--seed", "2")
    assert (
        status == 0 and "1 trainings, 1 side by side, about 0 minutes, by the 4 runs that were done" in said
    )
    assert "raw-s2: mAP " in said and "raw-s2: the same weights, bit for bit" in said, said
    assert len(list((runs / "again" / "small").glob("raw-s2-*.log"))) == 1
    # Another recipe: nothing of it is done.
    path.write_text(STUDY.replace("dim=16", "dim=8"))
    status, said = run(*command, "--list")
    assert status == 0 and "0 done, 4 to run" in said and said.count("not counted") == 4


def test_a_row_may_rank_another_rows_network(
    converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is trained once, though its own row is not asked for; the two rows differ in their masks alone."""
    text = STUDY.replace("seeds = [1, 2]", "seeds = [1]").replace('name = "raw"', 'name = "worse"')
    text = text.replace("""set = ['model.streams=["raw"]']""", DAMAGED)
    path = write_study(tmp_path, converted, text.replace('than = "raw"', 'than = "worse"'))
    runs, kept = tmp_path / "runs", tmp_path / "results" / "small"
    turns: list[list[str]] = []

    def train_all(self: StudyRun, state: State, waiting: list[Task], *folders: Path) -> int:
        turns.append([task.name for task in waiting])
        return 0

    monkeypatch.setattr(StudyRun, "train_all", train_all)
    here: list[object] = ["study", path, "--runs", runs, "--here"]
    status, said = run(*here, "--row", "worse")
    assert status == 2 and "no network yet; train row both" in said
    assert run("study", path, "--runs", runs, "--row", "worse")[0] == 0
    assert run(*here, "--row", "both")[0] == 0 and run(*here, "--row", "worse")[0] == 0
    both, worse = (read_result(kept / f"{row}-s1.json") for row in ("both", "worse"))
    assert both.weights_sha256 == worse.weights_sha256 and both.queries_of == worse.queries_of
    assert worse.network_of == "both" and worse.minutes is None and both.network_of is None
    assert both.queries != worse.queries
    (kept / "worse-s1.json").unlink()
    assert run("study", path, "--runs", runs)[0] == 0
    assert turns == [["both-s1"], ["worse-s1"], [], ["worse-s1"]]
    # The same row, trained by itself, would be another network.
    write_result(kept / "worse-s1.json", worse)
    path.write_text(path.read_text().replace('network_of = "both"\n', ""))
    assert "worse-s1.json: of other shards, recipe, row" in run("study", path, "--list")[1]


def test_a_row_whose_shards_are_not_here_is_named_and_left_out(converted: Path, tmp_path: Path) -> None:
    text = STUDY.replace(
        'claim = "masks"\n', 'claim = "masks"\nshards = "not_made"\nnote = "convert first"\n'
    )
    path = write_study(tmp_path, converted, text)
    status, said = run("study", path, "--list", "--runs", tmp_path / "runs")
    assert status == 0 and "row raw cannot run here: not_made: not there (convert first)" in said
    assert "4 trainings: 0 done, 2 to run" in said and "no shards" in said


def test_what_is_not_run_yet_is_named_and_makes_no_row(converted: Path, tmp_path: Path) -> None:
    loaded = load_study(write_study(tmp_path, converted))
    kept, page = tmp_path / "results" / "small", tmp_path / "page.html"
    recipe = loaded.tasks[0].config.model_dump(mode="json")
    write_result(kept / "both-s1.json", row_result(1.0, 1, recipe=recipe))
    status, said = run("study", loaded.path, "--list")
    assert status == 0 and "0 done" in said and "both-s1.json: of other shards, recipe" in said
    shards = open_shards(converted).split("train").fingerprint
    write_result(kept / "both-s1.json", row_result(1.0, 1, recipe=recipe, shards=shards))
    status, said = run("study", loaded.path, "--report", "--html", page, "--runs", tmp_path / "runs")
    assert status == 0 and "1 of 4 trainings are done, 0 of 2 rows with every seed; on: P, 1 thread" in said
    for text in (said, (kept / "table.md").read_text(), page.read_text()):
        assert "Rows not yet run: raw." in text and "Claims not yet judged: masks." in text
        assert "undecided" not in text.replace("and is undecided otherwise", "")
    status, said = run("study", loaded.path, "--report", "--json", "--runs", tmp_path / "runs")
    rows = {row["row"]: row for row in json.loads(said)["rows"]}
    assert status == 0 and rows["both"]["mAP_spread"] is None and rows["raw"]["mAP_mean"] is None
    (damaged,) = kept.glob("*.json")
    damaged.write_text("{")
    status, said = run("study", loaded.path, "--list")
    assert status == 2 and said.count("\n") == 1 and "both-s1.json: no result of a study" in said


def test_the_committed_table_is_what_the_committed_results_say(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = {"flops": {"network_tflop": 1.0, "loss_tflop": 0.0}}
    monkeypatch.setattr("maskreid_dist.study.state.run_plan", lambda *_: plan)
    monkeypatch.chdir(ROOT)
    folder = ROOT / "launch" / "studies"
    state = look(load_study(folder / "paper_walkers.toml"), folder / "results" / "paper_walkers")
    assert state.done and not state.stale
    summary = summarise(state)
    kept = folder / "results" / "paper_walkers"
    assert (kept / "table.md").read_text() == markdown(summary)
    assert (kept / "rows.csv").read_text() == rows_csv(summary)
