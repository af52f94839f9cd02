"""Kill a training at random moments, start the same command again, and see that nothing is lost or left
behind.

python tests/kills.py --kills 60 --seed 1     (make kills)

Two gloo ranks train on this repository's shards with a data worker each, in turn under `deepspeed`, under
`torchrun`, and under `deepspeed` on each of two hosts, namespaces of this machine, of which one loses its
power. All runs in namespaces of its own; where none may be made (root, and what `make cluster` needs), as it
is, and without the hosts. After every kill no process, port or file in /dev/shm may be left within 30 s and
every finished checkpoint must verify. A training that ends must have the losses and weights of one that
nobody disturbed, bit for bit. Not batch normalisation's running statistics: a save averages them over the
ranks, and one more save rounds them in other places (by about 1e-7).
"""

import argparse
import math
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from cluster.hosts import Host, cluster, enter, missing_programs
from killed_training import EVERY, GONE_S, STEPS, VICTIMS, Training, TrainingOnHosts
from maskreid_dist.model.checkpoint import PARTIAL

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


def choose(chance: random.Random, launcher: str) -> tuple[str, signal.Signals, str]:
    """Victim, signal and moment of a kill. Not a host while the training starts: who has not met its ranks
    waits for them until engine.collective_timeout_s."""
    victim = chance.choice(list(VICTIMS[launcher]))
    often = (0 if launcher == "two hosts" else 1, 2, 2)
    return victim, VICTIMS[launcher][victim], chance.choices(MOMENTS, often)[0]


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
    if not alive or training.ended:
        return None
    killed = Killed(training.launcher, victim, moment, training.kept + training.progress(), time.monotonic())
    training.kill(victim, number, chance)
    killed.gone_s = training.leave()
    killed.status = training.status
    if killed.gone_s > GONE_S:
        killed.faults.append("processes were left after 30 s")
    killed.faults += training.leavings()
    killed.kept = training.saved()
    return killed


def finish(training: Training) -> None:
    training.start()
    while training.wait(lambda: training.progress() > 0 and training.stepped_at is None):
        pass
    assert training.status == 0, training.log.read_text(errors="replace")[-4000:]


def recover(killed: Killed | None, training: Training) -> None:
    """How long the kill before this start took, now that steps are made again."""
    if killed and training.stepped_at:
        killed.recovered_s = training.stepped_at - killed.at
        print(f"      the next step came {killed.recovered_s:.1f} s after that kill", flush=True)


HEADING = (
    "kill  launcher   victim                   moment            step  saved  status   gone  left behind"
)


def row(number: int, killed: Killed) -> str:
    gone = " left" if math.isinf(killed.gone_s) else f"{killed.gone_s:5.1f}"
    return (
        f"{number:4d}  {killed.launcher:9s}  {killed.victim:23s}  {killed.moment:15s}  {killed.step:5d}  "
        f"{killed.kept:5d}  {killed.status:6d}  {gone}  {'; '.join(killed.faults) or 'nothing'}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--minutes", type=float, default=math.inf, help="no kill after as many")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--folder", type=Path, help="keep the runs here")
    parser.add_argument("--below", action="store_true", help=argparse.SUPPRESS)  # once in the namespaces
    options = parser.parse_args()
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup the training would outlive its terminal, too
    if options.below:
        return kill_all(options, options.folder, hosts=2)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="kills-"))
    print(f"seed {options.seed}, {options.kills} kills, in {folder}", flush=True)
    try:
        if problem := missing_programs():
            print(f"no hosts of their own: {problem}", flush=True)
            return kill_all(options, folder, hosts=0)
        told = [f"--{name}={getattr(options, name)}" for name in ("kills", "minutes", "seed")]
        return enter("kills", [*told, f"--folder={folder}", "--below"])
    finally:
        if not options.folder:
            shutil.rmtree(folder, ignore_errors=True)


def kill_all(options: argparse.Namespace, folder: Path, hosts: int) -> int:
    with ExitStack() as stack:  # the hosts first: with them the namespaces have a network
        machines = stack.enter_context(cluster(_made(folder / "hosts"), hosts)) if hosts else []
        wanted, start_s, alone_s = undisturbed(_made(folder / "undisturbed"))
        print(HEADING, flush=True)
        chance = random.Random(options.seed)
        kills: list[Killed] = []
        unequal: list[str] = []
        trainings = 0
        began = time.monotonic()
        ends = began + 60 * options.minutes
        while len(kills) < options.kills and time.monotonic() < ends:
            name = f"training{trainings}"
            training = new_training(_made(folder / name), trainings, machines)
            trainings += 1
            kills += kill_until_done(training, chance, options.kills - len(kills), ends, start_s, len(kills))
            result = training.result()
            parted = [key for key in wanted if result.get(key) != wanted[key]]
            print(f"done; beside the undisturbed training differ: {parted or 'nothing'}", flush=True)
            unequal += [f"{name}: {key}" for key in parted]
    report(kills, trainings, unequal, alone_s, time.monotonic() - began)
    return 1 if unequal or any(killed.faults for killed in kills) else 0


def undisturbed(folder: Path) -> tuple[dict[str, str], float, float]:
    """The result of a training that nobody kills, seconds to its first step, and seconds in all."""
    training = Training(folder, "deepspeed")
    began = time.monotonic()
    training.start()
    training.wait(lambda: bool(training.steps()))
    start_s = time.monotonic() - began
    training.wait(lambda: False)
    assert training.status == 0, training.log.read_text()[-4000:]
    alone_s = time.monotonic() - began
    print(f"undisturbed: {alone_s:.1f} s, of which {start_s:.1f} s to the first step", flush=True)
    return training.result(), start_s, alone_s


def new_training(folder: Path, number: int, hosts: Sequence[Host]) -> Training:
    """By each launcher in turn."""
    launchers = list(VICTIMS) if hosts else [name for name in VICTIMS if name != "two hosts"]
    launcher = launchers[number % len(launchers)]
    return TrainingOnHosts(folder, hosts) if launcher == "two hosts" else Training(folder, launcher)


def kill_until_done(
    training: Training, chance: random.Random, most: int, ends: float, start_s: float, before: int
) -> list[Killed]:
    """Start and kill it, at most as often and until then; then let it end. before: kills of other
    trainings."""
    kills: list[Killed] = []
    while len(kills) < most and time.monotonic() < ends:
        killed = disturb(training, chance, start_s)
        recover(kills[-1] if kills else None, training)
        if killed is None:
            break
        kills.append(killed)
        print(row(before + len(kills), killed), flush=True)
    if training.saved() < STEPS:
        finish(training)
        recover(kills[-1] if kills else None, training)
    return kills


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
