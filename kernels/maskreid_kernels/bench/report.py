"""The records as one CSV, a plot for each question (time, memory, error over N) and a dated Markdown
report."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .figures import Machine, markdown_table, write_rows, write_whole
from .providers import FLOOR
from .records import Record, as_row

METRICS = {
    "time": "forward + backward, ms",
    "memory": "extra peak, MiB (drawn from 1)",
    "error": "gradient error, relative",
}


def write_csv(path: Path, records: Sequence[Record], machine: Machine) -> None:
    write_rows(path, [as_row(record) | vars(machine) for record in records])


def write_plots(folder: Path, stem: str, records: Sequence[Record]) -> list[Path]:
    """One picture a metric: a panel for each kernel and D, a line for each provider over N."""
    from matplotlib.figure import Figure

    written = []
    for metric, label in METRICS.items():
        shown = [
            r for r in records if r.metric == metric and r.mode in ("both", "forward") and r.y50 is not None
        ]
        shown = [r for r in shown if r.mode == "both" or r.provider == FLOOR]
        panels = sorted({(r.kernel, r.D, r.K, r.violators) for r in shown}, key=str)
        panels = [
            p for p in panels if len({r.N for r in shown if (r.kernel, r.D, r.K, r.violators) == p}) > 1
        ]
        if not panels:
            continue
        columns = min(len(panels), 4)
        rows = -(-len(panels) // columns)
        figure = Figure(figsize=(4.2 * columns, 3.2 * rows + 0.4), layout="constrained")
        names = [name for name in dict.fromkeys(r.provider for r in shown) if name != FLOOR]
        colours = {name: f"C{place}" for place, name in enumerate(names)} | {FLOOR: "black"}
        handles: dict[str, Any] = {}
        for number, panel in enumerate(panels):
            axes = figure.add_subplot(rows, columns, number + 1)
            of_panel = [r for r in shown if (r.kernel, r.D, r.K, r.violators) == panel]
            handles |= _draw_panel(axes, of_panel, metric, colours)
            axes.set_ylabel(label)
        figure.legend(handles.values(), handles, loc="outside upper center", ncols=len(handles), fontsize=8)
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=110)
        path = folder / f"{stem}-{metric}.png"
        write_whole(path, picture.getvalue())
        written.append(path)
    return written


def _draw_panel(
    axes: Any, records: Sequence[Record], metric: str, colours: Mapping[str, str]
) -> dict[str, Any]:
    """The lines of one kernel, D and K, which they share; returns each provider's."""
    lines = {}
    for provider in dict.fromkeys(r.provider for r in records):
        line = sorted((r.N, r.y50, r.y20, r.y80) for r in records if r.provider == provider)
        n, y50, y20, y80 = (list(values) for values in zip(*line, strict=True))
        # Below a megabyte the figure is the allocator's, and 0 has no logarithm.
        if metric == "memory":
            y50, y20, y80 = ([max(y, 1.0) for y in values] for values in (y50, y20, y80))
        ours = provider.startswith("maskreid")
        style = "-" if ours else ":" if provider == FLOOR else "--"
        colour, width = colours[provider], 2 if ours else 1.2
        (lines[provider],) = axes.plot(n, y50, style, marker=".", color=colour, linewidth=width)
        axes.fill_between(n, y20, y80, color=colour, alpha=0.15, linewidth=0)
    first = records[0]
    violators = "" if first.violators is None else f", {100 * first.violators:g} % violators"
    axes.set(xscale="log", yscale="log", xlabel="N")
    sizes = sorted({r.N for r in records})
    axes.set_xticks(sizes, [str(size) for size in sizes], rotation=30, fontsize=7)
    axes.set_xticks([], minor=True)
    axes.set_title(f"{first.kernel}, D = {first.D}, K = {first.K}{violators}", fontsize=9)
    axes.grid(True, which="major", alpha=0.3)
    return lines


def table(records: Sequence[Record]) -> list[list[str]]:
    """One row per case and provider: median times, ratio to ours, memory, error, or why there is no
    figure."""
    lines = []
    by_case: dict[tuple[object, ...], list[Record]] = {}
    for r in records:
        by_case.setdefault((r.kernel, r.N, r.D, r.K, r.violators, r.active, r.dtype), []).append(r)
    for case, of_case in by_case.items():
        ours = _value(of_case, "maskreid auto", "both", "time")
        for provider in dict.fromkeys(r.provider for r in of_case):
            mine = [r for r in of_case if r.provider == provider]
            both = _value(mine, provider, "forward" if provider == FLOOR else "both", "time")
            memory, error = (_value(mine, provider, "both", metric) for metric in ("memory", "error"))
            status = next((r.status for r in mine if r.status != "ok"), "")
            kernel, n, d, k, share, active, dtype = case
            lines.append(
                [
                    f"{kernel}, N {n}, D {d}, K {k}"
                    + (f", {100 * float(str(share)):g} %" if share is not None else ""),
                    f"{100 * float(str(active)):.0f} %",
                    str(dtype),
                    provider,
                    _text(_value(mine, provider, "forward", "time")),
                    _text(_value(mine, provider, "backward", "time")),
                    _text(both),
                    f"{both / ours:.2f}" if both and ours else "",
                    _text(memory),
                    f"{error:.1e}" if error is not None else "",
                    status,
                ]
            )
    return lines


COLUMNS = (
    "case",
    "active",
    "dtype",
    "provider",
    "forward ms",
    "backward ms",
    "both ms",
    "/ auto",
    "peak MiB",
    "error",
    "",
)


def markdown(
    records: Sequence[Record], machine: Machine, notes: Sequence[str], pictures: Sequence[Path]
) -> str:
    lines = [f"# Loss step, {machine.date}", ""]
    lines += [f"- {key}: {value}" for key, value in vars(machine).items()]
    lines.append(
        "- times are medians of interleaved rounds; memory is beyond rows and gradient; error is that of the "
        "gradient against chunked float64, relative; active: anchors that push a negative away"
    )
    lines += ["", *notes, ""]
    lines += markdown_table(COLUMNS, table(records))
    lines += ["", *(f"![{picture.stem}]({picture.name})" for picture in pictures)]
    return "\n".join(lines) + "\n"


def _value(records: Sequence[Record], provider: str, mode: str, metric: str) -> float | None:
    for r in records:
        if (r.provider, r.mode, r.metric) == (provider, mode, metric) and r.y50 is not None:
            return r.y50
    return None


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"
