"""The program for a GPU machine: every step in the interpreter, nothing imported that such a machine lacks,
no step in the way of the next."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from maskreid_kernels.bench.command_line import main
from maskreid_kernels.bench.gpu import checks, program
from maskreid_kernels.bench.gpu.results import Figure
from maskreid_kernels.bench.gpu.setting import Setting, changed
from maskreid_kernels.bench.predict import CARDS
from maskreid_kernels.bench.predicted_figures import predicted_figures
from test_bench_predictions import all_programs

ROOT = Path(__file__).parent.parent
# What a GPU machine is known to have, and what these need.
THERE = """
torch torchgen functorch triton nvidia numpy sympy mpmath networkx jinja2 markupsafe filelock fsspec
typing_extensions setuptools _distutils_hack pkg_resources pytest _pytest pluggy iniconfig packaging pygments
hypothesis _hypothesis_globals _hypothesis_ftz_detector _hypothesis_pytestplugin sortedcontainers attr attrs
py xdist execnet matplotlib mpl_toolkits kiwisolver contourpy cycler pyparsing dateutil six PIL fontTools
pylab optree
""".split()
# In every process of the run: a module of another package cannot be imported, and looks as if it were not
# installed.
BLOCK = f"""
import importlib.machinery, sys, sysconfig
THERE = {THERE!r}
SITE = sysconfig.get_paths()["purelib"]
class Sieve(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        spec = super().find_spec(name, path, target)
        known = "." in name or name in THERE or name in sys.stdlib_module_names
        return spec if known or spec is None or not (spec.origin or "").startswith(SITE) else None
sys.meta_path = [Sieve if finder is importlib.machinery.PathFinder else finder for finder in sys.meta_path]
"""


LOSSES = ("ranking", "batch_hard", "n_pair", "all_pairs", "circle", "supervised_contrastive")
PROMISED = {
    "exit status of the tests": 0.0,
    "repeats with other bits": 0.0,
    "counts beside sorted measures, good images in front: that differ": 0.0,
    "counts beside sorted measures, good images anywhere: that differ": 0.0,
    "counts 3368 x 1048576, D = 2048, good images in front": 150.0,
    "batch_hard, D = 2048, to the product": 1.25,
    "batch_hard, D = 2048, times faster than chunked mining": 1.3,
    "ranking, D = 2048, 0.1 % violators, to the product": 1.5,
    "ranking, D = 2048, 50 % violators, to the product": 3.6,
    "batch_hard symmetric, D = 2048, to the product": 0.7,
    "ranking symmetric, D = 2048, 0.1 % violators, to the product": 1.2,
    "ranking symmetric, D = 2048, 50 % violators, to the product": 2.4,
    "ranking symmetric, D = 2048, 0.1 % violators, gradient beside rectangular": 0.05,
    "ranking symmetric, D = 2048, 50 % violators, gradient beside rectangular": 0.05,
    **{
        f"{name} symmetric, D = 2048, gradient beside rectangular": 0.05
        for name in ("batch_hard", "n_pair", "circle")
    },
    "ranking 32768, D = 256, times faster than eager": 8.0,
    "ranking 32768, D = 256, times faster than compiled": 3.0,
    "n_pair, D = 2048, to the product": 3.3,
    "supervised_contrastive, D = 2048, to the product": 3.3,
    "batch_hard 1048576, peak": 256.0,
    "ranking 1048576, peak": 512.0,
    **{f"{loss} gradient error beside eager's": 1.0 for loss in LOSSES},
    **{f"{loss} 256 to 8192, auto beside the best of eager and compiled": 1.0 for loss in LOSSES},
}


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


@pytest.mark.timeout(900)  # half a minute of one core, on a machine that others may use too
def test_a_dry_run_walks_every_step_with_what_a_gpu_machine_has(tmp_path: Path) -> None:
    """From a bare checkout: no package installed, no git on the path."""
    (tmp_path / "sitecustomize.py").write_text(BLOCK)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"PYTHONPATH": str(tmp_path), "PATH": "/nowhere", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    script = ROOT / "kernels" / "bench" / "gpu.py"
    command = [sys.executable, str(script), "--dry-run", "--output", str(tmp_path / "out")]
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    found = lines(tmp_path / "out")
    assert found[0]["dry"] is True and found[0]["machine"]["commit"] == ""
    steps = list(dict.fromkeys(line["step"] for line in found[1:]))
    assert steps == list(program.SECONDS) and steps[0] == "tests"
    assert [line["failure"] for line in found[1:] if line["failure"]] == []
    table = (tmp_path / "out" / "table.md").read_text()
    assert table.count("\n| ") == len(found) + 1 and "figures mean nothing" in table  # two lines of headings
    promised = {line["figure"]["key"]: line["figure"]["bar"] for line in found[1:] if line["figure"]}
    assert {key: bar for key, bar in promised.items() if bar is not None} == PROMISED
    predicted = set(predicted_figures(all_programs(), CARDS["H100"]))
    measured = [
        line["figure"]["key"]
        for line in found[1:]
        if line["step"] not in ("tests", "repeats", "agreement", "tiles")
    ]
    assert [key for key in measured if key not in predicted and not key.endswith("gradient error")] == []


def test_the_block_blocks(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(BLOCK)
    names = ("typer", "pydantic", "webdataset")
    code = f"import importlib.util, numpy; print(*map(importlib.util.find_spec, {names}))"
    command = [sys.executable, "-c", code]
    ran = subprocess.run(command, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)
    assert ran.stdout == "None None None\n", ran.stderr


def steps_of(*measures: Callable[[Setting], Iterator[Figure]]) -> list[program.Step]:
    return [program.Step(f"step {number}", 60.0, measure) for number, measure in enumerate(measures)]


def good(setting: Setting) -> Iterator[Figure]:
    yield Figure("good", 1.0, "ms").promised(2.0)


def raising(setting: Setting) -> Iterator[Figure]:
    yield Figure("before", 1.0, "ms")
    raise RuntimeError("out of luck\nand a second line")


def overrunning(setting: Setting) -> Iterator[Figure]:
    yield Figure("before the alarm", 1.0, "ms")
    try:
        signal.raise_signal(signal.SIGALRM)
    except program.Overrun as error:  # as a compiler does that wraps whatever is raised in it
        raise ValueError("wrapped") from error
    yield Figure("never", 1.0, "ms")


def test_a_step_that_fails_or_overruns_is_recorded_and_the_next_goes_on(tmp_path: Path) -> None:
    kept = program.run(steps_of(raising, overrunning, good), Setting(True, tmp_path), 3600.0)
    assert not kept
    found = [
        (line["step"], line["figure"] and line["figure"]["key"], line["failure"])
        for line in lines(tmp_path)[1:]
    ]
    (alarm,) = [failure for step, _, failure in found if step == "step 1" and failure]
    assert found == [
        ("step 0", "before", ""),
        ("step 0", None, "RuntimeError: out of luck"),
        ("step 1", "before the alarm", ""),
        ("step 1", None, alarm),
        ("step 2", "good", ""),
    ] and alarm.startswith("took longer than its")
    assert program.run(steps_of(good), Setting(True, tmp_path), 3600.0)


def test_results_are_there_while_the_step_runs(tmp_path: Path) -> None:
    seen: list[int] = []

    def watching(setting: Setting) -> Iterator[Figure]:
        for number in range(3):
            seen.append(len(lines(tmp_path)))
            yield Figure(f"{number}", None, "ms")

    program.run(steps_of(watching), Setting(True, tmp_path), 3600.0)
    assert seen == [1, 2, 3]


def test_nothing_is_left_for_a_step_without_time(tmp_path: Path) -> None:
    assert not program.run(steps_of(good), Setting(True, tmp_path), -1.0)
    assert lines(tmp_path)[1]["failure"] == "took longer than its 0 s"


def test_an_idle_backward_keeps_no_promise() -> None:
    idle = Figure("loss", 1.1, "x", active=0.3).promised(1.25)
    assert idle.value is None and "only 30 %" in idle.note and idle.promise and not idle.promise.kept
    busy = Figure("loss", 1.1, "x", active=0.6).promised(1.25)
    assert busy.promise and busy.promise.kept


def test_bad_options_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gpu", "nothing"]) == 2 and main(["gpu", "--budget", "0"]) == 2
    if not torch.cuda.is_available():
        assert main(["gpu"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2 + (not torch.cuda.is_available()) and all(": error: " in line for line in errors)


def test_changed_constants_come_back() -> None:
    with changed(program, FIGURES=()):
        assert program.FIGURES == ()
    assert len(program.FIGURES) == len(program.SECONDS) - 1
    with pytest.raises(AttributeError), changed(program, NO_SUCH=1):
        pass


def test_make_runs_the_same_tests() -> None:
    text = (ROOT / "Makefile").read_text()
    listed = re.search(r"TRITON_TESTS := \$\(addprefix tests/test_kernels_,(.*?)\)\n", text, re.DOTALL)
    assert listed and listed[1].replace("\\\n", " ").split() == [f"{name}.py" for name in checks.TESTS]
    assert all(path.is_file() for path in checks.test_files())
