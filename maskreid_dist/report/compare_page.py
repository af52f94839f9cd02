"""Two runs side by side as one self-contained HTML page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from pathlib import Path

from maskreid_dist.report.lists import FILTERS, attributes, filter_form, lists_part, row_html, who_html
from maskreid_dist.report.page import Fitting, Look, write_page
from maskreid_dist.report.pictures import RankedQuery
from maskreid_dist.report.plots import line_chart, scatter
from maskreid_dist.report.table import retrieval_table

SIDES = ("A", "B")


@dataclass(frozen=True, eq=False)
class ChangedQuery:
    """One query's lists by both; `heading`: gained or lost."""

    first: RankedQuery
    second: RankedQuery

    @property
    def change(self) -> float:
        return self.second.average_precision - self.first.average_precision


@dataclass(frozen=True, eq=False)
class ComparePage:
    """names: of both, where they lie. figures: as in a report's table. differences: of each figure the value,
    low and high end of its interval, in points of per cent. cmc: share of hits by rank, of both.
    average_precisions: of each query by both. settings: what differs in how they were trained, by name."""

    names: tuple[str, str]
    figures: Sequence[tuple[str, Mapping[str, float]]]
    differences: Mapping[str, tuple[float, float, float]]
    cmc: Sequence[Sequence[float]]
    average_precisions: Sequence[tuple[float, float]]
    settings: Mapping[str, tuple[str, str]]
    changed: Sequence[ChangedQuery]


def write_compare_page(path: Path, page: ComparePage) -> None:
    """Write the page, all at once."""
    names = (
        f"<p class='facts'><span><b>A</b> {escape(page.names[0])}</span> "
        f"<span><b>B</b> {escape(page.names[1])}</span></p>"
    )
    table = retrieval_table([(f"{side}: {n}", f) for side, (n, f) in zip(SIDES, page.figures, strict=True)])
    parts: dict[str, str | Fitting] = {
        "Retrieval": f"{names}<h2>Retrieval, in per cent</h2>{table}",
        "B less A": _differences(page.differences),
        "Charts": f"<div class='charts'>{_charts(page)}</div>",
        "What trained them": _settings(page.settings),
        "Queries that changed most": partial(_changed, page.changed),
    }
    write_page(path, f"MaskReID: {page.figures[0][0]} and {page.figures[1][0]}", parts)


def _differences(differences: Mapping[str, tuple[float, float, float]]) -> str:
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{value:+.2f}</td><td>{low:+.2f} to {high:+.2f}</td>"
        f"<td>{verdict(low, high)}</td></tr>"
        for name, (value, low, high) in differences.items()
    )
    return (
        "<h2>B less A, in points</h2><p class='note'>95 % intervals: queries drawn 1000 times, each time the "
        "same for both. They tell about other queries of the same persons, not about other persons, nor "
        "about another training with another seed.</p><div tabindex='0' class='scroll'>"
        "<table class='differences'>"
        f"<thead><tr><th></th><th>difference</th><th>interval</th><th></th></tr></thead><tbody>{rows}</tbody></table></div>"
    )


def verdict(low: float, high: float) -> str:
    if low > 0 or high < 0:
        return "B is better" if low > 0 else "A is better"
    return "may be chance"


def _charts(page: ComparePage) -> str:
    lines = {
        f"{side}: {name}": (list(range(1, len(curve) + 1)), [100 * share for share in curve])
        for side, (name, _), curve in zip(SIDES, page.figures, page.cmc, strict=True)
    }
    gained = sum(b > a for a, b in page.average_precisions)
    lost = sum(b < a for a, b in page.average_precisions)
    return line_chart(
        "CMC: queries with a match among the first k, per cent", lines, "k", y=(0, 100)
    ) + scatter(
        f"Average precision of each query: {gained} better by B, {lost} by A",
        page.average_precisions, "A", "B", diagonal=True,
    )  # fmt: skip


def _settings(settings: Mapping[str, tuple[str, str]]) -> str:
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(a)}</td><td>{escape(b)}</td></tr>"
        for name, (a, b) in settings.items()
    )
    return (
        "<h2>What trained them</h2><p class='note'>The recipes' keys that differ, and where they come from."
        "</p><div tabindex='0' class='scroll wide'><table class='settings'><thead>"
        "<tr><th></th><th>A</th><th>B</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></div>"
    )


def _changed(changed: Sequence[ChangedQuery], most_bytes: int) -> str:
    if not changed:
        return "<h2>Queries that changed most</h2><p class='note'>No query's AP changed.</p>"
    filters = {**FILTERS, "group": ("By B", ""), "cameras": ("Cameras (by B)", "text")}
    filters["rank"] = ("First true match by B", "text")
    note = (
        "Above by A, below by B; one query a person. ✓ and a solid green border: the same person, ✗ and a "
        "dashed red border: another one. Keys: arrows move, Enter enlarges, / searches."
    )
    form = filter_form(filters)
    return lists_part("Queries that changed most", note, form, changed, _changed_html, most_bytes)


def _changed_html(one: ChangedQuery, look: Look) -> str:
    query = one.second
    rows = "".join(
        f"<h4><b>{side}</b> AP {100 * part.average_precision:.1f} %, first true match at rank "
        f"{part.first_rank}</h4>{row_html(part, look)}"
        for side, part in zip(SIDES, (one.first, one.second), strict=True)
    )
    return (
        f"<article class='query' {attributes(query)}>"
        f"<h3><b>{query.heading} {100 * one.change:+.1f} points</b>"
        f" · {who_html(query)} · mask: {escape(query.mask)}</h3>"
        f"{rows}</article>"
    )
