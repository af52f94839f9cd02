"""A training on several machines, all of them this one: a launcher each, or a process each, with its own
arguments."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from maskreid_dist.training.environment import free_port

ROOT = Path(__file__).parent.parent
GUARD_S = 240  # against a hang; nothing is measured by it
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
    processes = start_nodes(
        arguments, launcher=launcher, script=script, variables=variables, prefixes=prefixes
    )
    return wait_for(processes)


def start_nodes(
    arguments: Sequence[Sequence[str | Path]],
    *,
    launcher: Path | None = None,
    script: Path = ROOT / "launch" / "train.py",
    variables: Mapping[str, str] | None = None,
    prefixes: Mapping[int, Sequence[str]] | None = None,
) -> "list[subprocess.Popen[str]]":
    port, size = str(free_port()), len(arguments)
    processes = []
    for rank, own in enumerate(arguments):
        environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
        environment["PYTHONPATH"] = PYTHONPATH
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
            command += ["--node_rank", str(rank), "--master_addr", "127.0.0.1", "--master_port", port]
        else:
            # A local size of all: the nodes share the cores of this machine.
            environment |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": "0"}
            environment |= {"LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
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
