"""Two networks on the same queries and gallery: how the figures differ, which queries changed most."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from maskreid_dist.evaluation.evaluate import Ranked, percentages
from maskreid_dist.evaluation.labels import Cameras, split_labels
from maskreid_dist.evaluation.ranked_pictures import ranked_queries
from maskreid_dist.evaluation.report_facts import loss_text
from maskreid_dist.model.checkpoint import Checkpoint
from maskreid_dist.report.compare_page import ChangedQuery, ComparePage, write_compare_page
from maskreid_dist.report.table import COLUMNS
from maskreid_dist.retrieval.paired import Difference, paired_differences
from maskreid_shards import ShardSet

CHANGED = 10  # queries shown of those that gained, and of those that lost


@dataclass(frozen=True)
class Side:
    """A network and how it ranks."""

    checkpoint: Checkpoint
    ranked: Ranked


@dataclass(frozen=True)
class Comparison:
    """differences: by figure. gained, lost: rows of the queries whose AP rose, and fell, most, each of
    another person, the most first."""

    first: Side
    second: Side
    differences: Mapping[str, Difference]
    gained: list[int]
    lost: list[int]


def compare(first: Side, second: Side, shards: ShardSet) -> Comparison:
    """Of two networks ranked on these shards."""
    results = first.ranked.result, second.ranked.result
    differences = paired_differences(*results)
    change_Q = results[1].average_precision - results[0].average_precision
    pids = shards.split("query").pids
    gained, lost = (_most(sign * change_Q, pids) for sign in (1.0, -1.0))
    return Comparison(first, second, differences, gained, lost)


def _most(change_Q: np.ndarray[Any, np.dtype[np.float64]], pids: np.ndarray[Any, Any]) -> list[int]:
    """Rows of the largest changes above 0, one a person."""
    rows: dict[int, int] = {}
    for row in np.argsort(-np.nan_to_num(change_Q), kind="stable").tolist():
        if not change_Q[row] > 0 or len(rows) == CHANGED:
            break
        rows.setdefault(int(pids[row]), row)
    return list(rows.values())


def in_percent(found: Comparison) -> dict[str, Any]:
    """For JSON."""
    return {
        "unit": "percent",
        "first": {"run": found.first.ranked.name, **percentages(found.first.ranked.result)},
        "second": {"run": found.second.ranked.name, **percentages(found.second.ranked.result)},
        "differences": {
            name: {
                "value": round(100 * one.value, 2),
                "low": round(100 * one.interval[0], 2),
                "high": round(100 * one.interval[1], 2),
            }
            for name, one in found.differences.items()
        },
    }


def write_comparison(path: Path, found: Comparison, shards: ShardSet, cameras: Cameras) -> None:
    """The page: both runs side by side, and the lists of the queries that changed most."""
    labels = split_labels(shards, cameras)
    sides = found.first, found.second
    rows = {"gained": found.gained, "lost": found.lost}
    lists = [ranked_queries(side.ranked, shards, labels, rows) for side in sides]
    results = [side.ranked.result for side in sides]
    valid = ~np.isnan(results[0].average_precision)
    aps = [result.average_precision[valid].tolist() for result in results]
    page = ComparePage(
        names=(str(found.first.checkpoint.path), str(found.second.checkpoint.path)),
        figures=[(side.ranked.name, percentages(side.ranked.result)) for side in sides],
        differences={
            _title(name): (100 * one.value, 100 * one.interval[0], 100 * one.interval[1])
            for name, one in found.differences.items()
        },
        cmc=[result.cmc.tolist() for result in results],
        average_precisions=list(zip(*aps, strict=True)),
        settings=settings(found.first.checkpoint, found.second.checkpoint),
        changed=[ChangedQuery(*pair) for pair in zip(*lists, strict=True)],
    )
    write_compare_page(path, page)


def _title(name: str) -> str:
    return name if name == "mAP" else COLUMNS[name]


def settings(first: Checkpoint, second: Checkpoint) -> dict[str, tuple[str, str]]:
    """The recipes' keys that differ, and the steps, commits and starts."""
    recipes = [_flat(one.config.model_dump(mode="json")) for one in (first, second)]
    different = {
        key: (str(recipes[0][key]), str(recipes[1][key]))
        for key in recipes[0]
        if recipes[0][key] != recipes[1][key] and not key.endswith("shards")
    }
    facts = {
        "loss, whole": (loss_text(first.config.loss), loss_text(second.config.loss)),
        "steps done": (str(first.step), str(second.step)),
        "ranks": (str(first.world_size), str(second.world_size)),
        "started": _origins(first, second, "started"),
        "commit": _origins(first, second, "commit"),
        "trained on": (first.shards_fingerprint[:12], second.shards_fingerprint[:12]),
    }
    return different | facts


def _origins(first: Checkpoint, second: Checkpoint, name: str) -> tuple[str, str]:
    before, after = (str(one.origin.get(name) or "not recorded") for one in (first, second))
    return before, after


def _flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flat(value, f"{before}{key}.") if isinstance(value, dict) else {f"{before}{key}": value}
    return found
