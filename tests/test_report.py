"""The report: complete, self-contained, and robust against a torn log."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskreid_dist.report import (
    RankedImage,
    RankedQuery,
    RunReport,
    page,
    ranked_list_figure,
    select_queries,
    write_report,
)
from maskreid_dist.report.curves import MOST_POINTS, curve_charts, read_metrics, thinned
from maskreid_dist.report.html import CameraPairRow, Distances, EmbeddingMap, StreamMaps
from maskreid_dist.report.lists import query_html, rank_group
from maskreid_dist.report.page import LOOKS, fit, fitting_lists, write_page
from maskreid_dist.report.plots import line_chart, powers, ticks
from maskreid_dist.report.protocols import OtherProtocols, protocols_part
from maskreid_shards import SourceNames

FIGURES = {
    "mAP_hits": 46.31,
    "mAP_trapezoid": 44.1,
    "rank1": 52.0,
    "rank5": 70.0,
    "rank10": 80.0,
    "mINP": 21.5,
}


who = SourceNames().person


def query(heading: str = "hardest", *, picture: Image.Image | None = None, later: int = 0) -> RankedQuery:
    """Four nearest of whom the first and third are right; later: the rank of a first true match besides."""
    picture = picture or Image.new("RGB", (16, 32), "navy")
    ranked = [RankedImage(picture, 0.1 * i, i % 2 == 0, who(i - 1), "2", f"key_{i}", i + 1) for i in range(4)]
    if later:
        ranked.append(RankedImage(picture, 0.9, True, who(7), "3", "key_late", later))
    return RankedQuery(
        heading, picture, picture, who(7), "1", "p00000007_00001", 0.625, tuple(ranked), later or 1, "2",
        "fragmented: 31 % person",
    )  # fmt: skip


def report(metrics: Path, queries: list[RankedQuery]) -> RunReport:
    """With every part."""
    return RunReport(
        title="R & D",
        table=[("a <b> method", dict.fromkeys(FIGURES, 1.0)), ("trained", FIGURES)],
        metrics=metrics,
        ranked=queries,
        facts={"Data": {"shards": "a & b"}},
        recipe='{"name": "<x>"}',
        cmc={"trained": [0.5, 0.6, 0.75]},
        average_precisions=[0.0, 0.5, 1.0],
        distances=Distances([0.0, 0.5, 1.0], [0.75, 0.25], [0.1, 0.9], 0.4, "1 pair & another"),
        protocols=OtherProtocols(
            ["multiple query, 7 queries: mAP 12.34 & more", "gallery: x"],
            [(900, FIGURES), (20_000, dict.fromkeys(FIGURES, 1.5))],
            [0.0, 0.01, 100.0],
            [5.0, 50.0, 100.0],
        ),
        camera_pairs=[CameraPairRow("1", "2", 5, 12.5, None), CameraPairRow("2", "1", 5, None, None)],
        embedding_map=EmbeddingMap([(0.0, 1.0)], {"person 7": [(1.0, 0.5, "gallery k7")]}, "all images"),
        streams=[StreamMaps("hardest · k", [(Image.new("RGB", (8, 16)), "raw stream: 60 % on the person")])],
    )


def test_report_is_self_contained_and_holds_everything(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text(
        '{"step": 10, "loss": 4.5, "lr": 0.1}\n{"step": 20, "loss": 4.1, "lr": 0.1}\n{"step": 30, "lo'
    )
    path = tmp_path / "out" / "report.html"
    write_report(path, report(metrics, [query(later=37)]))
    html = path.read_text()
    assert "R &amp; D" in html
    assert "a &lt;b&gt; method" in html
    for value in FIGURES.values():
        assert f"<td>{value:.2f}</td>" in html
    assert html.count("class='right'") == 3
    assert html.count("class='wrong'") == 2
    for text in ("AP 62.5 %", "distractor", "37 <b>✓</b>", "key_late", "fragmented: 31 % person", "a &amp; b",
                 "&lt;x&gt;", "calibrated", "1 → 2", "12.50", "gallery k7", "60 % on the person",
                 "1 pair &amp; another", "<dt>multiple query, 7 queries</dt><dd>mAP 12.34 &amp; more</dd>",
                 "gallery of 20000 images", "<td>1.50</td>", "As the gallery grows"):  # fmt: skip
        assert text in html, text
    # CMC, AP, distances, growth, ROC, map, and two curves.
    assert html.count("<svg") == 8
    sources = re.findall(r"(?:src|href)=['\"]([^'\"]+)", html)
    assert len([s for s in sources if s.startswith("data:image/webp;base64,")]) == 8
    assert all(s.startswith(("data:", "#")) for s in sources)
    assert not re.search(r"url\(|@import|https?://", html)
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_report_of_the_table_alone(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(path, RunReport("t", [("x", FIGURES)], tmp_path / "none"))
    assert re.findall("<h2>([^<]*)", path.read_text()) == ["Retrieval, in per cent"]


def test_an_axis_of_logarithms() -> None:
    """Pairs of one distance apart where their logarithms are; ticks are powers of ten."""
    html = line_chart("t", {"a": ([0.01, 0.1, 1.0, 10.0, 100.0], [0.0, 1, 2, 3, 4])}, "x", log_x=True)
    places = [float(x) for x in re.findall(r"cx='([\d.]+)'", html)]
    assert np.diff(places) == pytest.approx([places[1] - places[0]] * 4, abs=0.11)
    assert re.findall(r"text-anchor='middle'>([\d.]+)</text>", html) == ["0.01", "0.1", "1", "10", "100"]
    assert powers(-8.2, 2.0) == [-8, -6, -4, -2, 0, 2]
    assert powers(2.1, 2.9) == [] and powers(0, 2) == [0, 1, 2]


def test_protocols_that_were_not_asked_for() -> None:
    assert protocols_part(OtherProtocols()) == ""
    alone = protocols_part(OtherProtocols(["a: b"]))
    assert "<svg" not in alone and "<table" not in alone and alone.startswith("<h2>Other protocols</h2>")
    assert protocols_part(OtherProtocols((), (), [0.0], [100.0])) == ""  # no rate that a logarithm shows


def noisy(count: int) -> list[RankedQuery]:
    noise = np.random.default_rng(0).integers(0, 256, (171, 90, 3), np.uint8)
    return [query(picture=Image.fromarray(noise), later=37) for _ in range(count)]


def test_pictures_are_as_good_and_as_many_as_fit() -> None:
    many = noisy(4)
    most = 10**9
    for look in LOOKS[:5]:
        html, said = fitting_lists(many, query_html, most)
        assert html == "".join(query_html(one, look) for one in many)
        assert said == "" if look == LOOKS[0] else f"quality {look.quality}" in said
        assert "lists" not in said and ("of their size" in said) is (look.scale < 1)
        most = len(html.encode()) - 1
    html, said = fitting_lists(many, query_html, most)
    assert html == "".join(query_html(one, LOOKS[-1]) for one in many[:3])
    assert said.endswith("Of 4 lists the first 3 are shown.")
    assert fitting_lists(many, query_html, -1)[0] == ""


def test_a_page_keeps_to_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert page.MOST_BYTES == 5_000_000
    monkeypatch.setattr(page, "MOST_BYTES", 150_000)
    path, metrics = tmp_path / "report.html", tmp_path / "metrics.jsonl"
    lines = [f'{{"step": {step}, "loss": {step % 7}.25}}\n' for step in range(20_000)]
    metrics.write_text("".join(lines))
    pairs = [CameraPairRow("1", str(n), 5, 12.5, None) for n in range(20_000)]
    whole = report(metrics, noisy(12))
    write_report(path, replace(whole, camera_pairs=pairs, title="é" * 90_000))
    html = path.read_text()
    assert len(path.read_bytes()) <= 150_000
    assert "The first 400 of 20000 pairs" in html and "Of up to 20000 records a curve, 800 are drawn" in html
    assert "To keep the page below 0.15 MB, pictures are of quality" in html
    shown = re.findall(r"Of 12 lists the first (\d+) are shown", html)
    assert [int(count) for count in shown] == [html.count("class='query'")]
    # A part that has no lists to shorten.
    write_report(path, replace(whole, recipe="x" * 150_000))
    html = path.read_text()
    assert len(path.read_bytes()) <= 150_000 and html.count("class='query'") > 0
    assert "What was measured, and what trained it: left out, a page has at most 0.15 MB." in html
    write_page(path, "t", {"All": lambda most: "é" * most})
    assert "All: left out" in path.read_text()


def test_parts_and_the_lines_in_their_place_fit() -> None:
    note = len(page._left_out("a")) + 1
    assert fit({"a": "x" * 100, "b": "y"}, 2 * note) == [page._left_out("a"), "y"]
    assert fit({"a": "x" * 100, "b": "y"}, 2 * note + 100) == ["x" * 100, "y"]
    html = fit({"a": lambda most: "x" * most, "b": "y" * 10}, 2 * note + 10)
    assert set(html[0]) == {"x"} and html[1] == "y" * 10
    assert sum(map(len, html)) + 2 == 2 * note + 10


def test_long_curves_keep_their_ends() -> None:
    steps, values = list(range(5000)), [float(step) for step in range(5000)]
    few = thinned(steps, values)
    assert len(few[0]) == MOST_POINTS == len(set(few[0])) and few[0][0] == 0 and few[0][-1] == 4999
    assert few[1] == [float(step) for step in few[0]]
    assert thinned(steps[:800], values[:800]) == (steps[:800], values[:800])


def test_torn_and_foreign_lines_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [
        json.dumps({"step": 1, "loss": 2.0}),
        "[1]",
        '{"step": 2, "loss": null}',
        '{"step": 3, "loss": 1.0}',
        '{"st',
    ]
    path.write_text("\n".join(lines))
    assert read_metrics(path) == {"loss": ([1, 3], [2.0, 1.0])}
    assert curve_charts(path).count("<svg") == 1


def test_select_queries() -> None:
    ap = np.array([0.5, np.nan, 0.1, 0.9, 0.3, 0.7, 0.1])
    pids = np.arange(1, 8)
    chosen = select_queries(ap, pids, each=2)
    assert chosen == {"hardest": [2, 6], "median": [4, 0], "easiest": [3, 5]}
    pids[6] = pids[2]  # one person's second hardest query gives way to another person's
    pids[5] = pids[3]
    assert select_queries(ap, pids, each=2) == {"hardest": [2, 4], "median": [4, 0], "easiest": [3, 0]}
    assert select_queries(np.array([np.nan]), np.array([1]), each=2) == {
        "hardest": [], "median": [], "easiest": []
    }  # fmt: skip


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 100, [0, 20, 40, 60, 80, 100]), (0.13, 0.157, [0.13, 0.14, 0.15]), (3, 3, [3])],
)
def test_ticks_are_round_and_within(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


def test_groups_of_ranks() -> None:
    assert [rank_group(rank) for rank in (1, 2, 5, 6, 10, 11, 51)] == [
        "rank 1", "rank 2 to 5", "rank 2 to 5", "rank 6 to 10", "rank 6 to 10", "rank 11 to 50",
        "rank 51 and later",
    ]  # fmt: skip


def test_figure_borders_tell_right_from_wrong(tmp_path: Path) -> None:
    path = tmp_path / "ranked.png"
    ranked_list_figure([query(later=37), query("easiest")], path)
    pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
    for colour in ((0x1A, 0x8F, 0x3C), (0xC8, 0x32, 0x2B)):
        assert (pixels == colour).all(axis=1).sum() > 200
