"""What every benchmark of this project writes beside its figures: quantiles, promises, the machine, CSV
files."""

import csv
import datetime
import io
import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np


class BenchError(ValueError):
    """What cannot be measured here, and what to do about it, in one line."""


@dataclass(frozen=True)
class Quantiles:
    """Median, 20th and 80th percentile."""

    y50: float
    y20: float
    y80: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Quantiles":
        y20, y50, y80 = np.percentile(values, [20, 50, 80])
        return cls(float(y50), float(y20), float(y80))


@dataclass(frozen=True)
class Promise:
    """A figure beside its bar. `at_least`: whether more is better."""

    text: str
    value: float | None
    bar: float
    at_least: bool

    @property
    def kept(self) -> bool:
        if self.value is None:
            return False
        return self.value >= self.bar if self.at_least else self.value <= self.bar

    def line(self) -> str:
        value = "no figure" if self.value is None else f"{self.value:.2f}"
        sign = ">=" if self.at_least else "<="
        return f"{'PASS' if self.kept else 'MISS'}  {self.text}: {value} (promised {sign} {self.bar:.3g})"


@dataclass(frozen=True)
class Machine:
    """What a figure needs beside it to mean anything."""

    device: str
    threads: int
    python: str
    torch: str
    triton: str
    commit: str
    date: str

    @classmethod
    def here(cls, device: str) -> "Machine":
        import torch
        import triton

        return cls(
            torch.cuda.get_device_name() if device == "cuda" else _processor(),
            torch.get_num_threads(),
            platform.python_version(),
            torch.__version__,
            triton.__version__,
            _commit(),
            datetime.date.today().isoformat(),
        )

    def line(self) -> str:
        """For the top of what a benchmark prints."""
        return (
            f"{self.device}, {self.threads} threads, torch {self.torch}, triton {self.triton}, "
            f"commit {self.commit or '-'}"
        )


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def _commit() -> str:
    """The checkout's commit, marked where files differ from it; empty outside a checkout or without git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=10", "--match="]
    try:
        found = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False
        )
    except OSError:
        return ""
    return found.stdout.strip()


def results(
    rows: Sequence[Mapping[str, object]], promises: Sequence[Promise], machine: Machine | None = None
) -> dict[str, object]:
    """What `--json` prints of a benchmark."""
    about = {"machine": vars(machine)} if machine else {}
    return {**about, "rows": rows, "promises": [{**vars(one), "kept": one.kept} for one in promises]}


def json_line(figures: Mapping[str, object]) -> str:
    """One line of JSON, for programs. A number that is none becomes null."""
    return json.dumps(json.loads(json.dumps(figures), parse_constant=lambda name: None))


def write_rows(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """A CSV of at least one row; all have the first one's columns."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, text.getvalue().encode())


def write_whole(path: Path, data: bytes) -> None:
    """Replace `path` by `data` at once: a run that is stopped leaves the old file or the new one. Makes
    missing folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.partial")
    beside.write_bytes(data)
    os.replace(beside, path)


def aligned(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Rows of text in columns; the first `left` columns flush left, the others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place < left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table."""
    lines = [headings, ["---"] * len(headings), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]
