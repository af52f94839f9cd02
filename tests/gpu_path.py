"""A pytest plugin: the kernels' tests on the path of a GPU, where there is none. `make kernels-gpu-path` runs
it.

    PYTHONPATH=tests python -m pytest -p gpu_path tests/test_kernels_triton_ranking.py

Tensors say they are on an H100 (pretend_device.py), every launch compiles for it and nothing runs
(pretend_driver.py). So numbers mean nothing: comparisons by kernel_checks are switched off, and another
assertion that fails ends its test as passed. What counts is the rest: the session fails where a test raises
something else, a program does not compile, a grid or its shared memory is out of range, or it spills more
than GPU_PATH_SPILLS bytes (64).

TRITON_CACHE_DIR: where compiled programs are kept; a temporary folder by default. GPU_PATH_SIZES=all: the
sizes and presets that a GPU runs; by default a subset, for CI. GPU_PATH_PART=1/2: every second test, so that
two processes share the work. GPU_PATH_OUT=FILE.json: the records.
"""

from __future__ import annotations

import json
import os
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)  # read when the first kernel is decorated
_folder = None
if "TRITON_CACHE_DIR" not in os.environ:
    _folder = tempfile.TemporaryDirectory(prefix="triton-cache-")
    os.environ["TRITON_CACHE_DIR"] = _folder.name

import pytest  # noqa: E402
import torch  # noqa: E402

import pretend_device  # noqa: E402
import pretend_driver  # noqa: E402

SPILL_LIMIT = int(os.environ.get("GPU_PATH_SPILLS", "64"))
pretend_device.pretend()
pretend_driver.install()
import kernel_checks  # noqa: E402  # asks whether there is a GPU

kernel_checks.VALUES = False
kernel_checks.ALL_SIZES = os.environ.get("GPU_PATH_SIZES") == "all"
_passed_over: Counter[str] = Counter()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep this process's part. Tests of one function and preset stay together: they share programs."""
    part, parts = (int(number) for number in os.environ.get("GPU_PATH_PART", "1/1").split("/"))

    def of(item: pytest.Item) -> int:
        preset = item.callspec.params.get("preset", "") if hasattr(item, "callspec") else ""
        return zlib.crc32(f"{item.nodeid.split('[')[0] if not preset else ''} {preset}".encode()) % parts

    items[:] = [item for item in items if of(item) == part - 1]


@pytest.hookimpl(hookwrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Iterator[None]:
    with pretend_device.PretendGpu():
        outcome: Any = yield
    if outcome.excinfo is not None and issubclass(outcome.excinfo[0], AssertionError):
        _passed_over[pyfuncitem.nodeid] += 1
        outcome.force_result(True)


@pytest.fixture(autouse=True)
def _no_numeric_derivatives(monkeypatch: pytest.MonkeyPatch) -> None:
    """gradcheck as one forward and backward."""

    def once(function: Any, inputs: Any, **_: Any) -> bool:
        inputs = inputs if isinstance(inputs, tuple) else (inputs,)
        function(*inputs).backward()
        return True

    monkeypatch.setattr(torch.autograd, "gradcheck", once)


def pytest_sessionfinish(session: pytest.Session) -> None:
    pretend_driver.records.read_binaries()
    if pretend_driver.records.problems(SPILL_LIMIT) and session.exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    if path := os.environ.get("GPU_PATH_OUT"):
        records = pretend_driver.records
        programs = [asdict(one) for one in records.compilations]
        Path(path).write_text(json.dumps({"programs": programs, "stubs": sorted(records.stubs)}, indent=1))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    records, write = pretend_driver.records, terminalreporter.write_line
    made = records.compilations
    terminalreporter.section("GPU path (compiled for sm_90, nothing has run)")
    cached = sum(one.cached for one in made)
    write(
        f"{len(made)} programs, {cached} of them from the cache; {sum(one.seconds for one in made):.0f} s of "
        "compiling"
    )
    write(f"{sum(records.launches.values())} launches, {len(records.stubs)} launcher stubs")
    for name in sorted({one.name for one in made}):
        own = [one for one in made if one.name == name]
        write(f"  {name}: {len(own)} programs, {records.launches[name]} launches, at most"
              f" {max(one.registers for one in own)} registers, {max(one.spills for one in own)} bytes "
              "spilled,"
              f" {max(one.shared for one in own) >> 10} KB shared")  # fmt: skip
    write(f"{sum(_passed_over.values())} tests ended at an assertion about values, which mean nothing here")
    for problem in records.problems(SPILL_LIMIT):
        write(f"FAILED {problem}", red=True)
