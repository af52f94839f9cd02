"""Trainings that are to be killed, each by a launcher or on hosts of its own, and what they leave behind: for
kills.py."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from cluster.hosts import Host
from cluster.launchers import GLOO, Job, no_ssh
from maskreid_dist.errors import CheckpointError
from maskreid_dist.model.checkpoint import finished_checkpoints, read_checkpoint
from maskreid_dist.training.environment import free_port
from nodes import PYTHONPATH, RECIPE, ROOT

GONE_S = 30.0  # for a training to leave when it has been killed
ENDED_S = 180.0  # what has not left then is ended: how long the rest takes is worth knowing
GUARD_S = 600.0  # for anything to happen at all
STEPS = 60
EVERY = 3
KILL, HANG_UP, TERMINATE = signal.SIGKILL, signal.SIGHUP, signal.SIGTERM
# Whom a kill meets, and with what; `group`: everybody, as a terminal does that closes.
VICTIMS = {
    "two hosts": {"host of rank 0": KILL, "host of rank 1": KILL},
    "deepspeed": {
        "rank": KILL,
        "launch.py": KILL,
        "deepspeed": KILL,
        "deepspeed and launch.py": KILL,
        "launch.py and a rank": KILL,
        "group": HANG_UP,
        "launch.py, terminated": TERMINATE,
    },
    "torchrun": {
        "rank": KILL,
        "agent": KILL,
        "agent and a rank": KILL,
        "agent, hung up": HANG_UP,
        "agent, terminated": TERMINATE,
    },
}


class Training:
    """A run directory and the command that trains in it."""

    def __init__(self, folder: Path, launcher: str) -> None:
        self.launcher = launcher
        self.folder = folder
        self.port = free_port()
        self.log = folder / "log"
        recipe = folder / "tiny.toml"
        text = RECIPE.replace("workers = 0", "workers = 1").replace("steps = 4", f"steps = {STEPS}")
        recipe.write_text(text.replace("checkpoint_every = 2", f"checkpoint_every = {EVERY}"))
        module = "torch.distributed.run" if launcher == "torchrun" else "deepspeed.launcher.runner"
        ranks = "--nproc_per_node" if launcher == "torchrun" else "--num_gpus"
        self.arguments = (str(recipe), "--runs", str(folder), "--resume")
        self.command = [sys.executable, "-m", module, ranks, "2", "--master_port", str(self.port)]
        self.command += [str(ROOT / "launch" / "train.py"), *self.arguments]
        self.started: list[subprocess.Popen[bytes]] = []
        self.kept = 0  # steps in the newest checkpoint when it was started
        self.old_log = 0  # the log's file at that time: it is written anew when the training continues
        self.stepped_at: float | None = None  # when the first step after that was in the log
        self.seen: set[int] = set()  # process ids, for their files in /dev/shm

    @property
    def run(self) -> Path:
        return self.folder / "tiny"

    def start(self) -> None:
        self.kept, self.old_log, self.stepped_at = self.saved(), self._log_file(), None
        self.started = self.launched()

    def launched(self) -> "list[subprocess.Popen[bytes]]":
        environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
        environment |= {"PYTHONPATH": PYTHONPATH, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
        with self.log.open("ab") as log:
            return [
                subprocess.Popen(
                    self.command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
                )
            ]

    @property
    def ended(self) -> bool:
        return all(process.poll() is not None for process in self.started)

    @property
    def status(self) -> int:
        """The command's own; on several hosts that of one that was not killed."""
        return int(self.started[0].returncode)

    def processes(self) -> list[psutil.Process]:
        """All that live: they have the run directory in their command lines, data workers too."""
        found = []
        for process in psutil.process_iter():
            try:
                words = process.cmdline()
                if str(self.folder) in words and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
                    self.seen.add(process.pid)
            except psutil.Error:
                continue
        return found

    def ranks(self) -> list[psutil.Process]:
        """The ranks, in their order; fewer while it starts."""
        numbers = {}
        for process in self.processes():
            try:
                parent = process.parent()
                above = parent.environ().get("RANK") if parent else None
                if "RANK" in process.environ() and above is None:
                    numbers[process.environ()["RANK"]] = process
            except psutil.Error:
                continue
        return [numbers[number] for number in sorted(numbers)]

    def steps(self) -> list[int]:
        """The steps in the log."""
        try:
            lines = (self.run / "metrics.jsonl").read_text().splitlines()
            return [json.loads(line)["step"] for line in lines]
        except (OSError, ValueError):  # none yet, or being rewritten
            return []

    def _log_file(self) -> int:
        try:
            return (self.run / "metrics.jsonl").stat().st_ino
        except OSError:
            return 0

    def saved(self) -> int:
        """Steps in the newest checkpoint."""
        finished = finished_checkpoints(self.run / "checkpoints")
        return int(finished[-1].name.removeprefix("step_")) if finished else 0

    def progress(self) -> int:
        """Steps since it was started."""
        steps = self.steps() if self._log_file() != self.old_log else []
        done = max(0, steps[-1] - self.kept) if steps else 0
        if done and self.stepped_at is None:
            self.stepped_at = time.monotonic()
        return done

    def wait(self, until: Callable[[], bool], guard_s: float = GUARD_S) -> bool:
        """Whether it became true before the command ended."""
        deadline = time.monotonic() + guard_s
        while not until():
            if self.ended:
                return False
            assert time.monotonic() < deadline, self.log.read_text(errors="replace")[-4000:]
            time.sleep(0.02)
        return True

    def kill(self, victim: str, number: signal.Signals, chance: random.Random) -> None:
        ranks, (command,) = self.ranks(), self.started
        own = psutil.Process(command.pid)
        children = [child for child in own.children() if child.pid not in [rank.pid for rank in ranks]]
        chosen = [own] if victim.startswith(("deepspeed", "agent")) else []
        if "launch.py" in victim:
            chosen += children[:1]
        if "rank" in victim and ranks:
            chosen.append(chance.choice(ranks))
        if victim == "group" or not chosen:
            os.killpg(command.pid, number)
        for process in chosen:
            try:
                process.send_signal(number)
            except psutil.Error:  # it has just left
                pass

    def leave(self) -> float:
        """Seconds until nothing of it is there; what lives after ENDED_S is killed."""
        started = time.monotonic()
        # A process that is ending may have lost its command line, and hold its port still.
        while not self.ended or self.processes() or (time.monotonic() - started < GONE_S and self.held()):
            if time.monotonic() - started > ENDED_S:
                for process in self.processes():
                    process.kill()
                for command in self.started:
                    command.kill()
                    command.wait()
                return float("inf")
            time.sleep(0.05)
        return time.monotonic() - started

    def leavings(self) -> list[str]:
        """What should not be there once it has left."""
        return self.held() + self.damages()

    def held(self) -> list[str]:
        """The port and files in shared memory, where it has them still."""
        faults = []
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", self.port))
            except OSError:
                faults.append(f"port {self.port} is taken")
        for path in Path("/dev/shm").iterdir():
            if any(f"_{pid}_" in path.name for pid in self.seen):
                faults.append(f"{path} is left")
        return faults

    def damages(self) -> list[str]:
        """What is wrong with the finished checkpoints."""
        faults = []
        for path in finished_checkpoints(self.run / "checkpoints"):
            try:
                read_checkpoint(path)
            except CheckpointError as error:
                faults.append(str(error))
        return faults

    def result(self) -> dict[str, str]:
        """Losses and weights, as text that two runs can be compared by."""
        newest = finished_checkpoints(self.run / "checkpoints")[-1]
        losses = {
            line["step"]: line["loss"]
            for line in map(json.loads, (self.run / "metrics.jsonl").read_text().splitlines())
        }
        from safetensors.torch import load_file

        weights = load_file(newest / "weights.safetensors")
        bits = {
            name: str(value.view(-1).tolist()) for name, value in weights.items() if "running_" not in name
        }
        return {"step": newest.name, "losses": str(losses), **bits}


class TrainingOnHosts(Training):
    """A rank on each of two hosts; a kill is one of them that loses its power."""

    def __init__(self, folder: Path, hosts: Sequence[Host]) -> None:
        super().__init__(folder, "two hosts")
        self.hosts, self.lost = hosts, 0

    def launched(self) -> "list[subprocess.Popen[bytes]]":
        job = Job(self.hosts, self.folder, self.arguments, {**GLOO, "OMP_NUM_THREADS": "1"})
        running = no_ssh(job)
        self.log = running[0].log
        return [one.process for one in running]

    @property
    def status(self) -> int:
        return int(self.started[1 - self.lost].returncode)

    def kill(self, victim: str, number: signal.Signals, chance: random.Random) -> None:
        self.lost = int(victim.removeprefix("host of rank "))
        self.hosts[self.lost].stop()

    def held(self) -> list[str]:
        return []  # a host has a network and shared memory of its own

    def leavings(self) -> list[str]:
        other = self.hosts[1 - self.lost]
        left = [f"{path} is left on {other.name}" for path in other.left_behind()]
        self.hosts[self.lost].boot(self.hosts)
        return left + self.damages()
