"""What a run leaves to look at: `metrics.jsonl`, TensorBoard scalars, a progress bar. Rank 0 only."""

import json
import math
import os
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.progress import TextColumn, TimeElapsedColumn

from maskreid_dist.config import Config
from maskreid_dist.progress import make_bar
from maskreid_dist.run_directory import EVENTS, METRICS, RUN, shares_of_phases
from maskreid_dist.terminal import Terminal
from maskreid_dist.training.trackers import Trackers
from maskreid_shards.atomic import naming, open_to_append, write_atomically
from maskreid_shards.opening import json_lines


class RunLog:
    """Appends one JSON line per record and mirrors the numbers to TensorBoard.

    On resume, lines of steps after `start` are dropped first: they are trained again.
    """

    def __init__(self, run: Path, start: int, stop: int, config: Config | None = None) -> None:
        self.path = run / METRICS
        self.events = run / EVENTS
        for path in (self.path, self.events):
            if path.exists():
                _drop_after(path, start)
        self.file = os.fdopen(open_to_append(self.path), "a", encoding="utf-8")
        self.console = Terminal(stderr=True)
        self.trackers = Trackers(run, start, config, self.say) if config else None
        more = (TimeElapsedColumn(), TextColumn("{task.fields[note]}", markup=False))
        self.progress = make_bar("training", self.console, *more)
        self.task = self.progress.add_task("training", total=stop, completed=start, note="")

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()
        with naming(self.path):  # of a full disk it says once more what could not be written
            self.file.close()
        if self.trackers:
            self.trackers.finish()

    def advance(self, step: int) -> None:
        self.progress.update(self.task, completed=step)

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False, soft_wrap=True)

    def say_all(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.say(line)

    def describe(self, origin: Mapping[str, Any], config: Config) -> None:
        """`run.json`: what trains here, for those who look at it from outside."""
        text = json.dumps({**origin, "config": config.model_dump(mode="json")}, indent=1)
        write_atomically(self.path.with_name(RUN), (text + "\n").encode())

    def note(self, step: int, event: str, **facts: object) -> None:
        """A line of `events.jsonl`: what happened when `step` steps were done."""
        with naming(self.events), os.fdopen(open_to_append(self.events), "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "time": _now(), "event": event, **facts}) + "\n")

    def say_changes(self, start: int, changes: Iterable[Mapping[str, Any]]) -> None:
        """The keys that were changed to continue from this step."""
        for change in changes:
            if change["step"] == start:
                self.say(f"from step {start} on {change['key']} is {change['to']}, before {change['from']}")
                self.note(start, "changed", key=change["key"], was=change["from"], now=change["to"])

    def say_skipped(self, skipped: Mapping[str, Any]) -> None:
        """A step that was left out."""
        self.say(f"left out ({skipped['skipped']} of at most {skipped['of']}): {skipped['text']}")
        self.note(skipped["step"], "skipped", why=skipped["text"])

    def _record(self, step: int, scalars: Mapping[str, float]) -> None:
        """A value that is not finite is written as null."""
        line: dict[str, Any] = {"step": step, "time": _now()}
        line |= {k: v if math.isfinite(v) else None for k, v in scalars.items()}
        with naming(self.path):
            self.file.write(json.dumps(line) + "\n")
            self.file.flush()
        if self.trackers:
            self.trackers.log(scalars, step)

    def evaluated(self) -> set[int]:
        """The steps with an evaluation."""
        records = (record for _, record in json_lines(self.path))
        return {record["step"] for record in records if "mAP_hits" in record}

    def write_evaluation(self, step: int, figures: Mapping[str, float], best: bool) -> None:
        """The figures of an evaluation, in per cent, in a record of their own."""
        self._record(step, figures)
        self.say(
            f"step {step}/{self.progress.tasks[0].total:.0f}: mAP {figures['mAP_hits']:.2f}, Rank-1 "
            f"{figures['rank1']:.2f}, mINP {figures['mINP']:.2f}{' (the best so far)' if best else ''}"
        )

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """The record of the steps up to `step`, the number of steps done."""
        self._record(step, scalars)
        note = f"loss {scalars['loss']:.3f}, {scalars['images_per_second']:.0f} images/s"
        self.progress.update(self.task, note=note)
        if not self.console.is_terminal:  # a log file gets lines, not a bar
            self.say(f"step {step}/{self.progress.tasks[0].total:.0f}: {note}{_split(scalars)}")


def _split(scalars: Mapping[str, float]) -> str:
    """ ", 79 ms a step (forward 35 %, backward 51 %)"."""
    if not scalars.get("step_ms"):
        return ""
    memory = f", {scalars['gpu_memory_gb']:.1f} GB of GPU memory" if "gpu_memory_gb" in scalars else ""
    return f", {scalars['step_ms']:.0f} ms a step ({shares_of_phases(scalars)}){memory}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _drop_after(path: Path, start: int) -> None:
    kept = []
    for line, record in json_lines(path):  # a killed run's torn last line is left out
        try:
            # A change to continue from `start` is noted again.
            if record["step"] <= start and not (record["step"] == start and record.get("event") == "changed"):
                kept.append(line)
        except (KeyError, TypeError):
            continue
    write_atomically(path, "".join(line + "\n" for line in kept).encode())
