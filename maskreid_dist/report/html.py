"""The self-contained HTML report: no file and no address outside it."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from io import BytesIO
from pathlib import Path

from PIL import Image

from maskreid_dist.report.curves import curves_svg
from maskreid_dist.report.pictures import RankedImage, RankedQuery
from maskreid_shards.atomic import write_atomically

COLUMNS = {
    "mAP_hits": "mAP<br><small>hits</small>",
    "mAP_trapezoid": "mAP<br><small>trapezoid</small>",
    "rank1": "Rank-1",
    "rank5": "Rank-5",
    "rank10": "Rank-10",
    "mINP": "mINP",
}

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1c1c1c; background: #fff;
  max-width: 1180px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin: 0 0 .3rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
.facts { color: #555; font-size: .85rem; } .facts b { font-weight: 600; } .facts span { margin-right: 1.2em; }
table { border-collapse: collapse; }
th, td { padding: .3rem .9rem; text-align: right; border-bottom: 1px solid #ddd; }
th { font-weight: 600; vertical-align: bottom; } th small { font-weight: 400; color: #666; }
td:first-child, th:first-child { text-align: left; padding-left: 0; } tr:last-child td { font-weight: 600; }
svg { max-width: 100%; height: auto; }
.query { margin: 0 0 1.3rem; break-inside: avoid; }
.query h3 { font-size: .9rem; font-weight: 400; color: #444; margin: 0 0 .3rem; }
.query h3 b { color: #1c1c1c; } .row { display: flex; gap: 6px; overflow-x: auto; }
figure { margin: 0; width: 82px; flex: none; }
figure img { width: 70px; height: 140px; display: block; border: 4px solid #aaa; border-radius: 3px; }
figcaption { font-size: .72rem; line-height: 1.3; color: #555; margin-top: 2px; }
figure.right img { border-color: #1a8f3c; } figure.right b { color: #1a8f3c; }
figure.wrong img { border-color: #c8322b; border-style: dashed; } figure.wrong b { color: #c8322b; }
.gap { width: 10px; flex: none; }
"""


def write_report(
    path: Path,
    *,
    title: str,
    table: Sequence[tuple[str, Mapping[str, float]]],
    curves: Path,
    ranked: Sequence[RankedQuery],
    facts: Mapping[str, str],
) -> None:
    """Write the report, all at once.

    table: method and its six figures in per cent, the one that matters last. curves: the
    run's `metrics.jsonl`, may be missing.
    """
    facts_html = " ".join(f"<span><b>{escape(k)}</b> {escape(v)}</span>" for k, v in facts.items())
    head = "".join(f"<th>{name}</th>" for name in COLUMNS.values())
    rows = "".join(
        f"<tr><td>{escape(name)}</td>" + "".join(f"<td>{figures[key]:.2f}</td>" for key in COLUMNS) + "</tr>"
        for name, figures in table
    )
    svg = curves_svg(curves)
    parts = [
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{escape(title)}</title>",
        f"<meta name='viewport' content='width=device-width'><style>{STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1><p class='facts'>{facts_html}</p>",
        "<h2>Retrieval, in per cent</h2>",
        f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{rows}</tbody></table>",
        f"<h2>Training</h2>{svg}" if svg else "",
        "<h2>Ranked lists</h2><p class='facts'>Query, its mask-cut twin, and the nearest gallery images with "
        "their distances; <b>✓</b> and a solid green border: the same person, <b>✗</b> and a dashed red "
        "border: another one. Images of the query's person from its own camera are not listed.</p>",
        *(_query_html(query) for query in ranked),
        "</body></html>\n",
    ]
    write_atomically(path, "\n".join(parts).encode())


def _query_html(query: RankedQuery) -> str:
    heading = (
        f"<b>{escape(query.heading)}</b> · {escape(query.key)} · person {query.pid}, camera {query.camid} · "
        f"AP {100 * query.average_precision:.1f} %"
    )
    twins = figure("", query.image, "query") + figure("", query.masked, "mask-cut")
    found = "".join(_found_html(rank, item) for rank, item in enumerate(query.ranked, 1))
    row = f"<div class='row'>{twins}<div class='gap'></div>{found}</div>"
    return f"<div class='query'><h3>{heading}</h3>{row}</div>"


def _found_html(rank: int, item: RankedImage) -> str:
    person = {-1: "junk", 0: "distractor"}.get(item.pid, f"person {item.pid}")
    mark = "✓" if item.correct else "✗"
    caption = f"{rank} <b>{mark}</b> {item.distance:.3f}<br>{person}<br>camera {item.camid}"
    return figure("right" if item.correct else "wrong", item.image, caption, item.key)


def figure(kind: str, image: Image.Image, caption: str, key: str = "") -> str:
    buffer = BytesIO()
    image.save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    return (
        f"<figure class='{kind}'><img src='data:image/png;base64,{data}' alt='{escape(key)}' "
        f"title='{escape(key)}'><figcaption>{caption}</figcaption></figure>"
    )
