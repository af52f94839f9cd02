"""The demo's whole path, small: Ctrl-C and go on, the figures, the report."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from maskreid_dist.checkpoint import find_checkpoint

ROOT = Path(__file__).parent.parent
SMALL = {
    "data.height": 36,
    "data.width": 14,
    "data.resize_height": 40,
    "data.resize_width": 16,
    "model.width": 0.125,
    "batch.identities": 4,
    "batch.images": 2,
    "optimizer.steps": 40,
    "run.log_every": 1,
    "name": "small",
}


def start(runs: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "maskreid_dist", "demo", "--runs", str(runs)]
    for key, value in SMALL.items():
        command += ["--set", f"{key}={value}"]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in ("", "kernels", "shards"))
    }
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def test_demo_stops_on_ctrl_c_continues_and_reports(tmp_path):
    run = tmp_path / "small"
    demo = start(tmp_path)
    metrics = run / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and len(metrics.read_text().splitlines()) >= 3):
        assert demo.poll() is None, demo.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    demo.send_signal(signal.SIGINT)
    output = demo.communicate(timeout=120)[0]
    assert demo.returncode == 75, output
    assert "stopped and saved; the same command continues" in output
    assert "Traceback" not in output
    stopped_at = find_checkpoint(run)[0].step
    assert 3 <= stopped_at < 40

    demo = start(tmp_path)
    output = demo.communicate(timeout=240)[0]
    assert demo.returncode == 0, output
    assert f"continuing from {run / 'checkpoints'}/step_{stopped_at:08d}" in output.replace("\n", "")
    assert [json.loads(line)["step"] for line in metrics.read_text().splitlines()] == list(range(1, 41))
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
    assert html.count("class='query'") == 9
    assert (run / "report.png").stat().st_size > 10_000
