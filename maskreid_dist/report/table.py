"""The six figures of several methods as an HTML table."""

from collections.abc import Mapping, Sequence
from html import escape

COLUMNS = {
    "mAP_hits": "mAP<br><small>hits</small>",
    "mAP_trapezoid": "mAP<br><small>trapezoid</small>",
    "rank1": "Rank-1",
    "rank5": "Rank-5",
    "rank10": "Rank-10",
    "mINP": "mINP",
}


def retrieval_table(rows: Sequence[tuple[str, Mapping[str, float]]], kind: str = "") -> str:
    """kind: "mine", the last row is the one that matters."""
    head = "".join(f"<th>{name}</th>" for name in COLUMNS.values())
    body = "".join(
        f"<tr><td>{escape(name)}</td>" + "".join(f"<td>{figures[key]:.2f}</td>" for key in COLUMNS) + "</tr>"
        for name, figures in rows
    )
    return (
        f"<div tabindex='0' class='scroll last {kind}'><table><thead><tr><th></th>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )
