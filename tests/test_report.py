"""The report: complete, self-contained, and robust against a torn log."""

import json
import re
from pathlib import Path

import numpy as np
from PIL import Image

from maskreid_dist.report import RankedImage, RankedQuery, ranked_list_figure, select_queries, write_report
from maskreid_dist.report.curves import curves_svg, read_metrics

FIGURES = {
    "mAP_hits": 46.31,
    "mAP_trapezoid": 44.1,
    "rank1": 52.0,
    "rank5": 70.0,
    "rank10": 80.0,
    "mINP": 21.5,
}


def query(heading: str = "hardest") -> RankedQuery:
    picture = Image.new("RGB", (16, 32), "navy")
    ranked = tuple(RankedImage(picture, 0.1 * i, i % 2 == 0, i - 1, 2, f"key_{i}") for i in range(4))
    return RankedQuery(heading, picture, picture, 7, 1, "p00000007_00001", 0.625, ranked)


def test_report_is_self_contained_and_holds_everything(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text(
        '{"step": 10, "loss": 4.5, "lr": 0.1}\n{"step": 20, "loss": 4.1, "lr": 0.1}\n{"step": 30, "lo'
    )
    path = tmp_path / "out" / "report.html"
    rows = [("a <b> method", dict.fromkeys(FIGURES, 1.0)), ("trained", FIGURES)]
    write_report(path, title="R & D", table=rows, curves=metrics, ranked=[query()], facts={"Steps": "20"})
    html = path.read_text()
    assert "R &amp; D" in html
    assert "a &lt;b&gt; method" in html
    for value in FIGURES.values():
        assert f"<td>{value:.2f}</td>" in html
    assert html.count("class='right'") == 2
    assert html.count("class='wrong'") == 2
    assert "AP 62.5 %" in html
    assert "distractor" in html
    assert "<svg" in html
    sources = re.findall(r"(?:src|href)=['\"]([^'\"]+)", html)
    assert len([s for s in sources if s.startswith("data:image/png;base64,")]) == 6
    assert all(s.startswith(("data:", "#")) for s in sources)
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_report_without_curves(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(path, title="t", table=[("x", FIGURES)], curves=tmp_path / "none", ranked=[], facts={})
    assert "<h2>Training</h2>" not in path.read_text()


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
    assert curves_svg(path) == curves_svg(path)


def test_select_queries() -> None:
    ap = np.array([0.5, np.nan, 0.1, 0.9, 0.3, 0.7, 0.1])
    chosen = select_queries(ap, each=2)
    assert chosen == {"hardest": [2, 6], "median": [4, 0], "easiest": [3, 5]}


def test_figure_borders_tell_right_from_wrong(tmp_path: Path) -> None:
    path = tmp_path / "ranked.png"
    ranked_list_figure([query(), query("easiest")], path)
    pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
    for colour in ((0x1A, 0x8F, 0x3C), (0xC8, 0x32, 0x2B)):
        assert (pixels == colour).all(axis=1).sum() > 200
