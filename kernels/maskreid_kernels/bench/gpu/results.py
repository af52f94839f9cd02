"""Figures as they are written: one JSON line each, at once, and a Markdown table of them all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ..activity import ACTIVE_FROM
from ..figures import Machine, Promise, Quantiles, markdown_table, write_whole

COLUMNS = ("step", "figure", "measured", "20 to 80 %", "unit", "predicted", "active", "promise", "")


@dataclass(frozen=True)
class Figure:
    """One measurement. `key` names it in the predictions; `active`: share of the batch's anchors that are
    active.

    `bar`: what is promised, at least or at most. `value` None: there is no figure, and `note` says why.
    """

    key: str
    value: float | None
    unit: str
    y20: float | None = None
    y80: float | None = None
    active: float | None = None
    bar: float | None = None
    at_least: bool = False
    note: str = ""

    @classmethod
    def of(cls, key: str, found: Quantiles, unit: str = "ms", active: float | None = None) -> Figure:
        return cls(key, found.y50, unit, found.y20, found.y80, active)

    def promised(self, bar: float, *, at_least: bool = False) -> Figure:
        """With a promise. A backward that is nearly empty keeps none: then there is no figure."""
        if self.active is not None and self.active < ACTIVE_FROM:
            note = f"{self.value}, but only {100 * self.active:.0f} % of the anchors are active"
            return replace(self, value=None, bar=bar, at_least=at_least, note=note)
        return replace(self, bar=bar, at_least=at_least)

    @property
    def promise(self) -> Promise | None:
        return None if self.bar is None else Promise(self.key, self.value, self.bar, self.at_least)


@dataclass(frozen=True)
class Line:
    """A figure of a step beside its prediction; `failure`: what ended the step, instead of a figure."""

    step: str
    figure: Figure | None = None
    predicted: float | None = None
    failure: str = ""

    @property
    def kept(self) -> bool:
        promise = self.figure.promise if self.figure else None
        return not self.failure and (promise is None or promise.kept)

    def text(self) -> str:
        if self.figure is None:
            return f"FAIL  {self.step}: {self.failure}"
        promise, predicted = self.figure.promise, _number(self.predicted)
        beside = f", predicted {predicted}" if predicted else ""
        active = "" if self.figure.active is None else f", {100 * self.figure.active:.0f} % active"
        note = f" ({self.figure.note})" if self.figure.note else ""
        if promise:
            return promise.line() + beside + active + note
        return (
            f"      {self.figure.key}: {_number(self.figure.value)} {self.figure.unit}{beside}{active}{note}"
        )


class Journal:
    """Every line of a run, printed and appended to OUTPUT/results.jsonl as it comes; `table.md` after each
    step."""

    def __init__(self, output: Path, machine: Machine, predictions: dict[str, float], dry: bool) -> None:
        output.mkdir(parents=True, exist_ok=True)
        self.output, self.machine, self.predictions, self.dry = output, machine, predictions, dry
        self.lines: list[Line] = []
        self._append({"machine": asdict(machine), "dry": dry})

    def add(self, step: str, figure: Figure) -> None:
        self._write(Line(step, figure, self.predictions.get(figure.key)))

    def fail(self, step: str, failure: str) -> None:
        self._write(Line(step, failure=failure))

    def _write(self, line: Line) -> None:
        self.lines.append(line)
        self._append(asdict(line))
        print(line.text(), flush=True)

    def _append(self, entry: dict[str, object]) -> None:
        with (self.output / "results.jsonl").open("a") as file:
            file.write(json.dumps(entry) + "\n")

    def write_table(self) -> None:
        machine = self.machine
        lines = [f"# The losses on {machine.device}, {machine.date}", ""]
        if self.dry:
            lines += ["A dry run at toy sizes in the interpreter: the figures mean nothing.", ""]
        lines += [f"- {key}: {value}" for key, value in vars(machine).items()]
        lines += ["", *markdown_table(COLUMNS, [_cells(line) for line in self.lines])]
        write_whole(self.output / "table.md", ("\n".join(lines) + "\n").encode())


def _cells(line: Line) -> Sequence[str]:
    figure = line.figure
    if figure is None:
        return (line.step, "", "", "", "", "", "", "FAIL", line.failure)
    promise = figure.promise
    sign = ">=" if figure.at_least else "<="
    spread = "" if figure.y20 is None else f"{_number(figure.y20)} to {_number(figure.y80)}"
    return (
        line.step,
        figure.key,
        _number(figure.value),
        spread,
        figure.unit,
        _number(line.predicted),
        "" if figure.active is None else f"{100 * figure.active:.0f} %",
        f"{'PASS' if promise.kept else 'MISS'} {sign} {promise.bar:.3g}" if promise else "",
        figure.note,
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
