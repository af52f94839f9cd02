"""For all tests: how Triton programs run, and no clock in Hypothesis."""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

# Without a GPU, Triton programs run in its interpreter. Triton reads the variable when a kernel is decorated,
# so it must stand before the first import of one.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# As `make test` has it: ranks that are compared with this process have a thread each.
if "OMP_NUM_THREADS" not in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)

settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

try:
    from faster_interpreter import patch_once_a_launch
except ImportError:  # no Triton here, or one whose interpreter works otherwise: its tests take longer
    pass
else:
    patch_once_a_launch()


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """As they were: a training in this process ignores SIGTERM while it leaves, and so would every program
    that a later test starts."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        if handler is not None:  # none of Python's
            signal.signal(number, handler)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What `make faults` measured: LEFT_PROPERTY of nodes.py, which not every environment can import."""
    reports = [report for found in terminalreporter.stats.values() for report in found]
    took = {
        report.nodeid: value
        for report in reports
        for name, value in getattr(report, "user_properties", ())
        if name == "seconds_until_all_had_left"
    }
    if took:
        terminalreporter.section("seconds from what went wrong until everybody had left")
        for test, value in took.items():
            terminalreporter.line(f"{value}: {test}")


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small shards, a few a split, of `write_market`. Read only."""
    from market import write_market  # here: the tests of the kernels run where no shards can be made
    from maskreid_shards import convert_market1501

    folder = tmp_path_factory.mktemp("converted")
    convert_market1501(write_market(folder / "market"), folder / "out", shard_bytes=30_000)
    return folder / "out"


@pytest.fixture
def shards(converted: Path, tmp_path: Path) -> Path:
    """A copy of `converted` that a test may spoil."""
    return shutil.copytree(converted, tmp_path / "out")
