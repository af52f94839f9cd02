"""A training on several machines, all of them this one: a launcher each, or a process each, with its own
arguments.

Processes without a launcher are forked from one that has imported torch and DeepSpeed (forked.py).
"""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from forked import Program, programs
from maskreid_dist.training.environment import free_port

ROOT = Path(__file__).parent.parent
GUARD_S = 900  # against a hang; nothing is measured by it
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
    """What a node said and how it ended."""

    status: int
    output: str

    @property
    def errors(self) -> list[str]:
        start = "maskreid: error: "
        return [line.removeprefix(start) for line in self.output.splitlines() if line.startswith(start)]


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
        processes = start_nodes(
            arguments, launcher=launcher, script=script, variables=variables, prefixes=prefixes
        )
        return wait_for(processes)
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


def wait_for(processes: "Sequence[subprocess.Popen[str]]") -> list[Ended]:
    ended = []
    try:
        for process in processes:
            output, _ = process.communicate(timeout=GUARD_S)
            ended.append(Ended(process.returncode, output))
            for other in processes[len(ended) :]:  # one that was stopped finds that the others have left
                os.killpg(other.pid, signal.SIGCONT)
    finally:
        for process in processes:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
    return ended
