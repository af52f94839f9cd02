"""The demo's whole path, small: Ctrl-C and go on, the figures, the report."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from held_training import HELD, STEP
from maskreid_dist.model.checkpoint import find_checkpoint

ROOT = Path(__file__).parent.parent
STEPS = 12
SMALL = {
    "data.height": 36,
    "data.width": 14,
    "data.resize_height": 40,
    "data.resize_width": 16,
    "model.width": 0.125,
    "batch.identities": 4,
    "batch.images": 2,
    "optimizer.steps": STEPS,
    "run.log_every": 1,
    "name": "small",
}


def command(program: list[str], runs: Path) -> list[str]:
    settings = [word for key, value in SMALL.items() for word in ("--set", f"{key}={value}")]
    return [sys.executable, *program, "demo", "--runs", str(runs), *settings]


def environment() -> dict[str, str]:
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in ("", "kernels", "shards"))
    }


def start(program: list[str], runs: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        command(program, runs),
        cwd=ROOT,
        env=environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def read_until(words: str, demo: "subprocess.Popen[str]") -> str:
    """What it says up to the line with these words, or to its end."""
    said = ""
    assert demo.stdout
    for line in demo.stdout:
        said += line
        if words in line:
            break
    return said


def stopped_demo(runs: Path) -> str:
    """What a demo says that gets a Ctrl-C after step 3; the training goes on when that has been noted."""
    os.mkfifo(runs / "release")
    release = os.open(runs / "release", os.O_RDWR)  # also for reading: opening it waits for nobody
    demo = start([str(ROOT / "tests" / "held_demo.py")], runs)
    try:
        said = read_until(HELD, demo)
        assert HELD in said, said
        demo.send_signal(signal.SIGINT)
        said += read_until("stopping", demo)
    finally:
        os.write(release, b"x")
        said += demo.communicate()[0]
        os.close(release)
    assert demo.returncode == 75, said
    return said


def test_demo_stops_on_ctrl_c_continues_and_reports(tmp_path: Path) -> None:
    run = tmp_path / "small"
    output = stopped_demo(tmp_path)
    assert "stopped and saved; the same command continues" in output
    assert "Traceback" not in output
    stopped_at = find_checkpoint(run)[0].step
    assert stopped_at == STEP + 1  # seen when the next step begins, which is finished

    demo = start(["-m", "maskreid_dist"], tmp_path)
    output = demo.communicate()[0]
    assert demo.returncode == 0, output
    assert f"continuing from {run / 'checkpoints'}/step_{stopped_at:08d}" in output.replace("\n", "")
    metrics = run / "metrics.jsonl"
    assert [json.loads(line)["step"] for line in metrics.read_text().splitlines()] == list(
        range(1, STEPS + 1)
    )
    figures = json.loads((run / "metrics.json").read_text())
    assert figures.pop("unit") == "percent"
    assert set(figures) == {"untrained", "histogram", "trained"}
    for name, values in figures.items():
        assert set(values) == {"mAP_hits", "mAP_trapezoid", "mINP", "rank1", "rank5", "rank10"}, name
        assert values["rank1"] <= values["rank5"] <= values["rank10"]
        assert f"{values['mAP_hits']:.2f}" in output
        assert values["mAP_trapezoid"] <= values["mAP_hits"]
    assert abs(figures["histogram"]["mAP_hits"] - 24.6) < 1
    html = (run / "report.html").read_text()
    assert f"<td>{figures['trained']['mAP_hits']:.2f}</td>" in html
    assert 15 <= html.count("class='query'") <= 48
    assert (run / "report.png").stat().st_size > 10_000

    # The same again as JSON: nothing is left to train, and nothing else stands on standard output.
    words = [*command(["-m", "maskreid_dist"], tmp_path), "--json"]
    again = subprocess.run(words, cwd=ROOT, env=environment(), text=True, capture_output=True)
    assert again.returncode == 0, again.stderr
    said = json.loads(again.stdout)
    assert {name: said[name] for name in figures} == figures and said["steps"] == STEPS
