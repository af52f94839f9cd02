"""How a run stands, read from its directory: by who trains it, or by anybody else, while it trains or
later."""

import fcntl
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from maskreid_dist.errors import UserError
from maskreid_dist.exit_status import DONE, STOPPED
from maskreid_dist.run_directory import BEST, CHECKPOINTS, EVENTS, LOCK, METRICS, RUN, STATUS
from maskreid_shards.opening import json_lines, read_json, regular_only

# saved: ended before its last step, --resume continues; empty: the same, with nothing to continue from
State = Literal["training", "done", "saved", "empty"]


@dataclass(frozen=True)
class RunState:
    """`exit_status`: how its ranks ended (maskreid_dist.exit_status), None where they have not said. `step`:
    steps done by the last record or checkpoint, of `steps` (None: not known). `records`,
    `events`: of metrics.jsonl and events.jsonl, oldest first. `facts`: run.json, {} where there is none.
    `best`: best.json."""

    path: Path
    state: State
    exit_status: int | None
    step: int
    steps: int | None
    records: list[dict[str, Any]]
    events: list[dict[str, Any]]
    checkpoints: list[str]
    facts: dict[str, Any]
    best: dict[str, Any] | None

    @property
    def shown_state(self) -> str:
        """With the exit status where it is not one of an orderly end."""
        odd = self.state != "training" and self.exit_status not in (None, DONE, STOPPED)
        return f"{self.state}, status {self.exit_status}" if odd else self.state

    @property
    def losses(self) -> list[tuple[int, float]]:
        return [(r["step"], r["loss"]) for r in self.records if isinstance(r.get("loss"), float)]

    @property
    def evaluations(self) -> list[tuple[int, float]]:
        """Step and mAP (hits) in per cent."""
        return [(r["step"], r["mAP_hits"]) for r in self.records if isinstance(r.get("mAP_hits"), float)]

    @property
    def last_time(self) -> datetime | None:
        """Of the last record, of the start where there is none."""
        times = [*(r["time"] for r in self.records[-1:] if "time" in r), self.facts.get("started")]
        return next((datetime.fromisoformat(text) for text in times if text), None)

    @property
    def recipe(self) -> str:
        """What of a recipe tells runs apart: "ranking, 16 x 4, adamw 0.003"."""
        config = self.facts.get("config")
        if not config:
            return ""
        batch, optimizer = config["batch"], config["optimizer"]
        size = "paper" if batch["sampling"] == "paper" else f"{batch['identities']} x {batch['images']}"
        return f"{config['loss']['name']}, {size}, {optimizer['name']} {optimizer['lr']:g}"


def find_runs(folder: Path) -> list[Path]:
    """The run directories in a folder, the one that was written last first. Raises UserError: no such
    folder."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; name one that holds run directories, such as runs")
    found = [path for path in folder.iterdir() if is_run(path)]
    return sorted(found, key=lambda path: (-_last_write(path), path.name))


def is_run(path: Path) -> bool:
    return any((path / name).exists() for name in (RUN, METRICS, CHECKPOINTS))


def read_run(path: Path) -> RunState:
    """Raises UserError: no run directory. What cannot be read of a run that is being written is passed
    over."""
    if not is_run(path):
        raise UserError(f"{path}: no run directory; name one such as runs/demo")
    records, events = list(_lines(path / METRICS)), list(_lines(path / EVENTS))
    facts = _json(path / RUN) or {}
    checkpoints = sorted(
        p.name for p in (path / CHECKPOINTS).glob("step_*") if p.name.removeprefix("step_").isdecimal()
    )
    saved = int(checkpoints[-1].removeprefix("step_")) if checkpoints else 0
    steps = facts.get("steps")
    state: State = "saved" if checkpoints else "empty"
    if steps is not None and saved >= steps:
        state = "done"
    if is_locked(path / LOCK):
        state = "training"
    step = max([saved, *(record["step"] for record in records[-1:])])
    status = (_json(path / STATUS) or {}).get("status")
    return RunState(
        path.absolute(),
        state,
        status if isinstance(status, int) else None,
        step,
        steps,
        records,
        events,
        checkpoints,
        facts,
        _json(path / BEST),
    )


def is_locked(lock: Path) -> bool:
    """Whether a training of this machine holds a run directory. One of another machine is seen where the
    disk's locks are shared."""
    try:
        with open(lock, opener=regular_only) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _last_write(path: Path) -> float:
    times = [(path / name).stat().st_mtime for name in (RUN, METRICS) if (path / name).exists()]
    return max(times, default=path.stat().st_mtime)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON lines that have a step; a torn last one is passed over."""
    if not path.is_file():
        return
    for _, record in json_lines(path):
        if isinstance(record.get("step"), int):
            yield record


def _json(path: Path) -> dict[str, Any] | None:
    try:
        value = read_json(path)
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
