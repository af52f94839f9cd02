"""Runs on a terminal: a table of many, and one of them in detail."""

from collections.abc import Sequence
from datetime import UTC, datetime

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from maskreid_dist.report.run_state import RunState
from maskreid_dist.run_directory import shares_of_phases

BARS = "▁▂▃▄▅▆▇█"
WIDTH = 60  # of the curves, in characters
SHOWN = 5  # of the evaluations and events, the last
STYLES = {"training": "green", "done": "bold", "saved": "yellow", "empty": "dim"}


def runs_table(runs: Sequence[RunState], now: datetime) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for title in ("run", "state", "steps", "loss", "best mAP", "last record", "recipe"):
        right = title in ("steps", "loss", "best mAP")
        table.add_column(title, justify="right" if right else "left", no_wrap=title != "recipe")
    for run in runs:
        table.add_row(
            run.path.name,
            Text(run.shown_state, style=STYLES[run.state]),
            f"{run.step}/{'?' if run.steps is None else run.steps}",
            f"{run.losses[-1][1]:.3f}" if run.losses else "",
            best(run),
            ago(run.last_time, now),
            run.recipe,
        )
    return table


def run_view(run: RunState, now: datetime) -> Group:
    """How one run stands: progress, where a step's time goes, loss, evaluations, what happened, what is
    saved."""
    done = WIDTH * min(run.step, run.steps) // run.steps if run.steps else 0
    parts: list[RenderableType] = [
        Text.assemble(
            (run.path.name, "bold"),
            "  ",
            (run.shown_state, STYLES[run.state]),
            f"  {run.recipe}",
            f"\n{run.path}",
        ),
        Text("━" * done, style=STYLES[run.state]) + Text("━" * (WIDTH - done), style="dim"),
        f"{_progress(run)}{_remaining(run)}, last record {ago(run.last_time, now) or 'none'}",
        *_speed(run),
    ]
    if run.losses:
        values = [value for _, value in run.losses]
        parts.append(f"\nloss {values[-1]:.4f} (least {min(values):.4f})\n{sparkline(values)}")
    if run.evaluations:
        last = ", ".join(f"{value:.2f} at step {step}" for step, value in run.evaluations[-SHOWN:])
        parts.append(f"\nmAP {last}\nbest {best(run)}")
    for event in run.events[-SHOWN:]:
        known = {key: value for key, value in event.items() if key not in ("step", "time", "event")}
        what = ", ".join(f"{key} {value}" for key, value in known.items())
        parts.append(f"step {event['step']}: {event.get('event', '')} {what}"[:200])
    if run.checkpoints:
        parts.append(f"\nsaved: {', '.join(run.checkpoints)}")
    if run.facts:
        parts.append(
            f"hosts: {', '.join(run.facts.get('hosts', []))}; commit {run.facts.get('commit') or 'none'}"
        )
    return Group(*parts)


def best(run: RunState) -> str:
    """The best mAP, and the step it was reached at."""
    if run.best:
        return f"{run.best['mAP_hits']:.2f} @ {run.best['step']}"
    if not run.evaluations:
        return ""
    step, value = max(run.evaluations, key=lambda pair: pair[1])
    return f"{value:.2f} @ {step}"


def ago(then: datetime | None, now: datetime) -> str:
    """ "12 s ago", "3 h ago"; a date where it is more than two days."""
    if then is None:
        return ""
    seconds = max(0, int((now - then).total_seconds()))
    if seconds > 2 * 86400:
        return then.astimezone(UTC).strftime("%Y-%m-%d")
    return f"{duration(seconds)} ago"


def duration(seconds: float) -> str:
    """In its largest unit that it has two of."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def sparkline(values: Sequence[float], width: int = WIDTH) -> str:
    """Means of equal parts of the values as bars, the highest full."""
    parts = min(width, len(values))
    edges = [part * len(values) // parts for part in range(parts + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in zip(edges[:-1], edges[1:], strict=True)]
    low, high = min(means), max(means)
    span = (high - low) or 1.0
    return "".join(BARS[round((value - low) / span * (len(BARS) - 1))] for value in means)


def _progress(run: RunState) -> str:
    if not run.steps:
        return f"step {run.step}"
    return f"{run.step / run.steps:.0%}, step {run.step} of {run.steps}"


def _remaining(run: RunState) -> str:
    timed = [record["step_ms"] for record in run.records if record.get("step_ms")]
    if run.state != "training" or not timed or run.steps is None:
        return ""
    left_s = (run.steps - run.step) * timed[-1] / 1000
    return f", about {duration(left_s)} left without evaluations and saves"


def _speed(run: RunState) -> list[str]:
    timed = [record for record in run.records if record.get("step_ms")]
    if not timed:
        return []
    last = timed[-1]
    memory = f", {last['gpu_memory_gb']:.1f} GB of GPU memory" if "gpu_memory_gb" in last else ""
    return [
        f"{last['images_per_second']:.0f} images/s, {last['step_ms']:.0f} ms a step{memory}",
        shares_of_phases(last),
    ]
