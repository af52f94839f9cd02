"""Ranked lists as HTML, and the form that filters them."""

from collections.abc import Callable, Sequence
from html import escape
from typing import TypeVar

from maskreid_dist.report.page import LOOKS, Look, fitting_lists, shot, size_of
from maskreid_dist.report.pictures import RankedImage, RankedQuery

T = TypeVar("T")
FRAME_BYTES = 400  # tags around the lists, and the sentence on what was given up
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


def query_html(query: RankedQuery, look: Look = LOOKS[0]) -> str:
    """A query and its list."""
    heading = (
        f"<b>{escape(query.heading)}</b> · {who_html(query)} · AP {100 * query.average_precision:.1f} %"
        f" · first true match at rank {query.first_rank} · mask: {escape(query.mask)}"
    )
    return f"<article class='query' {attributes(query)}><h3>{heading}</h3>{row_html(query, look)}</article>"


def who_html(query: RankedQuery) -> str:
    return f"{escape(query.key)} · {escape(query.person)}, camera {escape(query.camera)}"


def attributes(query: RankedQuery, group: str | None = None) -> str:
    """What the filters ask, as data attributes. group: None: of what kind the heading says first."""
    keys = " ".join([query.key, *(item.key for item in query.ranked)])
    values = {
        "group": group or query.heading.split()[0],
        "cameras": f"{query.camera} → {query.first_camera}",
        "rank": rank_group(query.first_rank),
        "mask": query.mask.split(":")[0],
        "text": f"{keys} {query.person}",
    }
    return " ".join(f"data-{name}='{escape(value, quote=True)}'" for name, value in values.items())


def rank_group(rank: int) -> str:
    for low, high in ((1, 1), (2, 5), (6, 10), (11, 50)):
        if rank <= high:
            return f"rank {low}" if low == high else f"rank {low} to {high}"
    return "rank 51 and later"


def row_html(query: RankedQuery, look: Look = LOOKS[0]) -> str:
    """Query, mask-cut twin, the list; a first true match beyond its end stands apart."""
    parts = [
        shot("", query.image, "query", query.key, look),
        shot("", query.masked, "mask-cut", "", look),
        "<div class='gap'></div>",
    ]
    last = 0
    for item in query.ranked:
        if item.rank != last + 1:
            parts.append("<div class='gap'></div>")
        parts.append(_found(item, look))
        last = item.rank
    return f"<div class='row'>{''.join(parts)}</div>"


def _found(item: RankedImage, look: Look) -> str:
    mark = "✓" if item.correct else "✗"
    where = f"{escape(item.person)}<br>camera {escape(item.camera)}"
    caption = f"{item.rank} <b>{mark}</b> {item.distance:.3f}<br>{where}"
    return shot("right" if item.correct else "wrong", item.image, caption, item.key, look)


def lists_part(
    title: str,
    note: str,
    form: str,
    queries: Sequence[T],
    render: Callable[[T, Look], str],
    most_bytes: int,
) -> str:
    """A part of a page with lists, what they show, and their filters, in at most `most_bytes` if those leave
    room for the rest."""
    room = most_bytes - size_of(title + note + form) - FRAME_BYTES
    lists, given_up = fitting_lists(queries, render, room)
    return f"<h2>{title}</h2><p class='note'>{note} {given_up}</p>{form}{lists}"
