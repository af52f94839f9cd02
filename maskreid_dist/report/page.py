"""What the project's HTML pages share: style, script, pictures as data, and two rules: nothing lies outside
of the file, and it has at most MOST_BYTES."""

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from io import BytesIO
from pathlib import Path
from typing import TypeAlias, TypeVar

from PIL import Image

from maskreid_shards.atomic import write_atomically

HERE = Path(__file__).parent
MOST_BYTES = 5_000_000  # of a page
MOST_TITLE = 200  # letters
SIZE = (90, 171)  # the pictures' largest width and height

T = TypeVar("T")
# Given how many bytes it may have, a part of the page that keeps to that.
Fitting: TypeAlias = Callable[[int], str]


@dataclass(frozen=True)
class Look:
    """How pictures are shown: `quality` of their WebP, `scale` of SIZE, and of a list the first `most`."""

    quality: int = 80
    scale: float = 1.0
    most: int | None = None


# The first that makes a page small enough.
LOOKS = (Look(), Look(60), Look(40), Look(40, 0.7), Look(30, 0.5), Look(30, 0.5, 100), Look(30, 0.5, 20))


def write_page(path: Path, title: str, parts: Mapping[str, str | Fitting]) -> None:
    """Write the page, all at once. parts: by name, HTML, or what makes it of the bytes that the others
    leave, the first of them first."""
    style, script = ((HERE / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    shown = escape(title[:MOST_TITLE])
    head = (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{shown}</title>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<link rel='icon' href='data:,'><style>{style}</style></head><body>"
    )
    frame = [head, f"<h1>{shown}</h1>", f"<script>{script}</script></body></html>\n"]
    body = fit(parts, MOST_BYTES - size_of("\n".join(frame)))
    html = "\n".join([*frame[:2], *body, frame[2]])
    write_atomically(path, html.encode())


def fit(parts: Mapping[str, str | Fitting], most_bytes: int) -> list[str]:
    """The parts in their order, and a line in the place of one that would make them more than `most_bytes`
    together."""
    notes = {name: _left_out(name) for name in parts}
    left = most_bytes - sum(size_of(note) + 1 for note in notes.values())  # each has at least that
    html: dict[str, str] = {}
    for fitting in (False, True):
        for name, part in parts.items():
            if isinstance(part, str) is fitting:
                continue
            room = left + size_of(notes[name])
            found = part if isinstance(part, str) else part(room)
            html[name] = found if size_of(found) <= room else notes[name]
            left = room - size_of(html[name])
    return [html[name] for name in parts]


def _left_out(name: str) -> str:
    return f"<p class='note'>{escape(name)}: left out, a page has at most {MOST_BYTES / 1e6:g} MB.</p>"


def fitting_lists(items: Sequence[T], render: Callable[[T, Look], str], most_bytes: int) -> tuple[str, str]:
    """Lists of pictures as good, then as large, then as many as `most_bytes` allow; and what was given up for
    that, in a sentence or two ("": nothing)."""
    html: list[str] = []
    for number, look in enumerate(LOOKS):
        html = _first_that_fit(items, render, look, most_bytes)
        if len(html) == len(items):
            return "".join(html), _given_up(look) if number else ""
    return "".join(html), f"{_given_up(LOOKS[-1])} Of {len(items)} lists the first {len(html)} are shown."


def _first_that_fit(
    items: Sequence[T], render: Callable[[T, Look], str], look: Look, most_bytes: int
) -> list[str]:
    html: list[str] = []
    for item in items:
        html.append(render(item, look))
        most_bytes -= size_of(html[-1])
        if most_bytes < 0:
            return html[:-1]
    return html


def _given_up(look: Look) -> str:
    scale = "" if look.scale == 1 else f", at {100 * look.scale:g} % of their size"
    most = "" if look.most is None else f", at most {look.most} a list"
    limit = f"{MOST_BYTES / 1e6:g} MB"
    return f"To keep the page below {limit}, pictures are of quality {look.quality}{scale}{most}."


def size_of(html: str) -> int:
    """Bytes in the file."""
    return len(html.encode())


def as_data(image: Image.Image, look: Look = LOOKS[0]) -> str:
    """The picture as a URL that holds it, no larger than SIZE."""
    small = image.convert("RGB")
    small.thumbnail((SIZE[0] * look.scale, SIZE[1] * look.scale), Image.Resampling.BICUBIC)
    buffer = BytesIO()
    small.save(buffer, "WEBP", quality=look.quality)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def shot(kind: str, image: Image.Image, caption: str, key: str, look: Look = LOOKS[0]) -> str:
    """A picture that can be enlarged. caption: HTML."""
    name = escape(key, quote=True)
    shown = f"<br><span class='key'>{escape(key)}</span>" if key else ""
    return (
        f"<figure class='{kind}'><button type='button' class='shot' aria-label='{name or 'picture'}'>"
        f"<img src='{as_data(image, look)}' alt='{name}' title='{name}'></button>"
        f"<figcaption>{caption}{shown}</figcaption></figure>"
    )
