"""Training curves from a run's `metrics.jsonl`."""

from pathlib import Path

from maskreid_dist.report.plots import line_chart
from maskreid_shards.opening import json_lines

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
    return "".join(
        line_chart(title, {title: curves[key]}, "step") for key, title in CURVES.items() if key in curves
    )
