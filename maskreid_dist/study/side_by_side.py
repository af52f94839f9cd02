"""Trainings side by side on this machine, each a child process, stopped together."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import FrameType

from maskreid_dist.study.study_file import Task
from maskreid_dist.training.machine import THREADS

POLL_S = 0.1
# Of a launcher or scheduler around the study: its children are no ranks of one training.
OF_A_RANK = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "SLURM_STEP_NUM_TASKS"}
OF_A_RANK |= {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"}

Start = Callable[[Task, Mapping[str, str]], "subprocess.Popen[bytes]"]


def environment_of(slot: int, jobs: int, cores: int, gpus: Sequence[str]) -> dict[str, str]:
    """Of the child in one of `jobs` slots: its share of the cores, unless OMP_NUM_THREADS is set, and one of
    the GPUs."""
    environment = {key: value for key, value in os.environ.items() if key not in OF_A_RANK}
    environment["PYTHONSAFEPATH"] = "1"  # no folder of the user's in place of a package
    environment.setdefault(THREADS, str(max(1, cores // jobs)))
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
    return environment


@dataclass
class SideBySide:
    """Runs tasks, `jobs` at a time. start: makes a task's child process, in a session of its own. ended: is
    told each task and its child's exit status.

    Ctrl-C, SIGTERM and SIGHUP tell the children to finish their step and save; a second one kills them.
    """

    start: Start
    ended: Callable[[Task, int], None]
    jobs: int
    cores: int
    gpus: Sequence[str] = ()
    asking: Callable[[], None] = lambda: None  # called once, when asked to stop
    asked: bool = field(default=False, init=False)
    _running: dict[int, "tuple[Task, subprocess.Popen[bytes]]"] = field(default_factory=dict, init=False)
    _told: set[int] = field(default_factory=set, init=False)

    def run(self, tasks: Sequence[Task]) -> None:
        """Until all have ended, or those that run have stopped."""
        waiting = list(tasks)
        signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {number: signal.signal(number, self._stop) for number in signals}
        try:
            while self._running or (waiting and not self.asked):
                for slot in range(self.jobs):
                    if waiting and not self.asked and slot not in self._running:
                        task = waiting.pop(0)
                        environment = environment_of(slot, self.jobs, self.cores, self.gpus)
                        self._running[slot] = task, self.start(task, environment)
                time.sleep(POLL_S)
                if self.asked:
                    self._tell_to_stop()  # one that was being started then, too
                for slot, (task, child) in list(self._running.items()):
                    if child.poll() is not None:
                        del self._running[slot]
                        self.ended(task, child.returncode)
        finally:
            self._tell_to_stop()  # nothing runs on after a defect here
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            for _, child in self._running.values():
                with suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
            return
        self.asked = True
        self.asking()
        self._tell_to_stop()

    def _tell_to_stop(self) -> None:
        """Each once: a training takes SIGTERM as a wish, its data workers take none."""
        for _, child in self._running.values():
            if child.pid not in self._told:
                self._told.add(child.pid)
                child.send_signal(signal.SIGTERM)
