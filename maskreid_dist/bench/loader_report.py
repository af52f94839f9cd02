"""What `maskreid bench loader` found: promises with PASS or MISS, a tidy CSV, a
plot and a dated Markdown report."""

import io
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from maskreid_dist.bench.loader import SOURCES, Run, WorkerMemory, ratio
from maskreid_kernels.bench.figures import (
    Machine,
    Promise,
    Quantiles,
    markdown_table,
    write_rows,
    write_whole,
)

# Of a worker over an epoch: what an allocator may hold, not what a leak of a batch a step would.
GROWTH_MB = 5.0


@dataclass(frozen=True)
class LoaderResults:
    """Pairs per second of every run by round; `pairs`: in the data set."""

    pairs: int
    steps: int
    drop_caches: bool
    pairs_s: dict[Run, list[float]]
    memory: WorkerMemory

    def median(self, run: Run) -> float:
        return Quantiles.of(self.pairs_s[run]).y50


def promises(found: LoaderResults) -> list[Promise]:
    """Medians of the ratios of the same rounds, for every number of workers."""
    kept = []
    trained = [run for run in found.pairs_s if (run.source, run.stage) == ("shards", "augment")]
    for run in sorted(trained, key=lambda run: (run.cold, run.workers)):
        peer, bar = ("loose", 1.1) if run.cold else ("memory", 0.95)
        share = ratio(found.pairs_s, run, replace(run, source=peer))
        text = (
            f"cold cache, {run.workers} workers: shards, augmented, beside loose files"
            if run.cold
            else f"{run.workers} workers: shards, augmented, beside decoding and augmenting alone"
        )
        kept.append(Promise(text, share.y50 if share else None, bar, True))
    text = f"MB by which a worker grows in the second epoch of {found.memory.batches} batches"
    return [*kept, Promise(text, found.memory.growth_mb, GROWTH_MB, False)]


COLUMNS = ("cache", "stage", "workers", "source", "pairs/s", "y20", "y80", "shards /")


def table(found: LoaderResults) -> list[list[str]]:
    """A row for each run; the last column: how many times faster shards are, median over the rounds."""
    lines = []
    for run in _ordered(found.pairs_s):
        q = Quantiles.of(found.pairs_s[run])
        beside = ratio(found.pairs_s, replace(run, source="shards"), run)
        figures = (f"{q.y50:,.0f}", f"{q.y20:,.0f}", f"{q.y80:,.0f}", f"{beside.y50:.2f}" if beside else "")
        lines.append([_cache(run), run.stage, str(run.workers), run.source, *figures])
    return lines


def write_csv(path: Path, found: LoaderResults, machine: Machine) -> None:
    """One figure a line, with its machine: pairs per second, and the memory of a worker in MB."""
    about = {"pairs": found.pairs, "steps": found.steps, "drop_caches": found.drop_caches, **vars(machine)}
    lines = []
    for run in _ordered(found.pairs_s):
        q = Quantiles.of(found.pairs_s[run])
        where = {"source": run.source, "stage": run.stage, "workers": run.workers, "cache": _cache(run)}
        lines.append({**where, "metric": "pairs_s", "y50": q.y50, "y20": q.y20, "y80": q.y80, **about})
    for name in ("first_mb", "second_mb"):
        where = {"source": "shards", "stage": "augment", "workers": 1, "cache": "warm"}
        value = getattr(found.memory, name)
        lines.append({**where, "metric": f"worker_{name}", "y50": value, "y20": "", "y80": "", **about})
    write_rows(path, lines)


def write_plot(path: Path, found: LoaderResults) -> None:
    """A panel for each stage and state of the cache, a line for each source over the workers."""
    from matplotlib.figure import Figure

    panels = list(
        dict.fromkeys((_cache(run), run.stage) for run in _ordered(found.pairs_s) if "," not in run.stage)
    )
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.4 * columns, 3.4 * rows), layout="constrained")
    colours = {source: f"C{number}" for number, source in enumerate(SOURCES)}
    for number, panel in enumerate(panels):
        axes = figure.add_subplot(rows, columns, number + 1)
        runs = [run for run in _ordered(found.pairs_s) if (_cache(run), run.stage) == panel]
        ticks = {workers: place for place, workers in enumerate(sorted({run.workers for run in runs}))}
        for source in (s for s in SOURCES if any(run.source == s for run in runs)):
            line = [(ticks[r.workers], Quantiles.of(found.pairs_s[r])) for r in runs if r.source == source]
            x = [place for place, _ in line]
            style = "-" if source == "shards" else "--"
            width = 2.2 if source == "shards" else 1.2
            axes.plot(
                x, [q.y50 for _, q in line], style, marker=".", label=source, color=colours[source], lw=width
            )
            axes.fill_between(
                x, [q.y20 for _, q in line], [q.y80 for _, q in line], alpha=0.15, color=colours[source]
            )
        axes.set_xticks(list(ticks.values()), [str(workers) for workers in ticks])
        axes.set(xlabel="workers", ylabel="pairs per second", ylim=(0, None))
        axes.set_title(f"{panel[1]}, {panel[0]} cache", fontsize=10)
        axes.grid(True, alpha=0.3)
        axes.legend(fontsize=7)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    write_whole(path, picture.getvalue())


def markdown(found: LoaderResults, machine: Machine, picture: Path) -> str:
    memory = found.memory
    dropped = "page cache, names and inodes" if found.drop_caches else "the files' pages alone"
    lines = [f"# Loader, {machine.date}", ""]
    lines += [f"- {key}: {value}" for key, value in vars(machine).items()]
    lines += [
        f"- {found.pairs} pairs; a figure is {found.steps} batches of 16 x 4 ({3 * found.steps} of warm "
        "augmentation) after workers have started; medians over rounds",
        f"- cold cache: emptied before each figure ({dropped})",
        f"- a worker's private memory, epochs of {memory.batches} batches: {memory.first_mb:.1f} MB at most "
        f"in the first, {memory.second_mb:.1f} MB in the second",
        "",
        *(f"- {promise.line()}" for promise in promises(found)),
        "",
        *markdown_table(COLUMNS, table(found)),
        "",
        f"![pairs per second over the workers]({picture.name})",
    ]
    return "\n".join(lines) + "\n"


def _cache(run: Run) -> str:
    return "cold" if run.cold else "warm"


def _ordered(runs: Iterable[Run]) -> list[Run]:
    stages = ("raw", "decode", "decode, torchvision", "augment")
    return sorted(
        runs, key=lambda run: (not run.cold, stages.index(run.stage), run.workers, SOURCES.index(run.source))
    )
