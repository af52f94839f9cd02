"""`make step-cost`: its verdict, of figures that are given."""

import os
import sys
from typing import Any

import pytest

import step_cost


@pytest.mark.parametrize(
    ("loop_s", "largest_mb", "load", "status", "verdicts"),
    [
        (1.09, 140.0, 5.0, 0, ["PASS", "PASS"]),
        (1.11, 140.0, 5.0, 1, ["MISS", "PASS"]),
        (1.09, 151.0, 5.0, 1, ["PASS", "MISS"]),
        (1.09, 140.0, 0.0, 1, ["MISS", "PASS", "PASS"]),  # wall time counts on an idle machine
    ],
)
def test_the_verdict(
    loop_s: float,
    largest_mb: float,
    load: float,
    status: int,
    verdicts: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def measured(function: Any, rows: int, micro_images: int, *rest: Any) -> Any:
        if function is step_cost.compare_steps:
            return {"bare": [(1.0, 1.0)] * 3, "whole": [(2.0, loop_s)] * 3}
        unsplit = not micro_images
        return [(rows * 3e6 if unsplit else largest_mb * 1e6 if rows == 1024 else 100e6), 1.0, 1.0]

    monkeypatch.setattr(step_cost, "measured", measured)
    monkeypatch.setattr(os, "getloadavg", lambda: (load, load, load))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(sys, "argv", ["step_cost.py", "--largest", "2048"])
    assert step_cost.main() == status
    said = capsys.readouterr().out.splitlines()
    assert [line[:4] for line in said if line[:4] in ("PASS", "MISS")] == verdicts
