"""What is tried on the hosts, and what must come of it."""

import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from cluster.hosts import CARD, GUARD_S, SAME_EVERYWHERE, ClusterError, Ended, Host
from cluster.launchers import GLOO, LAUNCHERS, SCRIPT, Job, Launcher, no_ssh, one_host, pdsh, wait
from held_training import HELD, STEP
from nodes import ROOT, write_recipe

STEPS = 6
ERROR = "maskreid: error: "
HELD_SCRIPT = ROOT / "tests" / "held_training.py"


class Unmet(AssertionError):
    """What a case expects and does not find; `output` is what the ranks said."""

    def __init__(self, problem: str, ended: Sequence[Ended] = ()) -> None:
        said = "".join(f"\n--- status {one.status}\n{one.output[-3000:]}" for one in ended)
        super().__init__(problem + said)


class Skipped(Exception):
    """The reason why a case cannot be tried here."""


@dataclass(frozen=True)
class Scene:
    hosts: list[Host]
    folder: Path

    def job(
        self, name: str, *more: str, variables: dict[str, str] | None = None, script: Path = SCRIPT
    ) -> Job:
        """A training of a rank a host in run directories called `name`."""
        arguments = ("--runs", str(self.folder / name), *self.overrides, *more)
        told = GLOO if variables is None else variables
        return Job(self.hosts, self.folder, (str(self.recipe), *arguments), told, script)

    def losses(self, name: str) -> dict[int, float]:
        lines = (self.folder / name / "tiny" / "metrics.jsonl").read_text().splitlines()
        return {line["step"]: line["loss"] for line in map(json.loads, lines)}

    @property
    def overrides(self) -> list[str]:
        values = [f"optimizer.steps={STEPS}", f"batch.identities={2 * len(self.hosts)}"]
        return [part for value in values for part in ("--set", value)]

    @cached_property
    def recipe(self) -> Path:
        return write_recipe(self.folder)

    @cached_property
    def reference(self) -> dict[int, float]:
        """The losses of as many ranks on one host. Not of one process: batch normalisation is by rank."""
        expect([0], wait(one_host(self.job("one_host"))))
        return self.losses("one_host")


Case = Callable[[Scene], str]


def trains_alike(launcher: Launcher) -> Case:
    """Over all hosts, a launcher trains as one host does: every loss, bit by bit."""

    def case(scene: Scene) -> str:
        name = launcher.__name__
        if launcher is LAUNCHERS["openmpi"] and shutil.which("mpirun") is None:
            raise Skipped("openmpi-bin missing: no mpirun")
        reference = scene.reference
        ended = wait(launcher(scene.job(name, "--set", f"engine.world={len(scene.hosts)}")))
        expect([0] * len(ended), ended)
        if scene.losses(name) != reference:
            raise Unmet(f"losses {scene.losses(name)}, on one host {reference}", ended)
        threads = max(1, len(os.sched_getaffinity(0)) // len(scene.hosts))
        said = f"ranks: {len(scene.hosts)}, threads of rank 0: {threads},"
        if not any(said in one.output for one in ended):
            raise Unmet(f"the log does not say {said!r}", ended)
        return f"{len(reference)} losses as on one host"

    return case


def a_wrong_recipe(scene: Scene) -> str:
    """Status 2 comes through ssh and pdsh, with a line from every host."""
    ended = wait(pdsh(scene.job("wrong", "--set", "data.shards=/nowhere")))
    return "; ".join(expect_line([2], ended, "/nowhere: no manifest.json", len(scene.hosts)))


def host_names_that_are_loopback(scene: Scene) -> str:
    """Without a variable gloo would listen at 127.0.1.1 of each host."""
    ended = wait(pdsh(scene.job("loopback", variables={})))
    line = f"gloo takes 127.0.1.1, .* (here {CARD} leads to rank 0) in GLOO_SOCKET_IFNAME"
    return "; ".join(expect_line([2], ended, line, len(scene.hosts)))


def an_interface_that_is_every_host_s_own(scene: Scene) -> str:
    ended = wait(pdsh(scene.job("bridge", variables={"GLOO_SOCKET_IFNAME": SAME_EVERYWHERE})))
    line = f"takes 172.17.0.1, which other machines cannot reach: GLOO_SOCKET_IFNAME names {SAME_EVERYWHERE}"
    return "; ".join(expect_line([2], ended, line, len(scene.hosts)))


def a_stop_and_its_continuation(scene: Scene) -> str:
    """`stop` in the run directory: status 75 through pdsh, and --resume ends as if nothing had been."""
    held = Held(scene, "stopped", pdsh)
    held.run.joinpath("stop").touch()
    ended = held.release()
    expect([75], ended)
    expect([0], wait(pdsh(scene.job("stopped", "--resume"))))
    return same_losses(scene, "stopped", f"75, {len(scene.losses('stopped'))} losses after --resume")


def a_host_that_loses_its_power(scene: Scene) -> str:
    """The others name its rank and leave with 1; with the host back, --resume ends as if nothing had been."""
    held = Held(scene, "power", no_ssh)
    lost = scene.hosts[-1]
    lost.stop()
    start = time.monotonic()
    ended = held.release()[:-1]
    seconds = time.monotonic() - start
    rank = len(scene.hosts) - 1
    expect_line([1] * len(ended), ended, f"rank {rank} on {lost.name} left without a word", len(ended))
    lost.boot(scene.hosts)
    again = wait(no_ssh(scene.job("power", "--resume")))
    expect([0] * len(again), again)
    return same_losses(
        scene, "power", f"1, all had left after {seconds:.0f} s, the same losses after --resume"
    )


CASES: dict[str, Case] = {
    **{name: trains_alike(launcher) for name, launcher in LAUNCHERS.items()},
    "wrong_recipe": a_wrong_recipe,
    "loopback": host_names_that_are_loopback,
    "bridge": an_interface_that_is_every_host_s_own,
    "stop": a_stop_and_its_continuation,
    "power": a_host_that_loses_its_power,
}


class Held:
    """A training that waits after step STEP until it is released."""

    def __init__(self, scene: Scene, name: str, launcher: Launcher) -> None:
        self.run = scene.folder / name / "tiny"
        self.run.parent.mkdir()
        self.fifo = self.run.parent / "release"
        os.mkfifo(self.fifo)
        self.running = launcher(scene.job(name, script=HELD_SCRIPT))
        until(lambda: any(HELD in one.output() for one in self.running), f"never said {HELD}: {self.ended()}")

    def ended(self) -> str:
        return "; ".join(str(one.process.poll()) for one in self.running)

    def release(self) -> list[Ended]:
        self.fifo.write_bytes(b"x")
        return wait(self.running)


def expect(statuses: Sequence[int], ended: Sequence[Ended]) -> None:
    if [one.status for one in ended] != list(statuses):
        raise Unmet(f"statuses {[one.status for one in ended]}, expected {list(statuses)}", ended)


def expect_line(statuses: Sequence[int], ended: Sequence[Ended], words: str, hosts: int) -> set[str]:
    """Each host says the one line, which has the words (` .* ` between them), and ends as told."""
    expect(statuses, ended)
    lines = [line.partition(ERROR)[2] for one in ended for line in one.output.splitlines() if ERROR in line]
    parts = words.split(" .* ")
    if len(lines) != hosts or not all(part in line for part in parts for line in lines):
        raise Unmet(f"expected {hosts} lines with {words!r}, found {lines}", ended)
    return {f"{statuses[0]}, {line[:60]}..." for line in lines}


def same_losses(scene: Scene, name: str, seen: str) -> str:
    if scene.losses(name) != scene.reference:
        raise Unmet(f"losses {scene.losses(name)}, undisturbed {scene.reference}")
    return seen


def nothing_left(scene: Scene) -> None:
    """No process of the training on any host, and no file in /dev/shm."""
    for host in scene.hosts:
        until(lambda host=host: not host.left_behind(), f"left on {host.name}: {host.left_behind()}")  # type: ignore[misc]


def until(ready: Callable[[], bool], problem: str, guard_s: float = GUARD_S) -> None:
    deadline = time.monotonic() + guard_s
    while not ready():
        if time.monotonic() > deadline:
            raise ClusterError(problem)
        time.sleep(0.1)


assert STEP < STEPS - 1
