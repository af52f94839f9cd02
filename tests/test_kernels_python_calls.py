"""What a loss costs on the host beside torch's operators does not grow unnoticed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from python_calls import LOSSES, python_calls

# Of 64 rows, forward and backward, by the dense backend. Until 2026-11-26: 72, 70, 74, 79, 80, 73.
MOST = {
    "ranking": 46,
    "batch_hard": 44,
    "n_pair": 48,
    "all_pairs": 53,
    "circle": 54,
    "supervised_contrastive": 47,
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_call_makes_no_more_calls_than_it_did(name: str) -> None:
    found = python_calls(LOSSES[name])
    assert found.total() <= MOST[name], "\n".join(f"{count} {call}" for call, count in found.most_common())
    assert found["compute"] == found["find_problem"] == found["choose_backend"] == 1


def test_the_tool_prints_them() -> None:
    tool = Path(__file__).parent / "python_calls.py"
    code = f"import sys; sys.path[:0] = {sys.path!r}; sys.argv = ['calls']"
    code += "\nimport python_calls; python_calls.main()"
    run = subprocess.run([sys.executable, "-c", code], cwd=tool.parent, capture_output=True, text=True)
    lines = [line.split() for line in run.stdout.splitlines()]
    assert [name for name, _ in lines] == list(MOST), run.stderr
    assert all(
        0 < int(calls) <= MOST[name] for name, calls in lines
    )  # fewer where Python inlines comprehensions
