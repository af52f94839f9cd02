"""A study's summary as Markdown and CSV, and for the page and the picture of report/study_page.py."""

import csv
import io
from collections.abc import Sequence
from typing import Any

from maskreid_dist.report.study_page import StudyPage, StudyRow
from maskreid_dist.study.differences import Interval
from maskreid_dist.study.summary import RULE, RowSummary, Summary

SHORT = (0, 2, 3, 4, 6)  # those of a terminal
COLUMNS = ("row", "claim", "seeds", "mAP", "Rank-1", "mINP", "less the base row: mAP", "Rank-1", "minutes")


def cells(row: RowSummary, of_seeds: int, base_row: str) -> list[str]:
    """Of a row that was run: one for each of COLUMNS."""
    seeds = f"{len(row.seeds)} of {of_seeds}"
    figures = [figure.text() if figure else "" for figure in (row.mAP, row.rank1, row.mINP)]
    if row.row.name == base_row:
        differences = ["the base row", ""]
    elif row.differences is None:
        differences = ["cannot be compared", ""]
    else:
        differences = [_short(row.differences[name]) for name in ("mAP", "rank1")]
    minutes = "" if row.minutes is None else f"{row.minutes:.1f}"
    return [row.row.name, row.row.claim or "", seeds, *figures, *differences, minutes]


def markdown(summary: Summary) -> str:
    """The whole, to be committed."""
    rows = [cells(row, _of_seeds(summary), summary.base_row) for row in summary.run()]
    lines = [
        f"# {summary.name}",
        "",
        f"Per cent, mean over seeds ± the standard deviation of a seed. {summary.standing()}.",
        "",
        *_table(COLUMNS, rows),
    ]
    if summary.judged():
        lines += ["", "## Claims", "", RULE, ""]
        for claim in summary.judged():
            source = f" {claim.claim.source}" if claim.claim.source else ""
            lines.append(f"- **{claim.claim.name}**: {claim.sentence()}{source}")
    for line in summary.to_come():
        lines += ["", line]
    return "\n".join(lines) + "\n"


def rows_csv(summary: Summary) -> str:
    """A line a row: figures in per cent, differences in points."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    names = [f"{figure}_{part}" for figure in ("mAP", "rank1", "mINP") for part in ("mean", "spread")]
    names += [f"{figure}_{part}" for figure in ("mAP", "rank1") for part in ("difference", "low", "high")]
    writer.writerow(["row", "claim", "seeds", *names, "minutes"])
    for row in summary.rows:
        values: list[float | None] = []
        for figure in (row.mAP, row.rank1, row.mINP):
            values += [figure.mean, figure.spread] if figure else [None, None]
        for name in ("mAP", "rank1"):
            one = row.differences[name] if row.differences else None
            values += [100 * one.value, 100 * one.low, 100 * one.high] if one else [None] * 3
        values.append(row.minutes)
        shown = ["" if value is None else f"{value:.4f}" for value in values]
        writer.writerow([row.row.name, row.row.claim or "", " ".join(map(str, row.seeds)), *shown])
    return buffer.getvalue()


def content(summary: Summary) -> dict[str, Any]:
    """The same for JSON: the columns of `rows_csv`, numbers or null, and the claims."""
    lines = list(csv.DictReader(io.StringIO(rows_csv(summary))))
    text = ("row", "claim", "seeds")
    rows = [
        {name: value if name in text else float(value) if value else None for name, value in line.items()}
        for line in lines
    ]
    claims = [
        {"name": one.claim.name, "verdict": one.verdict, "said": one.sentence()} for one in summary.judged()
    ]
    base = {"study": summary.name, "base_row": summary.base_row, "unit": "percent"}
    return {**base, "rows": rows, "claims": claims, "to_come": list(summary.to_come())}


def study_page(summary: Summary) -> StudyPage:
    """For report/study_page.py."""
    rows = []
    for row in summary.run():
        one = row.differences["mAP"] if row.differences else None
        points = (100 * one.value, 100 * one.low, 100 * one.high) if one else None
        values = row.mAP.values if row.mAP else ()
        rows.append(StudyRow(row.row.name, cells(row, _of_seeds(summary), summary.base_row), values, points))
    claims = [
        (one.claim.name, one.verdict, f"{one.sentence()} {one.claim.source}".strip())
        for one in summary.judged()
    ]
    return StudyPage(
        summary.name, summary.standing(), COLUMNS, rows, summary.base_row, RULE, claims, summary.to_come()
    )


def _of_seeds(summary: Summary) -> int:
    return summary.of // len(summary.rows)


def _short(interval: Interval) -> str:
    value, low, high = (100 * number for number in (interval.value, interval.low, interval.high))
    return f"{value:+.2f} ({low:+.2f} to {high:+.2f})"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Markdown's lines."""
    return [f"| {' | '.join(head)} |", "|" + "---|" * len(head), *(f"| {' | '.join(row)} |" for row in rows)]
