"""A training on several machines, all of them this one: a launcher each, or a process each, with its own
arguments.

Processes without a launcher are forked from one that has imported torch and DeepSpeed (forked.py).
"""

import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from forked import Program, programs
from maskreid_dist.training.environment import free_port

ROOT = Path(__file__).parent.parent
GUARD_S = 900  # against a hang; nothing is measured by it
ERROR = "maskreid: error: "
# Names a file for the moment of a fault, by the clock that all processes of a machine have in common.
FAULT_AT = "FAULT_AT"
LEFT_PROPERTY = "seconds_until_all_had_left"  # of a test's report
LEFT_S = 15.0  # everybody has left by then where no collective hangs; asserted in `make faults` alone
# The launchers of a test: none, and a real one, which makes an expensive matrix.
LAUNCHERS = [None, pytest.param("deepspeed", marks=pytest.mark.faults)]
PYTHONPATH = os.pathsep.join(str(ROOT / part) for part in ("", "kernels", "shards", "tests"))

# The smallest network on tiny pictures, in one process a rank.
RECIPE = f"""
name = "tiny"
seed = 5
[data]
shards = "{ROOT}/shards/walkers"
height = 36
width = 14
resize_height = 40
resize_width = 16
workers = 0
[batch]
identities = 4
images = 2
[model]
width = 0.125
[optimizer]
lr = 0.001
steps = 4
schedule = "constant"
[run]
log_every = 1
checkpoint_every = 2
"""


@dataclass(frozen=True)
class Ended:
    """What a node said and how it ended. `seconds`: from the fault (`FAULT_AT`), or the first error's line of
    any node, until everything of all nodes had left; None without either, and without processes to read."""

    status: int
    output: str
    seconds: float | None = None

    @property
    def errors(self) -> list[str]:
        return [line.removeprefix(ERROR) for line in self.output.splitlines() if line.startswith(ERROR)]


def write_recipe(folder: Path, text: str = RECIPE) -> Path:
    path = folder / "tiny.toml"
    path.write_text(text)
    return path


def run_nodes(
    arguments: Sequence[Sequence[str | Path]],
    *,
    launcher: Path | None = None,
    script: Path = ROOT / "launch" / "train.py",
    variables: Mapping[str, str] | None = None,
    prefixes: Mapping[int, Sequence[str]] | None = None,
) -> list[Ended]:
    """Run `script` with its own arguments on each node, a rank a node, and wait until all have left.

    launcher: a folder, for `deepspeed` on each of them; without it the script is started as a launcher would.
    prefixes: by node, what its command is an argument of.
    """
    if launcher or prefixes:
        with tempfile.TemporaryDirectory() as folder:
            fault = Path(folder, "fault")
            more = {**(variables or {}), FAULT_AT: str(fault)}
            processes = start_nodes(
                arguments, launcher=launcher, script=script, variables=more, prefixes=prefixes
            )
            return wait_for(processes, fault)
    ranks = variables_of_ranks(len(arguments))
    return run_programs(script, arguments, [{**rank, **(variables or {})} for rank in ranks])


def run_programs(
    script: Path, arguments: Sequence[Sequence[str | Path]], variables: Sequence[Mapping[str, str]]
) -> list[Ended]:
    """Run `script` once for each of the arguments and its variables, at the same time, without a launcher."""
    common = clean_environment()
    with tempfile.TemporaryDirectory() as folder:
        logs = [Path(folder, str(number)) for number in range(len(arguments))]
        asked = [
            Program(str(script), tuple(map(str, own)), {**common, **more}, str(log))
            for own, more, log in zip(arguments, variables, logs, strict=True)
        ]
        kept = ("PATH", "HOME", "PYTHONPATH", "OMP_NUM_THREADS")
        server = programs(tuple((name, common[name]) for name in kept if name in common))
        statuses = server.run(asked, GUARD_S)
        return [
            Ended(status, log.read_text(errors="replace")) for status, log in zip(statuses, logs, strict=True)
        ]


def clean_environment() -> dict[str, str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return {**environment, "PYTHONPATH": PYTHONPATH}


def variables_of_ranks(size: int) -> list[dict[str, str]]:
    """As a launcher sets them. A local size of all: the nodes share the cores of this machine."""
    common = {"WORLD_SIZE": str(size), "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": str(size)}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [{**common, "RANK": str(rank)} for rank in range(size)]


def start_nodes(
    arguments: Sequence[Sequence[str | Path]],
    *,
    launcher: Path | None = None,
    script: Path = ROOT / "launch" / "train.py",
    variables: Mapping[str, str] | None = None,
    prefixes: Mapping[int, Sequence[str]] | None = None,
) -> "list[subprocess.Popen[str]]":
    size = len(arguments)
    ranks = variables_of_ranks(size)
    processes = []
    for rank, own in enumerate(arguments):
        environment = clean_environment()
        if launcher:
            hosts = launcher / "hosts"
            hosts.write_text("".join(f"node{node} slots=1\n" for node in range(size)))
            command = [
                sys.executable,
                "-m",
                "deepspeed.launcher.runner",
                "--hostfile",
                str(hosts),
                "--no_ssh",
            ]
            command += ["--node_rank", str(rank), "--master_addr", "127.0.0.1"]
            command += ["--master_port", ranks[rank]["MASTER_PORT"]]
        else:
            environment |= ranks[rank]
            command = [sys.executable]
        environment |= variables or {}
        command = [*(prefixes or {}).get(rank, ()), *command, str(script), *map(str, own)]
        processes.append(
            subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        )
    return processes


def wait_for(processes: "Sequence[subprocess.Popen[str]]", fault: Path | None = None) -> list[Ended]:
    """The nodes once all have left. fault: the file of FAULT_AT."""
    readings = [_Reading(process) for process in processes]
    try:
        for number, reading in enumerate(readings):
            reading.join(GUARD_S)
            assert not reading.is_alive(), f"not ended after {GUARD_S} s:\n{''.join(reading.lines)}"
            for other in processes[number + 1 :]:  # one that was stopped finds that the others have left
                with suppress(ProcessLookupError):
                    os.killpg(other.pid, signal.SIGCONT)
    finally:
        for process in processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    starts = [reading.error_at for reading in readings if reading.error_at is not None]
    if fault is not None and fault.exists():
        starts = [float(fault.read_text())]
    seconds = max(reading.ended_at for reading in readings) - min(starts) if starts else None
    return [
        Ended(process.returncode, "".join(reading.lines), seconds)
        for process, reading in zip(processes, readings, strict=True)
    ]


class _Reading(threading.Thread):
    """Reads what a node says until nothing of it is left, and notes when its first error came, and the
    end."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        super().__init__(daemon=True)
        self.process = process
        self.lines: list[str] = []
        self.error_at: float | None = None
        self.ended_at = math.nan
        self.start()

    def run(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            if self.error_at is None and line.startswith(ERROR):
                self.error_at = time.monotonic()
            self.lines.append(line)
        self.process.wait()
        self.ended_at = time.monotonic()


def check_left_in_time(nodes: Sequence[Ended], record_property: Callable[[str, object], None]) -> None:
    """All had left soon after what went wrong, where that was measured; `make faults` prints the seconds. A
    machine that is crowded (over twice as much load as processors) has no limit: most of it is its load."""
    seconds = nodes[0].seconds
    if seconds is not None:
        record_left(seconds, record_property)
        crowded = os.getloadavg()[0] > 2 * (os.cpu_count() or 1)
        assert crowded or seconds <= LEFT_S, f"{seconds:.1f} s until everybody had left\n{nodes[0].output}"


def record_left(seconds: float | None, record_property: Callable[[str, object], None]) -> None:
    """For the end of `make faults`."""
    took = "not measured" if seconds is None else f"{seconds:.1f} s"
    record_property(LEFT_PROPERTY, f"{took}, load {os.getloadavg()[0]:.1f}")
