"""What masks look like: a histogram of their coverage and a contact sheet of the worst."""

import json
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps

from maskreid_shards import JudgedMask, QualityReport, ShardSet, decode_pair
from maskreid_shards.atomic import write_atomically
from maskreid_shards.mask_quality import DEFECTS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 4  # samples in a row of the sheet, three pictures each
CUT_COLOUR = (255, 0, 255)  # what the mask removes: no clothing is so magenta
COLOURS = {"empty": "#7a1fa2", "full": "#c8322b", "fragmented": "#c77700", "tiny": "#2a5ea8"}


def quality_lines(report: QualityReport) -> list[str]:
    """The report for people, one fact a line."""
    checked = sum(report.checked.values())
    splits = ", ".join(f"{name} {count}" for name, count in report.checked.items())
    quantiles = ", ".join(
        f"{100 * float(q):.0f} %: {value:.3f}" for q, value in report.coverage_quantiles.items()
    )
    lines = [f"{checked} masks ({splits})", f"coverage, quantiles: {quantiles}", "coverage    masks"]
    width = 1 / len(report.histogram)
    for number, count in enumerate(report.histogram):
        bar = "#" * -(-40 * count // max(report.histogram))
        lines.append(f"{number * width:.2f}-{(number + 1) * width:.2f} {count:7d} {bar}".rstrip())
    lines += [f"{count} {defect}: {DEFECTS[defect]}" for defect, count in report.counts.items()]
    return lines


def write_quality(report: QualityReport, shards: ShardSet, folder: Path, worst: int) -> list[Path]:
    """Write `masks.json`, `coverage.png` and, where a mask has a defect, `worst.png`; returns their paths.

    A `worst.png` of an earlier run is removed when there is nothing to show.
    """
    paths = [folder / "masks.json", folder / "coverage.png"]
    write_atomically(paths[0], (json.dumps(report.content(), indent=1) + "\n").encode())
    _save(_coverage_figure(report), paths[1])
    sheet = folder / "worst.png"
    if report.defective:
        _save(_contact_sheet(report.worst(worst), shards, report), sheet)
        paths.append(sheet)
    else:
        sheet.unlink(missing_ok=True)
    return paths


def _coverage_figure(report: QualityReport) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.6), dpi=110, layout="constrained")
    axis = figure.subplots()
    bins = len(report.histogram)
    axis.bar((np.arange(bins) + 0.5) / bins, report.histogram, 0.9 / bins, color="#2a5ea8")
    median = report.coverage_quantiles["0.5"]
    axis.axvline(median, color="#222222", linewidth=1, linestyle="--")
    axis.set_ylim(0, 1.15 * max(report.histogram))
    axis.text(median + 0.01, 1.1 * max(report.histogram), f"median {median:.2f}", fontsize=9, va="center")
    axis.set_xlim(0, 1)
    axis.set_xlabel("coverage: share of the image that is person")
    axis.set_ylabel("masks")
    axis.set_title(
        f"{sum(report.checked.values())} masks: "
        + ", ".join(f"{n} {kind}" for kind, n in report.counts.items()),
        fontsize=10,
    )
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def _contact_sheet(worst: Sequence[JudgedMask], shards: ShardSet, report: QualityReport) -> "Figure":
    """Image, mask and cut-out of each sample side by side; key, split and reason above."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    columns = min(COLUMNS, len(worst))
    rows = -(-len(worst) // columns)
    figure = Figure(
        figsize=(2.9 * columns, 2.15 * rows + 0.6),
        dpi=110,
        layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08),
    )
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis in axes:
        axis.set_axis_off()
    for axis, mask in zip(axes, worst, strict=False):
        image, person = decode_pair(shards.split(mask.split).read(mask.number))
        axis.imshow(_triple(image, person), interpolation="nearest")
        defect = mask.quality.defect
        axis.set_title(
            f"{mask.split} {mask.key}\n{defect}: {mask.quality.reason()}", fontsize=8,
            color=COLOURS[defect] if defect else "black",
        )  # fmt: skip
    counts = ", ".join(f"{count} {kind}" for kind, count in report.counts.items())
    figure.suptitle(
        f"{len(worst)} of {len(report.defective)} defective masks ({counts}; {sum(report.checked.values())} "
        "masks) — image | mask | cut-out",
        fontsize=10,
    )
    return figure


def _triple(image: Image.Image, mask: Image.Image) -> Image.Image:
    """Image, mask and the image where the mask cuts it out, at a common height of 256 pixels."""
    cut = Image.composite(image, Image.new("RGB", image.size, CUT_COLOUR), mask)
    height, gap = 256, 8
    width = max(5, round(image.width * height / image.height))
    sheet = Image.new("RGB", (3 * width + 2 * gap, height), "white")
    for place, picture in enumerate((image, mask.convert("RGB"), cut)):
        framed = ImageOps.expand(
            picture.resize((width - 4, height - 4), Image.Resampling.BICUBIC), 2, "#888888"
        )
        sheet.paste(framed, (place * (width + gap), 0))
    return sheet


def _save(figure: "Figure", path: Path) -> None:
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    write_atomically(path, buffer.getvalue())
