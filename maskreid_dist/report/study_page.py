"""A study as one self-contained HTML page, and as a picture."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from io import BytesIO
from pathlib import Path

from maskreid_dist.report.page import Fitting, write_page
from maskreid_dist.report.statistics import BLUE, ORANGE

GREY = "#888888"


@dataclass(frozen=True)
class StudyRow:
    """cells: one for each of the page's columns. values: mAP of each seed in per cent. points: the difference
    to the base row with its interval's ends, None: no difference."""

    name: str
    cells: Sequence[str]
    values: Sequence[float]
    points: tuple[float, float, float] | None


@dataclass(frozen=True)
class StudyPage:
    """rows: of which a seed is done. claims: name, verdict and sentence; rule: how a verdict follows.
    to_come: lines that name the rows and claims that there is nothing of yet."""

    name: str
    standing: str
    columns: Sequence[str]
    rows: Sequence[StudyRow]
    base_row: str
    rule: str
    claims: Sequence[tuple[str, str, str]]
    to_come: Sequence[str] = ()


def study_figure(page: StudyPage) -> bytes:
    """A PNG: mAP of every seed by row, and the difference to the base row with its interval."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.4 + 0.28 * len(page.rows)), dpi=110, layout="constrained")
    seeds, differences = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    for place, row in enumerate(page.rows):
        seeds.plot(row.values, [place] * len(row.values), "o", color=BLUE, markersize=4, alpha=0.7)
        seeds.plot([sum(row.values) / len(row.values)], [place], "|", color=ORANGE, markersize=12)
        if row.points:
            value, low, high = row.points
            clear = low > 0 or high < 0
            differences.plot([low, high], [place, place], "-", color=BLUE if clear else GREY)
            differences.plot([value], [place], "o", color=BLUE if clear else GREY, markersize=4)
    seeds.set_yticks(range(len(page.rows)), [row.name for row in page.rows], fontsize=8)
    seeds.invert_yaxis()
    seeds.set_xlabel("mAP (hits), per cent: seeds, and their mean", fontsize=8)
    differences.axvline(0, color=GREY, linewidth=0.8)
    differences.set_xlabel(f"mAP less that of {page.base_row}, points, 95 %", fontsize=8)
    for axis in (seeds, differences):
        axis.tick_params(labelsize=8)
        axis.grid(axis="x", alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def write_study_page(path: Path, page: StudyPage, picture: bytes) -> None:
    """Write the page, all at once. picture: of `study_figure`."""
    head = "".join(f"<th>{escape(name)}</th>" for name in page.columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row.cells) + "</tr>" for row in page.rows
    )
    data = base64.b64encode(picture).decode()
    parts: dict[str, str | Fitting] = {
        "Standing": f"<p class='note'>{escape(page.standing)}.</p>",
        "Rows": "<h2>Rows, in per cent: mean ± the standard deviation of a seed</h2>"
        f"<div tabindex='0' class='scroll'><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>",
        "Picture": f"<p><img src='data:image/png;base64,{data}' style='max-width:100%' "
        "alt='mAP of every row, and its difference to the base row'></p>",
    }
    if page.claims:
        items = "".join(
            f"<li><b>{escape(name)}: {escape(verdict)}.</b> {escape(sentence)}</li>"
            for name, verdict, sentence in page.claims
        )
        parts["Claims"] = f"<h2>Claims</h2><p class='note'>{escape(page.rule)}</p><ul>{items}</ul>"
    parts["To come"] = "".join(f"<p class='note'>{escape(line)}</p>" for line in page.to_come)
    write_page(path, f"Study {page.name}", parts)
