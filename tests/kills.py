"""Kill a training at random moments, start the same command again, and see that nothing is lost or left
behind.

python tests/kills.py --kills 60 --seed 1     (make kills)

Two gloo ranks train on this repository's shards with a data worker each, under `deepspeed` and `torchrun`
in turn. After every kill no process, port or file in /dev/shm may be left within 30 s and every finished
checkpoint must verify. A training that ends must have the losses and weights of one that nobody disturbed,
bit for bit. Not batch normalisation's running statistics: a save averages them over the ranks, and one more
save rounds them in other places (by about 1e-7).
"""

import argparse
import json
import math
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from maskreid_dist.errors import CheckpointError
from maskreid_dist.model.checkpoint import PARTIAL, finished_checkpoints, read_checkpoint
from maskreid_dist.training.environment import free_port
from nodes import PYTHONPATH, RECIPE, ROOT

GONE_S = 30.0  # for a training to leave when it has been killed
GUARD_S = 600.0  # for anything to happen at all
STEPS = 60
EVERY = 3
KILL, HANG_UP, TERMINATE = signal.SIGKILL, signal.SIGHUP, signal.SIGTERM
# Whom a kill meets, and with what; `group`: everybody, as a terminal does that closes.
VICTIMS = {
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
MOMENTS = ("while it starts", "between saves", "in a save")


@dataclass
class Killed:
    """One kill and what came of it."""

    launcher: str
    victim: str
    moment: str
    step: int  # steps done when it was killed
    at: float
    status: int = 0  # of the command
    gone_s: float = 0.0  # until every process had left
    kept: int = 0  # steps in the newest checkpoint afterwards
    recovered_s: float = float("nan")  # from the kill to the next step
    faults: list[str] = field(default_factory=list)


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
        module = "deepspeed.launcher.runner" if launcher == "deepspeed" else "torch.distributed.run"
        ranks = "--num_gpus" if launcher == "deepspeed" else "--nproc_per_node"
        self.command = [sys.executable, "-m", module, ranks, "2", "--master_port", str(self.port)]
        self.command += [str(ROOT / "launch" / "train.py"), str(recipe), "--runs", str(folder), "--resume"]
        self.process: subprocess.Popen[bytes] | None = None
        self.kept = 0  # steps in the newest checkpoint when it was started
        self.old_log = 0  # the log's file at that time: it is written anew when the training continues
        self.stepped_at: float | None = None  # when the first step after that was in the log
        self.seen: set[int] = set()  # process ids, for their files in /dev/shm

    @property
    def run(self) -> Path:
        return self.folder / "tiny"

    def start(self) -> None:
        environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
        environment |= {"PYTHONPATH": PYTHONPATH, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
        self.kept, self.old_log, self.stepped_at = self.saved(), self._log_file(), None
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
            )

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
            assert self.process
            if self.process.poll() is not None:
                return False
            assert time.monotonic() < deadline, self.log.read_text(errors="replace")[-4000:]
            time.sleep(0.02)
        return True

    def kill(self, victim: str, number: signal.Signals, chance: random.Random) -> None:
        assert self.process
        ranks = self.ranks()
        own = psutil.Process(self.process.pid)
        children = [child for child in own.children() if child.pid not in [rank.pid for rank in ranks]]
        chosen = [own] if victim.startswith(("deepspeed", "agent")) else []
        if "launch.py" in victim:
            chosen += children[:1]
        if "rank" in victim and ranks:
            chosen.append(chance.choice(ranks))
        if victim == "group" or not chosen:
            os.killpg(self.process.pid, number)
        for process in chosen:
            try:
                process.send_signal(number)
            except psutil.Error:  # it has just left
                pass

    def leave(self) -> float:
        """Seconds until nothing of it lives; what lives after 30 is killed."""
        started = time.monotonic()
        assert self.process
        while self.process.poll() is None or self.processes():
            if time.monotonic() - started > GONE_S:
                for process in self.processes():
                    process.kill()
                self.process.kill()
                self.process.wait()
                return float("inf")
            time.sleep(0.05)
        return time.monotonic() - started

    def leavings(self) -> list[str]:
        """What should not be there once it has left."""
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


def choose(chance: random.Random, launcher: str) -> tuple[str, signal.Signals, str]:
    """Victim, signal and moment of a kill."""
    victim = chance.choice(list(VICTIMS[launcher]))
    return victim, VICTIMS[launcher][victim], chance.choices(MOMENTS, (1, 2, 2))[0]


def disturb(training: Training, chance: random.Random, start_s: float) -> Killed | None:
    """Start the command and kill it once; None where it was done before that."""
    victim, number, moment = choose(chance, training.launcher)
    there = set((training.run / "checkpoints").glob(f"*{PARTIAL}"))
    training.start()
    if moment == "while it starts":
        until = time.monotonic() + chance.uniform(0, start_s)
        alive = training.wait(lambda: training.progress() < 0 or time.monotonic() > until)
    elif moment == "between saves":
        more, until = chance.randint(1, 3 * EVERY), chance.uniform(0, 0.2)
        alive = training.wait(lambda: training.progress() >= more)
        time.sleep(until)
    else:
        saves = training.run / "checkpoints"
        alive = training.wait(
            lambda: training.progress() > 0 and any(p not in there for p in saves.glob(f"*{PARTIAL}"))
        )
        time.sleep(chance.uniform(0, 0.1))
    assert training.process
    if not alive or training.process.poll() is not None:
        return None
    killed = Killed(training.launcher, victim, moment, training.kept + training.progress(), time.monotonic())
    training.kill(victim, number, chance)
    killed.gone_s = training.leave()
    killed.status = training.process.returncode
    if killed.gone_s > GONE_S:
        killed.faults.append("processes were left after 30 s")
    killed.faults += training.leavings()
    killed.kept = training.saved()
    return killed


def finish(training: Training) -> None:
    training.start()
    while training.wait(lambda: training.progress() > 0 and training.stepped_at is None):
        pass
    assert training.process
    assert training.process.returncode == 0, training.log.read_text(errors="replace")[-4000:]


def recover(killed: Killed | None, training: Training) -> None:
    """How long the kill before this start took, now that steps are made again."""
    if killed and training.stepped_at:
        killed.recovered_s = training.stepped_at - killed.at
        print(f"      the next step came {killed.recovered_s:.1f} s after that kill", flush=True)


HEADING = (
    "kill  launcher   victim                   moment            step  saved  status   gone  left behind"
)


def row(number: int, killed: Killed) -> str:
    gone = f"{killed.gone_s:5.1f}" if killed.gone_s < GONE_S else " left"
    return (
        f"{number:4d}  {killed.launcher:9s}  {killed.victim:23s}  {killed.moment:15s}  {killed.step:5d}  "
        f"{killed.kept:5d}  {killed.status:6d}  {gone}  {'; '.join(killed.faults) or 'nothing'}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--folder", type=Path, help="keep the runs here")
    options = parser.parse_args()
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup the training would outlive its terminal, too
    chance = random.Random(options.seed)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="kills-"))
    print(f"seed {options.seed}, {options.kills} kills, in {folder}", flush=True)
    undisturbed = Training(_made(folder / "undisturbed"), "deepspeed")
    started = time.monotonic()
    undisturbed.start()
    undisturbed.wait(lambda: bool(undisturbed.steps()))
    start_s = time.monotonic() - started
    assert undisturbed.process
    assert undisturbed.process.wait(GUARD_S) == 0, undisturbed.log.read_text()[-4000:]
    alone_s = time.monotonic() - started
    wanted = undisturbed.result()
    print(f"undisturbed: {alone_s:.1f} s, of which {start_s:.1f} s to the first step\n{HEADING}", flush=True)

    kills: list[Killed] = []
    trainings: list[Training] = []
    unequal: list[str] = []
    began = time.monotonic()
    while len(kills) < options.kills:
        launcher = ("deepspeed", "torchrun")[len(trainings) % 2]
        training = Training(_made(folder / f"training{len(trainings)}"), launcher)
        trainings.append(training)
        before: Killed | None = None
        while len(kills) < options.kills:
            killed = disturb(training, chance, start_s)
            recover(before, training)
            if killed is None:
                break
            kills.append(killed)
            before = killed
            print(row(len(kills), killed), flush=True)
        if training.saved() < STEPS:
            finish(training)
            recover(before, training)
        result = training.result()
        parted = [key for key in wanted if result.get(key) != wanted[key]]
        print(f"done; beside the undisturbed training differ: {parted or 'nothing'}", flush=True)
        unequal += [f"{training.folder.name}: {key}" for key in parted]
    report(kills, len(trainings), unequal, alone_s, time.monotonic() - began)
    faulty = bool(unequal) or any(killed.faults for killed in kills)
    if not options.folder:
        shutil.rmtree(folder)
    return 1 if faulty else 0


def report(kills: list[Killed], trainings: int, unequal: list[str], alone_s: float, wall_s: float) -> None:
    recovered = sorted(killed.recovered_s for killed in kills if not math.isnan(killed.recovered_s))
    gone = sorted(killed.gone_s for killed in kills)
    lost = [killed.step - killed.kept for killed in kills]
    print(f"{len(kills)} kills of {trainings} trainings of {STEPS} steps, a checkpoint every {EVERY}")
    print(
        f"left behind: {sum(bool(killed.faults) for killed in kills)} kills; unequal: {unequal or 'nothing'}"
    )
    print(f"seconds until all had left: median {statistics.median(gone):.1f}, most {gone[-1]:.1f}")
    if recovered:
        median_s = statistics.median(recovered)
        print(f"seconds from the kill to the next step: median {median_s:.1f}, most {recovered[-1]:.1f}")
        print(
            f"goodput: {alone_s * trainings / wall_s:.0%} here; {1 - median_s / 120:.0%} "
            "with a kill every two minutes"
        )
    print(f"steps done again: {sum(max(0, steps) for steps in lost)}, at most {max(lost)} after one kill")
    for (launcher, victim), statuses in sorted(_statuses(kills).items()):
        shown = ", ".join(f"{status} ({count})" for status, count in sorted(statuses.items()))
        print(f"exit statuses, {launcher}, {victim}: {shown}")


def _statuses(kills: list[Killed]) -> dict[tuple[str, str], Counter[int]]:
    found: dict[tuple[str, str], Counter[int]] = {}
    for killed in kills:
        found.setdefault((killed.launcher, killed.victim), Counter())[killed.status] += 1
    return found


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


if __name__ == "__main__":
    sys.exit(main())
