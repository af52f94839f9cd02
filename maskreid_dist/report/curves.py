"""Training curves from a run's `metrics.jsonl`."""

import json
from io import StringIO
from pathlib import Path

FEW = 30  # points of a curve that are drawn one by one
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
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if not isinstance(record, dict) or not isinstance(record.get("step"), int):
            continue
        for key in CURVES:
            if isinstance(record.get(key), int | float):
                steps, values = curves.setdefault(key, ([], []))
                steps.append(record["step"])
                values.append(float(record[key]))
    return curves


def curves_svg(path: Path) -> str:
    """The curves as one inline SVG, or an empty string when there are none."""
    curves = read_metrics(path)
    if not curves:
        return ""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    columns = 3
    rows = -(-len(curves) // columns)
    figure = Figure(figsize=(11, 2.5 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    shown = [key for key in CURVES if key in curves]
    for axis, key in zip(axes, shown, strict=False):
        few = len(curves[key][0]) <= FEW
        axis.plot(*curves[key], color="#2a5ea8", linewidth=1.2, marker="o" if few else None, markersize=3)
        axis.set_title(CURVES[key], fontsize=10)
        axis.set_xlabel("step", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[len(shown) :]:
        axis.set_visible(False)
    buffer = StringIO()
    # Text stays text; the same bytes each time.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "maskreid"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
