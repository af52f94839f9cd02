"""What a search found, as one self-contained HTML page: queries and their nearest gallery images."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from pathlib import Path

from PIL import Image

from maskreid_dist.report import page

NOTE_BYTES = 300  # for what was given up
PLACEHOLDER = Image.new("RGB", (70, 140), "#dddddd")


@dataclass(frozen=True, eq=False)
class FoundImage:
    """image: None where the picture is not at hand any more."""

    image: Image.Image | None
    key: str
    person: str
    camera: str
    similarity: float
    probability: float | None = None


@dataclass(frozen=True, eq=False)
class SearchedImage:
    """A query, what the network sees of it without its background, and what was found."""

    name: str
    image: Image.Image
    masked: Image.Image
    found: tuple[FoundImage, ...]


def write_search_page(path: Path, title: str, facts: str, searched: Sequence[SearchedImage]) -> None:
    """Write the page, all at once, with as many and as good pictures as it may hold."""
    parts: dict[str, str | page.Fitting] = {
        "Facts": f"<p class='facts'>{escape(facts)}</p>",
        "Lists": partial(_lists, searched),
    }
    page.write_page(path, title, parts)


def _lists(searched: Sequence[SearchedImage], most_bytes: int) -> str:
    lists, given_up = page.fitting_lists(searched, _query, most_bytes - NOTE_BYTES)
    return (f"<p class='note'>{given_up}</p>" if given_up else "") + lists


def _query(query: SearchedImage, look: page.Look) -> str:
    twins = page.shot("", query.image, "query", query.name, look)
    twins += page.shot("", query.masked, "mask-cut", "", look)
    found = "".join(_found(rank, item, look) for rank, item in enumerate(query.found[: look.most], 1))
    row = f"<div class='row'>{twins}<div class='gap'></div>{found}</div>"
    return f"<article class='query'><h3><b>{escape(query.name)}</b></h3>{row}</article>"


def _found(rank: int, item: FoundImage, look: page.Look) -> str:
    where = f"{escape(item.person)}<br>camera {escape(item.camera)}"
    caption = f"{rank} <b>{item.similarity:.3f}</b><br>{where}"
    if item.probability is not None:
        caption += f"<br>match {100 * item.probability:.0f} %"
    if item.image is None:
        caption += "<br>no picture"
    return page.shot("", item.image or PLACEHOLDER, caption, item.key, look)
