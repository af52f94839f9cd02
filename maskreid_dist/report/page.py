"""What the project's HTML pages share: style, script, pictures as data, and the rule that nothing lies
outside of the file."""

import base64
from collections.abc import Sequence
from html import escape
from io import BytesIO
from pathlib import Path

from PIL import Image

from maskreid_shards.atomic import write_atomically

HERE = Path(__file__).parent
MOST_BYTES = 5_000_000  # of a page
SIZE = (90, 171)  # the pictures' largest width and height
QUALITIES = (80, 60, 40, 20, 5)  # of their WebP; the first that makes the page small enough


def write_page(path: Path, title: str, parts: Sequence[str]) -> None:
    """Write the page, all at once."""
    style, script = ((HERE / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    head = (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{escape(title)}</title>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<link rel='icon' href='data:,'><style>{style}</style></head><body>"
    )
    html = [head, f"<h1>{escape(title)}</h1>", *parts, f"<script>{script}</script></body></html>\n"]
    write_atomically(path, "\n".join(html).encode())


def as_data(image: Image.Image, quality: int = QUALITIES[0]) -> str:
    """The picture as a URL that holds it, no larger than SIZE."""
    small = image.convert("RGB")
    small.thumbnail(SIZE, Image.Resampling.BICUBIC)
    buffer = BytesIO()
    small.save(buffer, "WEBP", quality=quality)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def shot(kind: str, image: Image.Image, caption: str, key: str, quality: int = QUALITIES[0]) -> str:
    """A picture that can be enlarged. caption: HTML."""
    name = escape(key, quote=True)
    shown = f"<br><span class='key'>{escape(key)}</span>" if key else ""
    return (
        f"<figure class='{kind}'><button type='button' class='shot' aria-label='{name or 'picture'}'>"
        f"<img src='{as_data(image, quality)}' alt='{name}' title='{name}'></button>"
        f"<figcaption>{caption}{shown}</figcaption></figure>"
    )
