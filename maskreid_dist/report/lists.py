"""Ranked lists as HTML, and the form that filters them."""

from collections.abc import Sequence
from html import escape

from maskreid_dist.report.page import QUALITIES, shot
from maskreid_dist.report.pictures import RankedImage, RankedQuery

# name of the data attribute -> title and whether its values are ordered as text or as they occur
FILTERS = {
    "group": ("Queries", ""),
    "cameras": ("Camera pair", "text"),
    "rank": ("First true match", "text"),
    "mask": ("Mask of the query", "text"),
}


def filter_form(filters: dict[str, tuple[str, str]] = FILTERS) -> str:
    """Shown and filled by the page's script."""
    selects = "".join(
        f"<label>{title}<select name='{name}' data-order='{order}'><option value=''>all</option></select>"
        "</label>"
        for name, (title, order) in filters.items()
    )
    return (
        f"<form class='filters' hidden>{selects}"
        "<label>Key, person (/)<input name='text' type='search' autocomplete='off'></label>"
        "<label>Keys<input name='keys' type='checkbox'></label>"
        "<button type='reset'>Show all</button><output aria-live='polite'></output></form>"
    )


def query_html(query: RankedQuery, quality: int = QUALITIES[0]) -> str:
    """A query and its list."""
    heading = (
        f"<b>{escape(query.heading)}</b> · {escape(query.key)} · person {query.pid}, camera {query.camid} · "
        f"AP {100 * query.average_precision:.1f} % · first true match at rank {query.first_rank}"
        f" · mask: {escape(query.mask)}"
    )
    return (
        f"<article class='query' {attributes(query)}><h3>{heading}</h3>{row_html(query, quality)}</article>"
    )


def attributes(query: RankedQuery, group: str | None = None) -> str:
    """What the filters ask, as data attributes. group: None: of what kind the heading says first."""
    keys = " ".join([query.key, *(item.key for item in query.ranked)])
    values = {
        "group": group or query.heading.split()[0],
        "cameras": f"{query.camid} → {query.first_camera}",
        "rank": rank_group(query.first_rank),
        "mask": query.mask.split(":")[0],
        "text": f"{keys} person {query.pid}",
    }
    return " ".join(f"data-{name}='{escape(value, quote=True)}'" for name, value in values.items())


def rank_group(rank: int) -> str:
    for low, high in ((1, 1), (2, 5), (6, 10), (11, 50)):
        if rank <= high:
            return f"rank {low}" if low == high else f"rank {low} to {high}"
    return "rank 51 and later"


def row_html(query: RankedQuery, quality: int = QUALITIES[0]) -> str:
    """Query, mask-cut twin, the list; a first true match beyond its end stands apart."""
    parts = [
        shot("", query.image, "query", query.key, quality),
        shot("", query.masked, "mask-cut", "", quality),
        "<div class='gap'></div>",
    ]
    last = 0
    for item in query.ranked:
        if item.rank != last + 1:
            parts.append("<div class='gap'></div>")
        parts.append(_found(item, quality))
        last = item.rank
    return f"<div class='row'>{''.join(parts)}</div>"


def _found(item: RankedImage, quality: int) -> str:
    person = {-1: "junk", 0: "distractor"}.get(item.pid, f"person {item.pid}")
    mark = "✓" if item.correct else "✗"
    caption = f"{item.rank} <b>{mark}</b> {item.distance:.3f}<br>{person}<br>camera {item.camid}"
    return shot("right" if item.correct else "wrong", item.image, caption, item.key, quality)


def smallest_that_fits(queries: Sequence[RankedQuery], most_bytes: int) -> list[str]:
    """The lists, with pictures as good as their number allows."""
    html: list[str] = []
    for quality in QUALITIES:
        html = [query_html(query, quality) for query in queries]
        if sum(map(len, html)) <= most_bytes:
            break
    return html
