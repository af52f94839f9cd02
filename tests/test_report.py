"""The report: complete, self-contained, and robust against a torn log."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskreid_dist.report import (
    RankedImage,
    RankedQuery,
    RunReport,
    ranked_list_figure,
    select_queries,
    write_report,
)
from maskreid_dist.report.curves import curve_charts, read_metrics
from maskreid_dist.report.html import CameraPairRow, Distances, EmbeddingMap, StreamMaps
from maskreid_dist.report.lists import rank_group, smallest_that_fits
from maskreid_dist.report.page import MOST_BYTES
from maskreid_dist.report.plots import ticks

FIGURES = {
    "mAP_hits": 46.31,
    "mAP_trapezoid": 44.1,
    "rank1": 52.0,
    "rank5": 70.0,
    "rank10": 80.0,
    "mINP": 21.5,
}


def query(heading: str = "hardest", *, picture: Image.Image | None = None, later: int = 0) -> RankedQuery:
    """Four nearest of whom the first and third are right; later: the rank of a first true match besides."""
    picture = picture or Image.new("RGB", (16, 32), "navy")
    ranked = [RankedImage(picture, 0.1 * i, i % 2 == 0, i - 1, 2, f"key_{i}", i + 1) for i in range(4)]
    if later:
        ranked.append(RankedImage(picture, 0.9, True, 7, 3, "key_late", later))
    return RankedQuery(
        heading, picture, picture, 7, 1, "p00000007_00001", 0.625, tuple(ranked), later or 1, 2,
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
        camera_pairs=[CameraPairRow(1, 2, 5, 12.5, None), CameraPairRow(2, 1, 5, None, None)],
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
                 "1 pair &amp; another"):  # fmt: skip
        assert text in html, text
    # CMC, AP, distances, map, and two curves.
    assert html.count("<svg") == 6
    sources = re.findall(r"(?:src|href)=['\"]([^'\"]+)", html)
    assert len([s for s in sources if s.startswith("data:image/webp;base64,")]) == 8
    assert all(s.startswith(("data:", "#")) for s in sources)
    assert not re.search(r"url\(|@import|https?://", html)
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_report_of_the_table_alone(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(path, RunReport("t", [("x", FIGURES)], tmp_path / "none"))
    assert re.findall("<h2>([^<]*)", path.read_text()) == ["Retrieval, in per cent"]


def test_pictures_are_as_good_as_their_number_allows(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (171, 90, 3), np.uint8)
    many = [query(picture=Image.fromarray(noise), later=37) for _ in range(4)]
    sizes = [sum(map(len, smallest_that_fits(many, most))) for most in (10**9, 400_000, 200_000)]
    assert sizes[0] > 400_000 > sizes[1] > 200_000 > sizes[2]
    assert MOST_BYTES == 5_000_000


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
