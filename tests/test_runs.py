"""`maskreid runs` and `maskreid top`: what they say of run directories, also of torn and foreign ones."""

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from maskreid_dist.report.run_state import read_run
from maskreid_dist.report.run_view import ago, run_view, sparkline
from maskreid_dist.training.run_folder import lock_run_directory
from program import run

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)
CONFIG = {
    "loss": {"name": "ranking"},
    "batch": {"sampling": "pk", "identities": 16, "images": 4},
    "optimizer": {"name": "adamw", "lr": 0.003},
}


def record(step: int, **values: Any) -> str:
    time = NOW - timedelta(seconds=100 - step)
    return json.dumps({"step": step, "time": time.isoformat(timespec="milliseconds"), **values}) + "\n"


def make_run(folder: Path, *saved: int, steps: int | None = 40) -> Path:
    folder.mkdir()
    for step in saved:
        (folder / "checkpoints" / f"step_{step:08d}").mkdir(parents=True)
    if steps is not None:
        facts = {
            "steps": steps,
            "started": NOW.isoformat(),
            "config": CONFIG,
            "hosts": ["node0: 0-1"],
            "commit": "abc",
        }
        (folder / "run.json").write_text(json.dumps(facts))
    step_time = {"images_per_second": 800.0, "step_ms": 80.0, "forward_ms": 30.0, "backward_ms": 50.0}
    lines = record(10, loss=4.0, **step_time) + record(20, loss=3.0, **step_time) + record(20, mAP_hits=12.5)
    (folder / "metrics.jsonl").write_text(lines + record(30, loss=2.0, **step_time) + '{"step": 31, "lo')
    return folder


def test_the_table_of_runs(tmp_path: Path) -> None:
    make_run(tmp_path / "ended", 40)
    make_run(tmp_path / "broken", 20)
    make_run(tmp_path / "fresh")
    make_run(tmp_path / "old", 20, steps=None)
    for name, status in (("ended", 0), ("broken", 2)):
        (tmp_path / name / "status.json").write_text(json.dumps({"status": status}))
    (tmp_path / "no_run").mkdir()
    held = lock_run_directory(make_run(tmp_path / "live", 20))
    status, output = run("runs", tmp_path, "--json")
    assert status == 0
    rows = {Path(row["run"]).name: row for row in json.loads(output)}
    states = {"ended": "done", "broken": "saved", "fresh": "empty", "old": "saved", "live": "training"}
    assert {name: row["state"] for name, row in rows.items()} == states
    assert (rows["live"]["step"], rows["live"]["steps"], rows["live"]["loss"]) == (30, 40, 2.0)
    assert (rows["ended"]["step"], rows["old"]["steps"]) == (40, None)
    assert rows["live"]["recipe"] == "ranking, 16 x 4, adamw 0.003"
    assert [rows[name]["status"] for name in ("ended", "broken", "fresh")] == [0, 2, None]
    status, output = run("runs", tmp_path)
    assert status == 0
    assert "saved, status 2" in output and "done, status" not in output
    for words in ("broken", "30/40", "30/?", "12.50 @ 20", "2.000", "saved: ended before its last step"):
        assert words in output
    assert not isinstance(held, str)
    held.close()
    assert read_run(tmp_path / "live").state == "saved"


def test_a_training_gets_the_lock_that_a_look_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process holds the shared lock until it reads a line, which it gets while the training waits."""
    run_folder = make_run(tmp_path / "live")
    (run_folder / "lock").touch()
    look = "import fcntl, sys; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_SH); print(); input()"
    command = [sys.executable, "-c", look, str(run_folder / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout
        holder.stdout.readline()
        with monkeypatch.context() as impatient:
            impatient.setattr("maskreid_dist.training.run_folder.LEFT_S", 0.0)
            assert isinstance(lock_run_directory(run_folder), str)
        monkeypatch.setattr("time.sleep", lambda seconds: holder.communicate("\n"))
        held = lock_run_directory(run_folder)
    assert not isinstance(held, str)


def test_top_looks_once(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "live", 20)
    (folder / "best.json").write_text(json.dumps({"step": 20, "mAP_hits": 12.5}))
    (folder / "events.jsonl").write_text(record(7, event="skipped", why="the gradients are not finite"))
    status, output = run("top", folder, "--once")
    assert status == 0
    for words in (
        str(folder),
        "━" * 60,
        "75%, step 30 of 40",
        "800 images/s, 80 ms a step",
        "forward 38 %, backward 62 %",
        "loss 2.0000 (least 2.0000)",
        "█▅▁",
        "mAP 12.50 at step 20",
        "best 12.50 @ 20",
        "step 7: skipped why the gradients are not finite",
        "saved: step_00000020",
        "hosts: node0: 0-1; commit abc",
    ):
        assert words in output, output
    assert run("top", folder)[1] == output  # no terminal here


def test_the_time_that_is_left(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "live")
    held = lock_run_directory(folder)
    console = Console(record=True, width=120, file=(tmp_path / "out").open("w"))
    console.print(run_view(read_run(folder), NOW))
    assert "about 1 s left" in console.export_text()
    assert "1 min ago" not in console.export_text()
    assert not isinstance(held, str)


@pytest.mark.parametrize("command", [("runs", "none"), ("top", "none"), ("top", ".")])
def test_what_is_no_run_is_one_line(tmp_path: Path, command: tuple[str, str]) -> None:
    status, output = run(command[0], tmp_path / command[1])
    assert status == 2
    assert output.count("\n") == 1 and str(tmp_path) in output


def test_no_runs_yet(tmp_path: Path) -> None:
    assert run("runs", tmp_path) == (0, f"{tmp_path}: no runs here\n")


def test_times_and_bars() -> None:
    spans = {5: "5 s ago", 119: "119 s ago", 120: "2 min ago", 7300: "2 h ago", 3 * 86400: "2026-11-23"}
    for seconds, text in spans.items():
        assert ago(NOW - timedelta(seconds=seconds), NOW) == text
    assert ago(None, NOW) == ""
    assert sparkline([1.0]) == "▁"
    assert sparkline(list(map(float, range(8)))) == "▁▂▃▄▅▆▇█"
    assert len(sparkline([0.0] * 500)) == 60
