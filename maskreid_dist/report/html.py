"""The self-contained HTML report of a run: no file and no address outside it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from html import escape
from pathlib import Path

from PIL import Image

from maskreid_dist.report.curves import curve_charts
from maskreid_dist.report.lists import filter_form, lists_part, query_html
from maskreid_dist.report.page import Fitting, as_data, write_page
from maskreid_dist.report.pictures import RankedQuery
from maskreid_dist.report.plots import histogram, letter_map, line_chart
from maskreid_dist.report.protocols import OtherProtocols, protocols_part
from maskreid_dist.report.table import retrieval_table

AP_BINS = 20
MOST_PAIRS = 400  # of cameras, in the table


@dataclass(frozen=True)
class Distances:
    """Shares of the pairs of one person (`same`) and of two (`other`) between N + 1 edges of their cosine
    distance. threshold: calibrated distance, None: not calibrated; note: of which pairs."""

    edges: Sequence[float]
    same: Sequence[float]
    other: Sequence[float]
    threshold: float | None
    note: str


@dataclass(frozen=True)
class EmbeddingMap:
    """Two principal components: dots, and a few persons' images by name."""

    points: Sequence[tuple[float, float]]
    persons: Mapping[str, Sequence[tuple[float, float, str]]]
    note: str


@dataclass(frozen=True, eq=False)
class StreamMaps:
    """Where the network responds to one query: pictures with their captions."""

    heading: str
    pictures: Sequence[tuple[Image.Image, str]]


@dataclass(frozen=True)
class CameraPairRow:
    """Figures in per cent, None where no query has a match."""

    query_camera: str
    gallery_camera: str
    queries: int
    mAP: float | None
    rank1: float | None


@dataclass(frozen=True, eq=False)
class RunReport:
    """table: method and its six figures in per cent, the one that matters last. cmc: share of hits by rank
    of each method. average_precisions: of valid queries. metrics: the run's `metrics.jsonl`, may be missing.
    facts: by heading, then by name. recipe: the whole one, as JSON. distances: why there are none, as
    text."""

    title: str
    table: Sequence[tuple[str, Mapping[str, float]]]
    metrics: Path
    ranked: Sequence[RankedQuery] = ()
    facts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    recipe: str = ""
    cmc: Mapping[str, Sequence[float]] = field(default_factory=dict)
    average_precisions: Sequence[float] = ()
    distances: Distances | str = ""
    protocols: OtherProtocols | None = None
    camera_pairs: Sequence[CameraPairRow] = ()
    embedding_map: EmbeddingMap | None = None
    streams: Sequence[StreamMaps] = ()


def write_report(path: Path, report: RunReport) -> None:
    """Write the report, all at once, in at most maskreid_dist.report.page.MOST_BYTES."""
    charts = f"<div class='charts'>{_retrieval_charts(report)}</div>"
    parts: dict[str, str | Fitting] = {
        "Retrieval": f"<h2>Retrieval, in per cent</h2>{retrieval_table(report.table, 'mine')}",
        "Charts": f"{charts}{_distance_note(report)}",
        "Other protocols": protocols_part(report.protocols) if report.protocols else "",
        "Camera by camera": _camera_pairs(report.camera_pairs),
        "Ranked lists": partial(_lists, report.ranked),
        "Where the two streams look": _streams(report.streams),
        "Embedding map": _map(report.embedding_map),
        "What was measured, and what trained it": _facts(report),
        "Training": _training(report),
    }
    write_page(path, report.title, parts)


def _retrieval_charts(report: RunReport) -> str:
    charts = []
    if report.cmc:
        lines = {
            name: (list(range(1, len(curve) + 1)), [100 * share for share in curve])
            for name, curve in report.cmc.items()
        }
        charts.append(
            line_chart("CMC: queries with a match among the first k, per cent", lines, "k", y=(0, 100))
        )
    if report.average_precisions:
        counts = [0] * AP_BINS
        for value in report.average_precisions:
            counts[min(AP_BINS - 1, int(value * AP_BINS))] += 1
        edges = [number / AP_BINS for number in range(AP_BINS + 1)]
        charts.append(histogram("Queries by average precision", edges, {"queries": counts}, "AP"))
    if isinstance(report.distances, Distances):
        found = report.distances
        marks = {} if found.threshold is None else {"calibrated": found.threshold}
        bars = {"same person": found.same, "other persons": found.other}
        charts.append(histogram("Pairs by distance, share", found.edges, bars, "cosine distance", marks))
    return "".join(charts)


def _distance_note(report: RunReport) -> str:
    text = report.distances if isinstance(report.distances, str) else report.distances.note
    return f"<p class='note'>{escape(text)}</p>" if text else ""


def _camera_pairs(pairs: Sequence[CameraPairRow]) -> str:
    if not pairs:
        return ""
    rows = "".join(
        f"<tr><td>{escape(pair.query_camera)} → {escape(pair.gallery_camera)}</td><td>{pair.queries}</td>"
        f"<td>{_figure(pair.mAP)}</td><td>{_figure(pair.rank1)}</td></tr>"
        for pair in pairs[:MOST_PAIRS]
    )
    part = f" The first {MOST_PAIRS} of {len(pairs)} pairs." if len(pairs) > MOST_PAIRS else ""
    return (
        "<h2>Camera by camera</h2><p class='note'>Queries of one camera against the gallery images of "
        f"another alone; the hardest pair first. none: no query has a match.{part}</p>"
        "<div tabindex='0' class='scroll'><table><thead>"
        "<tr><th>cameras</th><th>queries</th><th>mAP</th><th>Rank-1</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></div>"
    )


def _figure(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f}"


def _lists(ranked: Sequence[RankedQuery], most_bytes: int) -> str:
    if not ranked:
        return ""
    note = (
        "Query, its mask-cut twin, and the nearest gallery images with their distances; ✓ and a solid green "
        "border: the same person, ✗ and a dashed red border: another one. Images of the query's person from "
        "its own camera are not listed. A first true match that is not among the nearest stands at the end. "
        "Camera pair: of the query and its first true match. Keys: arrows move, Enter enlarges, / searches."
    )
    return lists_part("Ranked lists", note, filter_form(), ranked, query_html, most_bytes)


def _streams(streams: Sequence[StreamMaps]) -> str:
    if not streams:
        return ""
    html = []
    for one in streams:
        pictures = "".join(
            f"<figure class='plain'><img src='{as_data(image)}' alt=''><figcaption>{escape(caption)}"
            "</figcaption></figure>"
            for image, caption in one.pictures
        )
        html.append(
            f"<section><h3 class='note'>{escape(one.heading)}</h3><div class='row'>{pictures}</div></section>"
        )
    return (
        "<h2>Where the two streams look</h2><p class='note'>Sum of squared activations over the channels, "
        "bright: large, each map by its own maximum. A stream's is that of its stem, before both meet; low "
        "and high are levels of the shared trunk. Per cent: the part of it on the person, beside the "
        "person's part of the picture.</p>" + "".join(html)
    )


def _map(found: EmbeddingMap | None) -> str:
    if found is None:
        return ""
    chart = letter_map("Embeddings, two principal components", found.points, found.persons)
    return f"<h2>Embedding map</h2><div class='map'>{chart}</div><p class='note'>{escape(found.note)}</p>"


def _facts(report: RunReport) -> str:
    if not report.facts:
        return ""
    cards = []
    for heading, facts in report.facts.items():
        rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())
        cards.append(f"<section><h3>{escape(heading)}</h3><dl>{rows}</dl></section>")
    recipe = f"<details><summary>The whole recipe</summary><pre>{escape(report.recipe)}</pre></details>"
    return f"<h2>What was measured, and what trained it</h2><div class='cards'>{''.join(cards)}</div>" + (
        recipe if report.recipe else ""
    )


def _training(report: RunReport) -> str:
    charts = curve_charts(report.metrics)
    return f"<h2>Training</h2><div class='charts'>{charts}</div>" if charts else ""
