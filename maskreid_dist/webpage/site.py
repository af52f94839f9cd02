"""The files of the page: network, program and gallery as scripts, so that it opens from a disk too.

index.html           the page, with its style and scripts
data/runtime.js      onnxruntime for browsers
data/network.js      the network, and the one of masks where there is one, as ONNX
data/gallery.js      embeddings, pictures, persons, and what the page must know of the network
licences.txt         of what is carried
page.json            what it was made of; a folder with it is ours to write again
"""

import base64
import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from maskreid_dist import __version__
from maskreid_dist.errors import UserError
from maskreid_dist.gallery import Extractor, Gallery
from maskreid_dist.gallery.search import names_of, picture_of, split_of
from maskreid_dist.model.network import MEAN_COLOUR
from maskreid_dist.report.page import as_data
from maskreid_dist.report.search_page import PLACEHOLDER
from maskreid_dist.webpage import runtime
from maskreid_dist.webpage.runtime import Runtime
from maskreid_shards import Split, decode_pair, open_shards
from maskreid_shards.atomic import plain_folder, write_atomically
from maskreid_shards.decode import MAX_PIXELS
from maskreid_shards.opening import read_json

HERE = Path(__file__).parent
FORMAT, MANIFEST, DATA = "maskreid-page-1", "page.json", "data"
EXAMPLES = 6  # queries that can be tried without a file
LICENCES = f"""{runtime.PACKAGE} {runtime.VERSION} (data/runtime.js): Copyright (c) Microsoft Corporation,
MIT License, https://github.com/microsoft/onnxruntime/blob/main/LICENSE

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without
limitation the rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the
Software, and to permit persons to whom the Software is furnished to do so, subject to the following
conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions
of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED
TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL
THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF
CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER
DEALINGS IN THE SOFTWARE.

index.html: maskreid-dist {__version__}, Apache License 2.0.

The network and the pictures (data/network.js, data/gallery.js) have the licence of what they were made of.
"""


@dataclass(frozen=True)
class Segmenter:
    """onnx: float32 (1, 3, side, side) in 0..1 to the probability of person, (1, 1, side, side). margin: of
    the crop's height, above and below. licence: of the network."""

    onnx: bytes
    side: int
    margin: float
    licence: str


@dataclass(frozen=True)
class Contents:
    """network: ONNX, as `export_network` writes it. most: images of the gallery that the page has; top: of a
    list."""

    extractor: Extractor
    gallery: Gallery
    network: bytes
    runtime: Runtime
    segmenter: Segmenter | None = None
    most: int = 1000
    top: int = 20


def check_page_folder(folder: Path) -> None:
    """Raise UserError where something else than a page of ours lies in the folder, or nothing can be
    written."""
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not (folder / MANIFEST).is_file():
        raise UserError(f"{folder}: not empty, and no page of maskreid's; choose another folder")
    found = read_json(folder / MANIFEST)
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise UserError(f"{folder / MANIFEST}: not of a page of maskreid's; choose another folder")


def write_site(folder: Path, contents: Contents) -> int:
    """Write the page; how many images of the gallery it has. Raises UserError, OSError."""
    check_page_folder(folder)
    rows = _rows(contents)
    facts = _facts(contents, rows)
    features = np.ascontiguousarray(contents.gallery.features[rows], "<f4")
    script, program = contents.runtime
    segmenter = contents.segmenter
    networks = {"network": contents.network, **({"segmenter": segmenter.onnx} if segmenter else {})}
    files = {
        f"{DATA}/runtime.js": _assigned("packed", {"script": script, "program": program}),
        f"{DATA}/network.js": _assigned("packed", networks),
        f"{DATA}/gallery.js": _assigned("packed", {"rows": features.tobytes()}, facts),
        "licences.txt": LICENCES + (segmenter.licence if segmenter else ""),
        MANIFEST: json.dumps(_made_of(contents, rows), indent=2) + "\n",
        "index.html": _html(contents, rows),  # last: with it the page is there
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    for place in (folder, folder / DATA):
        plain_folder(place, own=False)
    for name, text in files.items():
        write_atomically(folder / name, text.encode())
    return len(rows)


def _rows(contents: Contents) -> Any:
    """At most `most` of those that were not taken out, evenly over the gallery: (N,) int64."""
    alive = np.flatnonzero(contents.gallery.alive)
    if not len(alive):
        raise UserError(f"{contents.gallery.folder}: nobody is in it; maskreid embed or enrol fills it")
    chosen = np.linspace(0, len(alive) - 1, min(contents.most, len(alive))).round().astype(np.int64)
    return alive[chosen]


def _facts(contents: Contents, rows: Any) -> dict[str, Any]:
    gallery, config = contents.gallery, contents.extractor.config.data
    split = split_of(gallery)
    pids, camids, names = gallery.pids, gallery.camids, names_of(gallery)
    known, segmenter = contents.extractor.calibration, contents.segmenter
    return {
        "size": {
            "resize": [config.resize_height, config.resize_width],
            "crop": [config.height, config.width],
        },
        "mean_colour": list(MEAN_COLOUR),
        "most_pixels": MAX_PIXELS,
        "top": contents.top,
        "calibration": {"slope": known.slope, "offset": known.offset} if known else None,
        "segmenter": {"side": segmenter.side, "margin": segmenter.margin} if segmenter else None,
        "gallery": [
            {
                "key": gallery.keys[row],
                "person": names.person(int(pids[row])),
                "camera": names.camera(int(camids[row])),
                "picture": as_data(picture_of(gallery, split, row) or PLACEHOLDER),
            }
            for row in rows.tolist()
        ],
        "examples": _examples(gallery),
    }


def _examples(gallery: Gallery) -> list[dict[str, str]]:
    """Queries of the shards that the gallery was made from, without loss."""
    if split_of(gallery) is None or not gallery.source:
        return []
    shards = open_shards(gallery.source["shards"])
    if "query" not in shards.splits:
        return []
    split: Split = shards.split("query")
    numbers = np.linspace(0, len(split) - 1, min(EXAMPLES, len(split))).round().astype(int)
    found = []
    for number in numbers.tolist():
        image, mask = decode_pair(split.read(number))
        found.append({"key": split.keys[number].decode(), "image": _lossless(image), "mask": _lossless(mask)})
    return found


def _lossless(picture: Image.Image) -> str:
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _assigned(name: str, packed: Mapping[str, bytes], facts: Mapping[str, Any] | None = None) -> str:
    """A script that adds to the object `maskreid`: bytes as base64 of gzip."""
    lines = ['"use strict";', "self.maskreid ??= { packed: {} };"]
    for key, data in packed.items():
        text = base64.b64encode(gzip.compress(data, 6, mtime=0)).decode()
        lines.append(f'maskreid.{name}.{key} = "{text}";')
    if facts is not None:
        lines.append(f"maskreid.facts = {json.dumps(facts)};")
    return "\n".join(lines) + "\n"


def _made_of(contents: Contents, rows: Any) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "maskreid": __version__,
        "network": vars(contents.extractor.model),
        "images": len(rows),
        "runtime": {"package": runtime.PACKAGE, "version": runtime.VERSION, "licence": runtime.LICENCE},
        "masks": "pose" if contents.segmenter else None,
    }


def _html(contents: Contents, rows: Any) -> str:
    gallery = contents.gallery
    alive = int(gallery.alive.sum())
    some = f"{len(rows)} images" if len(rows) == alive else f"{len(rows)} of {alive} images, evenly chosen"
    persons = len(np.unique(gallery.pids[rows]))
    parts = {
        "{title}": escape("MaskReID: who is this?"),
        "{about}": escape(
            f"{gallery.model}; gallery: {some}, of {persons} persons; numbers are cosine similarities"
        ),
        "{style}": _text("page.css"),
        "{pixels}": _text("pixels.js"),
        "{script}": _text("page.js"),
    }
    html = _text("page.html")
    for name, text in parts.items():
        html = html.replace(name, text, 1) if name != "{title}" else html.replace(name, text)
    return html


def _text(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")
