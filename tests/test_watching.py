"""What a training tells while it runs: where the time goes, where it comes from."""

import os
import subprocess
from contextlib import nullcontext
from pathlib import Path
from typing import ClassVar

import pytest
import torch
import torch.distributed as dist

from gloo import run_ranks
from maskreid_dist.training.meter import Meter
from maskreid_dist.training.origin import commit_of, hosts
from maskreid_dist.training.run_folder import remove_stale_stop
from maskreid_dist.training.step_clock import AWAY, StepClock
from maskreid_kernels import ranking_loss
from maskreid_kernels.ranks import RankLayout, gather_rows, watched_gathers


@pytest.fixture
def ticks(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that says these times, one after the other."""
    times: list[float] = []
    monkeypatch.setattr("time.perf_counter", lambda: times.pop(0))
    return times


def test_a_phase_counts_for_itself_alone(ticks: list[float]) -> None:
    ticks += [0, 1, 3, 3, 6, 7, 8, 10, 15, 20]
    clock = StepClock(torch.device("cpu"))  # 0
    with clock.phase("data"):  # 1 to 3
        pass
    with clock.phase("loss"), clock.phase("gather"):  # 3, 6 to 7, 8
        pass
    clock.end_step()  # 10
    with clock.phase(AWAY):  # 15 to 20
        pass
    ticks += [21]
    seconds, phases = clock.take()
    assert seconds == 1 + 2 + (3 + 1) + 1 + (2 + 5 + 1)
    assert phases == {"data_ms": 2000, "ranks_ms": 0, "forward_ms": 0, "gather_ms": 1000, "loss_ms": 4000} | {
        "backward_ms": 0,
        "optimizer_ms": 0,
        "other_ms": 9000,
    }
    ticks += [25]
    assert clock.take() == (4.0, {name: 4000.0 if name == "other_ms" else 0.0 for name in phases})


def test_a_phase_ends_with_an_error(ticks: list[float]) -> None:
    ticks += range(10)
    clock = StepClock(torch.device("cpu"))
    with pytest.raises(KeyError), clock.phase("forward"):
        raise KeyError
    assert clock.within == ["other"]


class Event:
    """A CUDA event; the GPU gets to it when `done` says so."""

    done = 0
    made: ClassVar[list["Event"]] = []
    waits: ClassVar[list[int]] = []

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.number = len(Event.made)
        Event.made.append(self)

    def query(self) -> bool:
        return self.number < Event.done

    def synchronize(self) -> None:
        Event.waits.append(self.number)
        Event.done = max(Event.done, self.number + 1)

    def elapsed_time(self, end: "Event") -> float:
        assert self.query() and end.query(), "the GPU has not been there"
        return 1000.0 * (end.number - self.number)


def test_a_gpu_s_events_are_read_when_they_are_over(monkeypatch: pytest.MonkeyPatch) -> None:
    Event.done, Event.made, Event.waits = 0, [], []
    monkeypatch.setattr("torch.cuda.Event", Event)
    clock = StepClock(torch.device("cuda"))
    for _ in range(3):
        with clock.phase("forward"):
            pass
        clock.end_step()
        Event.done += 2  # the GPU lags
    assert Event.waits == []
    assert len(clock.marks) > 1
    seconds, phases = clock.take()
    assert Event.waits == [len(Event.made) - 1]
    assert seconds == len(Event.made) - 1
    assert phases["forward_ms"] == 1000.0
    assert len(clock.marks) == 1


def test_a_record_is_of_its_own_steps(ticks: list[float]) -> None:
    ticks += [0, 1, 2, 4, 5, 6]
    clock = StepClock(torch.device("cpu"))
    meter = Meter(clock, torch.device("cpu"))
    for loss in (1.0, 3.0):
        meter.add({"loss": torch.tensor(loss)}, 8)
        clock.end_step()  # 1, 2
    first = meter.take(0.5, 0)  # 4
    assert (first["loss"], first["images_per_second"], first["step_ms"]) == (2.0, 16 / 4, 2000)
    meter.add({"loss": torch.tensor(5.0)}, 8)
    clock.end_step()  # 5
    assert meter.take(0.5, 0)["images_per_second"] == 8 / 2


def _gathers(rank: int, world: int, folder: Path) -> None:
    seen = []
    rows = torch.randn(4, 3, generator=torch.Generator().manual_seed(rank))
    labels = torch.tensor([0, 0, 1, 1])
    with watched_gathers(lambda: seen.append("gather") or nullcontext()):  # type: ignore[func-returns-value]
        ranking_loss(rows, labels, group=dist.group.WORLD)
    assert len(seen) >= 2  # rows, labels
    before = len(seen)
    ranking_loss(rows, labels, group=dist.group.WORLD)
    assert len(seen) == before


def test_gathers_of_a_loss_are_watched(tmp_path: Path) -> None:
    run_ranks(_gathers, 2, tmp_path, tmp_path)
    layout = RankLayout(None, 0, (2,))
    with watched_gathers(lambda: pytest.fail("nothing is gathered")):
        assert gather_rows(torch.ones(2, 1), layout).shape == (2, 1)


def test_only_a_stop_request_of_before_is_removed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stop = tmp_path / "stop"
    remove_stale_stop(stop, 100.0)
    stop.touch()
    os.utime(stop, (100, 100))
    remove_stale_stop(stop, 100.0)
    assert stop.exists() and capsys.readouterr().out == ""
    remove_stale_stop(stop, 100.5)
    assert not stop.exists() and str(stop) in capsys.readouterr().out


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    done = subprocess.run(
        ["git", "-C", folder, *identity, *arguments], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def test_the_commit_is_that_of_the_sources(tmp_path: Path) -> None:
    assert commit_of(tmp_path) is None
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "a")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert commit_of(package) == head
    installed = tmp_path / "environment"
    installed.mkdir()
    (installed / "__init__.py").write_text("")
    assert commit_of(installed) is None  # inside a checkout, and not of it
    (package / "__init__.py").write_text("x = 1")
    assert commit_of(package) == f"{head}+changes"


def test_hosts_with_their_ranks() -> None:
    assert hosts(["a", "a", "b", "a", "b"]) == ["a: 0-1, 3", "b: 2, 4"]
