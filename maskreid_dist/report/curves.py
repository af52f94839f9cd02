"""Training curves from a run's `metrics.jsonl`."""

from pathlib import Path

from maskreid_dist.report.plots import line_chart
from maskreid_shards.opening import json_lines

MOST_POINTS = 800  # of a curve: the charts are less than half as wide
CURVES = {  # key of the JSON lines -> title of its panel
    "loss": "loss",
    "mAP_hits": "mAP (hits), per cent",
    "rank1": "Rank-1, per cent",
    "loss_above_floor": "ranking loss above its floor",
    "identity_loss": "identification loss",
    "active_negative_fraction": "active negatives (share)",
    "lr": "learning rate",
    "images_per_second": "images / s",
    "step_ms": "milliseconds a step",
    "data_wait_share": "share of the time waiting for data",
}


def read_metrics(path: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Steps and values of every curve that the file holds; a torn line (a killed run) is passed over.

    A missing file gives no curves: a checkpoint may have been moved away from its run.
    """
    curves: dict[str, tuple[list[int], list[float]]] = {}
    if not path.is_file():
        return curves
    for _, record in json_lines(path):
        if not isinstance(record.get("step"), int):
            continue
        for key in CURVES:
            if isinstance(record.get(key), int | float):
                steps, values = curves.setdefault(key, ([], []))
                steps.append(record["step"])
                values.append(float(record[key]))
    return curves


def curve_charts(path: Path) -> str:
    """A chart of each curve, or an empty string when there are none."""
    curves = read_metrics(path)
    charts = [
        line_chart(title, {title: thinned(*curves[key])}, "step")
        for key, title in CURVES.items()
        if key in curves
    ]
    longest = max((len(steps) for steps, _ in curves.values()), default=0)
    if longest > MOST_POINTS:
        charts.append(
            f"<p class='note'>Of up to {longest} records a curve, {MOST_POINTS} are drawn, evenly spaced.</p>"
        )
    return "".join(charts)


def thinned(steps: list[int], values: list[float]) -> tuple[list[int], list[float]]:
    """Evenly spaced records, the first and the last among them, at most MOST_POINTS."""
    if len(steps) <= MOST_POINTS:
        return steps, values
    rows = [round(n * (len(steps) - 1) / (MOST_POINTS - 1)) for n in range(MOST_POINTS)]
    return [steps[row] for row in rows], [values[row] for row in rows]
