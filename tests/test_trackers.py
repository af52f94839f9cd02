"""Other trackers than TensorBoard, by stand-ins of their packages: what they are told, and what their lack
says."""

import json
import sqlite3
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer.testing import CliRunner

from maskreid_dist.config import Config
from maskreid_dist.errors import RecipeError, UserError
from maskreid_dist.recipe import load_recipe
from maskreid_dist.run_directory import TRACKED
from maskreid_dist.training.environment import Place
from maskreid_dist.training.preparing import prepare
from maskreid_dist.training.run_log import RunLog
from maskreid_dist.training.trackers import TensorBoard, Trackers, check_trackers
from nodes import run_nodes, write_recipe

OTHERS = ("wandb", "trackio", "mlflow")


class Package:
    """Remembers what is called on it, in order; `fails`: the names that raise."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.fails: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            if name in self.fails:
                raise RuntimeError(f"no {name} today\nand more")
            self.calls.append((name, args, kwargs))
            if name == "start_run":
                return SimpleNamespace(info=SimpleNamespace(run_id="the id"))
            return self  # wandb.init makes a run, which has log and finish

        return call

    def names(self) -> list[str]:
        return [name for name, _, _ in self.calls]


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> dict[str, Package]:
    made = {name: Package() for name in OTHERS}
    for name, package in made.items():
        monkeypatch.setitem(sys.modules, name, package)
    return made


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return load_recipe(
        write_recipe(tmp_path), ['run.tracker=["wandb", "trackio", "mlflow"]', "run.project=reid"]
    )


def record(run: Path, config: Config, start: int = 0) -> list[str]:
    """Two records and an evaluation; returns what was said."""
    said: list[str] = []
    with RunLog(run, start, 4, config) as log:
        assert log.trackers
        log.trackers.say = said.append
        for step in (start + 1, start + 2):
            log.write(step, {"loss": 1.5, "images_per_second": 8.0})
        log.write_evaluation(start + 2, {"mAP_hits": 12.5, "rank1": 20.0, "mINP": 3.0}, True)
    return said


def test_each_is_told_the_same(tmp_path: Path, config: Config, packages: dict[str, Package]) -> None:
    record(tmp_path, config)
    recipe = config.model_dump(mode="json")
    for name in ("wandb", "trackio"):
        package = packages[name]
        assert package.names() == ["init", "log", "log", "log", "finish"]
        started = package.calls[0][2]
        assert (started["project"], started["config"], started["resume"]) == ("reid", recipe, "allow")
        assert package.calls[1][1:] == (({"loss": 1.5, "images_per_second": 8.0},), {"step": 1})
        assert package.calls[3][1:] == (({"mAP_hits": 12.5, "rank1": 20.0, "mINP": 3.0},), {"step": 2})
    mlflow = packages["mlflow"]
    assert mlflow.names() == ["set_experiment", "start_run", "log_params", *["log_metrics"] * 3, "end_run"]
    assert mlflow.calls[0][1] == ("reid",)
    assert mlflow.calls[1][2] == {"run_name": "tiny"}
    assert mlflow.calls[2][1][0]["optimizer.lr"] == 0.001
    assert mlflow.calls[4][1:] == (({"loss": 1.5, "images_per_second": 8.0},), {"step": 2})
    assert not (tmp_path / "tensorboard").exists()
    assert packages["wandb"].calls[0][2]["id"].startswith("tiny-")


def offline(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package itself, on this machine alone; skips where it is not installed."""
    for variable, value in {
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "TRACKIO_DIR": str(folder / "trackio"),
        "MLFLOW_TRACKING_URI": f"file:{folder}/mlflow",
        "MLFLOW_ALLOW_FILE_STORE": "true",  # mlflow 3.17 refuses folders without it
        "HF_HUB_OFFLINE": "1",
    }.items():
        monkeypatch.setenv(variable, value)
    pytest.importorskip(name)


@pytest.mark.parametrize("name", OTHERS)
def test_the_packages_themselves(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run and its continuation are one run there, with the values of both."""
    offline(name, tmp_path, monkeypatch)
    config = load_recipe(write_recipe(tmp_path), [f'run.tracker=["{name}"]', "run.project=reid"])
    run = tmp_path / "tiny"
    run.mkdir()
    assert record(run, config) == [] == record(run, config, start=2)
    assert "left out" not in "".join(capsys.readouterr())
    (known,) = {json.loads((run / TRACKED).read_text())[name]}
    if name == "wandb":
        import wandb

        wandb.teardown()  # its own process writes until then
        files = list(run.glob(f"wandb/offline-run-*/run-{known}.wandb"))
        assert len(files) == 2 and all(b"images_per_second" in file.read_bytes() for file in files)
    elif name == "mlflow":
        from mlflow.tracking import MlflowClient

        assert [point.step for point in MlflowClient().get_metric_history(known, "loss")] == [1, 2, 3, 4]
        assert MlflowClient().get_run(known).data.params["optimizer.lr"] == "0.001"
    else:
        (database,) = (tmp_path / "trackio").glob("reid*.db")
        with sqlite3.connect(database) as connection:
            rows = connection.execute("select step from metrics where run_name = ? order by step", (known,))
            assert {step for (step,) in rows} == {1, 2, 3, 4}


def test_a_resumed_run_goes_on_under_its_name(
    tmp_path: Path, config: Config, packages: dict[str, Package]
) -> None:
    record(tmp_path, config)
    before = {name: package.calls[:] for name, package in packages.items()}
    for package in packages.values():
        package.calls.clear()
    record(tmp_path, config, start=2)
    assert packages["wandb"].calls[0][2]["id"] == before["wandb"][0][2]["id"]
    assert packages["trackio"].calls[0][2]["name"] == before["trackio"][0][2]["name"]
    assert packages["mlflow"].calls[1] == ("start_run", (), {"run_id": "the id"})
    assert "log_params" not in packages["mlflow"].names()


@pytest.mark.parametrize("fails", ["init", "log", "finish"])
def test_a_tracker_that_fails_is_not_worth_a_training(
    tmp_path: Path,
    config: Config,
    packages: dict[str, Package],
    fails: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    packages["wandb"].fails = {fails}
    said = record(tmp_path, config)
    words = f"warning: wandb is left out from here on (RuntimeError: no {fails} today)"
    if fails == "init":  # before the test listens
        assert words in capsys.readouterr().err
    else:
        assert said == [words]
    assert packages["mlflow"].names()[-1] == "end_run"
    assert packages["trackio"].names() == ["init", "log", "log", "log", "finish"]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


def test_a_missing_package_is_one_line_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in OTHERS:
        monkeypatch.setitem(sys.modules, name, None)  # importing it raises ImportError
        with pytest.raises(
            UserError, match=rf'^run.tracker names "{name}".* pip install {name}, or leave it out$'
        ):
            check_trackers(["tensorboard", name])
    check_trackers(["tensorboard"])
    monkeypatch.setattr("maskreid_dist.training.preparing._check_deepspeed", lambda: None)
    named = ['run.tracker=["wandb"]']
    with pytest.raises(UserError, match=r'^run.tracker names "wandb"'):
        prepare(write_recipe(tmp_path), named, Place(0, 0, 2))
    prepare(write_recipe(tmp_path), named, Place(1, 1, 2))  # rank 0 alone needs it


def test_an_unknown_tracker(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"run\.tracker"):
        load_recipe(write_recipe(tmp_path), ['run.tracker=["neptune"]'])


def test_none_at_all(tmp_path: Path) -> None:
    config = load_recipe(write_recipe(tmp_path), ["run.tracker=[]"])
    trackers = Trackers(tmp_path, 0, config, print)
    trackers.log({"loss": 1.0}, 1)
    trackers.finish()
    assert list(tmp_path.iterdir()) == [tmp_path / "tiny.toml"]


def test_the_point_at_the_resumed_step_stays(tmp_path: Path) -> None:
    for start, last in ((0, 4), (2, 5)):
        board = TensorBoard(tmp_path, start)
        for step in range(start + 1, last + 1):
            board.log({"loss": 10.0 * start + step}, step)
        board.finish()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    points = [(point.step, point.value) for point in events.Scalars("loss")]
    assert points == [(1, 1.0), (2, 2.0), (3, 23.0), (4, 24.0), (5, 25.0)]


def test_profile_traces_a_few_steps(tmp_path: Path) -> None:
    from maskreid_dist.cli.app import app

    arguments = ["--runs", str(tmp_path), "--profile", "--set", "run.checkpoint_every=100"]
    (node,) = run_nodes([[write_recipe(tmp_path), *arguments, "--set", "optimizer.steps=6"]])
    assert node.status == 0, node.output
    trace = tmp_path / "tiny" / "profile" / "step_00000003.json"
    assert f"profile of 3 steps: {trace}" in node.output
    events = json.loads(trace.read_text())["traceEvents"]
    for phase in ("data", "forward", "loss", "backward", "optimizer"):
        assert sum(event.get("name") == f"phase: {phase}" and event["ph"] == "X" for event in events) >= 3, (
            phase
        )
    assert "phase: forward" in trace.with_suffix(".txt").read_text()
    assert "--profile" in CliRunner().invoke(app, ["train", "--help"], env={"COLUMNS": "200"}).output
