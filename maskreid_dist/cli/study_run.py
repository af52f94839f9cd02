"""How `maskreid study` runs its trainings: children of this process, what they say, how they end."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from maskreid_dist import exit_status
from maskreid_dist.errors import UserError
from maskreid_dist.terminal import Terminal, say

if TYPE_CHECKING:
    from maskreid_dist.study.result import RowResult
    from maskreid_dist.study.state import Pace, State
    from maskreid_dist.study.study_file import LoadedStudy, Task

TFLOPS_GPU, TFLOPS_THREAD = 10.0, 0.01


class StudyRun:
    """A study, its folders, and how it is run here."""

    def __init__(
        self, loaded: "LoadedStudy", results: Path, runs: Path, jobs: int, tflops: float | None
    ) -> None:
        self.loaded = loaded
        self.results = results
        self.runs = runs
        self.jobs = jobs
        self.tflops = tflops
        self.console = Terminal()
        self.cores = len(os.sched_getaffinity(0))
        self._warned: set[str] = set()

    def look(self) -> "State":
        from maskreid_dist.study.state import look

        state = look(self.loaded, self.results)
        for stale in state.stale:
            self._warn(f"{stale}: of other shards, recipe, row or seed than the study's: not counted")
        for row, why in state.missing.items():
            self._warn(f"row {row} cannot run here: {why}")
        return state

    def pace(self, state: "State") -> "Pace":
        import torch

        from maskreid_dist.study.state import pace_of
        from maskreid_dist.study.training import processor_here

        assumed = TFLOPS_GPU if torch.cuda.is_available() else TFLOPS_THREAD * self._threads()
        return pace_of(state, processor_here(), self.tflops or assumed)

    def run(self, tasks: "list[Task]") -> int:
        """Train what has no result; returns the exit status."""
        state = self.look()
        return self._in_turn(state, state.waiting(tasks), self.results, self.runs)

    def run_again(self, tasks: "list[Task]") -> int:
        """Train anew what has a result, and say how the two compare; returns the exit status."""
        from maskreid_dist.study.result import find_results
        from maskreid_dist.study.training import result_path
        from maskreid_shards.atomic import remove_folder

        state = self.look()
        done = [task for task in tasks if task.name in state.done]
        if not done:
            raise UserError("--again: none of these trainings is done yet; run them without it first")
        place = self.runs.parent / "again" / self.loaded.study.name
        results = place / "results"
        for task in done:
            if result_path(results, task).exists():  # of an earlier --again
                result_path(results, task).unlink()
                remove_folder(place / task.config.name)
        status = self._in_turn(state, done, results, place)
        found = find_results(results)
        for task in done:
            if task.name in found:
                self.say(f"{task.name}: {compared(state.done[task.name], found[task.name].result)}")
        return status

    def _in_turn(self, state: "State", waiting: "list[Task]", results: Path, runs: Path) -> int:
        """What is trained, with the networks that other rows want; then those rows."""
        from maskreid_dist.study.training import is_trained

        trained = {task.name: task for task in waiting if task.source is None}
        ranked = [task for task in waiting if task.source is not None]
        for source in (task.source for task in ranked if task.source is not None):
            if source.name not in trained and not is_trained(source, runs):
                trained[source.name] = source
        status = self.train_all(state, list(trained.values()), results, runs)
        if status != exit_status.DONE or not ranked:
            return status
        return self.train_all(state, ranked, results, runs)

    def train_all(self, state: "State", waiting: "list[Task]", results: Path, runs: Path) -> int:
        from maskreid_dist.study.result import read_result
        from maskreid_dist.study.side_by_side import SideBySide
        from maskreid_dist.study.training import result_path

        pace = self.pace(state)
        done = dict(state.done)
        left = list(waiting)
        if waiting:
            minutes = pace.minutes(state, waiting) / self.jobs
            how = f"{self.jobs} side by side, about {minutes:.0f} minutes, {pace.said}"
            self.say(f"{len(waiting)} trainings, {how}")
        statuses: dict[str, int] = {}

        def start(task: "Task", environment: Mapping[str, str]) -> "subprocess.Popen[bytes]":
            return self._start(task, environment, results, runs)

        def ended(task: "Task", status: int) -> None:
            statuses[task.name] = status
            left.remove(task)
            if status == exit_status.DONE:
                done[task.name] = read_result(result_path(results, task))
                figures = done[task.name].figures
                said = f"mAP {figures['mAP_hits']:.2f}, Rank-1 {figures['rank1']:.2f}"
            else:
                said = "stopped and saved" if status == exit_status.STOPPED else f"ended with status {status}"
                said += f" ({self._log(task, runs)}){last_line(self._log(task, runs))}"
            minutes = self.pace(replace(state, done=done)).minutes(state, left) / self.jobs
            more = f"; {len(left)} to go, about {minutes:.0f} minutes"
            self.say(f"{task.name}: {said}" + (more if left else ""))

        def asking() -> None:
            say("stopping: each training finishes its step and saves (again to kill)", file=sys.stderr)

        children = SideBySide(start, ended, self.jobs, self.cores, gpus_here(), asking)
        children.run(waiting)
        if children.asked:
            self.say("stopped; the same command continues")
            return exit_status.STOPPED
        failed = {status for status in statuses.values() if status != exit_status.DONE}
        if not failed:
            return exit_status.DONE
        own = (exit_status.STOPPED, exit_status.NEVER_AGAIN)
        return failed.pop() if len(failed) == 1 and failed <= set(own) else exit_status.START_AGAIN

    def _start(
        self, task: "Task", environment: Mapping[str, str], results: Path, runs: Path
    ) -> "subprocess.Popen[bytes]":
        """The child process; what it says goes to the end of its log."""
        from maskreid_shards.atomic import open_to_append

        log = self._log(task, runs)
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [
            *(sys.executable, "-m", "maskreid_dist", "study", str(self.loaded.path), "--here"),
            *("--row", task.row.name, "--seed", str(task.seed)),
            *("--results", str(results), "--runs", str(runs.parent)),
        ]
        with os.fdopen(open_to_append(log), "ab") as file:
            return subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C at the terminal reaches this process alone
            )

    def _log(self, task: "Task", runs: Path) -> Path:
        return runs / f"{task.config.name}.log"

    def _threads(self) -> int:
        """Of each training."""
        return _threads_set() or max(1, self.cores // self.jobs)

    def _warn(self, text: str) -> None:
        """Once."""
        if text not in self._warned:
            self._warned.add(text)
            self.say(f"warning: {text}")

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False, soft_wrap=True)
        self.console.file.flush()  # into a file, too: a study takes hours


def jobs_here(trainings: int) -> int:
    """How many of so many trainings run side by side: one a GPU; without GPUs as many as the cores have
    threads for, of which each takes OMP_NUM_THREADS, or one."""
    room = len(gpus_here()) or len(os.sched_getaffinity(0)) // (_threads_set() or 1)
    return max(1, min(trainings, room))


def gpus_here() -> list[str]:
    """Those that torch may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    if not torch.cuda.is_available():
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(n) for n in range(torch.cuda.device_count())]


def _threads_set() -> int | None:
    """OMP_NUM_THREADS; None where it is not set to a number above 0."""
    own = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return int(own) or None if own.isdigit() else None


def last_line(log: Path) -> str:
    """Of a log that has one, after a colon."""
    from maskreid_shards.opening import TEXT_BYTES, read_file

    try:
        lines = read_file(log, TEXT_BYTES).decode(errors="replace").split("\n")
    except OSError:
        return ""
    return next((f": {line.strip()}" for line in reversed(lines) if line.strip()), "")


def compared(kept: "RowResult", found: "RowResult") -> str:
    """Of the same training made twice."""
    figures = f"mAP {found.figures['mAP_hits']:.2f}, kept {kept.figures['mAP_hits']:.2f}"
    if kept.weights_sha256 == found.weights_sha256:
        return f"the same weights, bit for bit; {figures}"
    if kept.figures == found.figures:
        return f"the same figures; {figures}"
    differing = [
        f"{name} {json.dumps(here)}, kept {json.dumps(before)}"
        for name, here, before in (
            ("processor", found.processor, kept.processor),
            ("threads", found.threads, kept.threads),
            ("versions", found.versions, kept.versions),
            ("commit", found.commit, kept.commit),
        )
        if here != before
    ]
    return f"other figures: {figures}; differs: {'; '.join(differing) or 'nothing that is recorded'}"
