"""How many launches a loss call costs on a GPU: below some thousand rows they are its time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
# (operators of torch, Triton launches, times the host waits) at N = 1024, D = 256, float32. Lower them, never
# raise them.
BOUNDS = {
    "batch_hard": (13, 4, 0),
    "ranking": (14, 5, 1),
    "n_pair": (45, 9, 1),
    "all_pairs": (45, 9, 1),
    "circle": (54, 9, 1),
    "supervised_contrastive": (52, 9, 1),
}


def test_launches_stay_within_their_bounds() -> None:
    script = Path(__file__).parent / "launch_counts.py"
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    ran = subprocess.run([sys.executable, script, "--json"], env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert set(found) == set(BOUNDS)
    for name, bounds in BOUNDS.items():
        own = found[name]["triton"]
        counts = (own["operators"], own["triton"], own["waits"])
        assert own["triton"] > 0 and own["operators"] > 0, name
        assert all(number <= bound for number, bound in zip(counts, bounds, strict=True)), (
            name,
            counts,
            own["of"],
        )
