"""The report's part on what was asked for beside the usual figures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from maskreid_dist.report.plots import line_chart
from maskreid_dist.report.table import retrieval_table


@dataclass(frozen=True)
class OtherProtocols:
    """lines: "what: its figures". growth: images of the gallery, and the six figures with it. Rates: of the
    ROC curve, as many of both. All in per cent; empty what was not asked for."""

    lines: Sequence[str] = ()
    growth: Sequence[tuple[int, Mapping[str, float]]] = ()
    false_match_rates: Sequence[float] = ()
    true_match_rates: Sequence[float] = ()


def protocols_part(found: OtherProtocols) -> str:
    """Empty where nothing was asked for."""
    parts, charts = [], []
    if found.lines:
        lines = (line.partition(": ") for line in found.lines)
        rows = "".join(f"<dt>{escape(what)}</dt><dd>{escape(figures)}</dd>" for what, _, figures in lines)
        parts.append(f"<dl class='lines'>{rows}</dl>")
    if found.growth:
        parts.append(retrieval_table([(f"gallery of {size} images", one) for size, one in found.growth]))
        sizes = [float(size) for size, _ in found.growth]
        curves = {
            name: (sizes, [figures[key] for _, figures in found.growth])
            for name, key in (("mAP, hits", "mAP_hits"), ("Rank-1", "rank1"))
        }
        title = "As the gallery grows, per cent"
        charts.append(line_chart(title, curves, "images of the gallery", log_x=sizes[-1] >= 10 * sizes[0]))
    rates = zip(found.false_match_rates, found.true_match_rates, strict=True)
    shown = [pair for pair in rates if pair[0] > 0]  # of a logarithm
    if shown:
        x, y = ([pair[side] for pair in shown] for side in (0, 1))
        title = "Pairs (ROC): true match rate, per cent"
        charts.append(
            line_chart(title, {"pairs": (x, y)}, "false match rate, per cent", y=(0, 100), log_x=True)
        )
    if charts:
        parts.append(f"<div class='charts'>{''.join(charts)}</div>")
    return f"<h2>Other protocols</h2>{''.join(parts)}" if parts else ""
