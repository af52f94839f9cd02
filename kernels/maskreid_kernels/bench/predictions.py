"""Predicted figures as they lie beside the results: one number a figure, by Triton's version and by card."""

from __future__ import annotations

import datetime
import json
import re
from pathlib import Path

from .figures import markdown_table, write_whole

RESULTS = Path(__file__).parents[2] / "bench" / "results"
FILE = "predictions.json"
TEXT = """# What a GPU is predicted to measure, {date}

Written before any of these programs ran on a GPU, so that the first run tests the model: `python -m
maskreid_kernels.bench gpu` prints each figure beside its prediction. The model is `predict.py` and
`predicted_figures.py` in `maskreid_kernels/bench`: instruction counts of sm_90 machine code, products, bytes
from the L2 cache at an assumed rate, bytes from memory by launch order, the branch that records pairs, one
program per processor that overlaps nothing. Times in ms. Made by `python -m maskreid_kernels.bench
ahead-of-time --predictions`, once under each version of Triton.
"""


def read_predictions(triton: str, device: str, folder: Path = RESULTS) -> dict[str, float]:
    """Figure by key for this version and card; empty where nothing was predicted for them."""
    of_cards = _read(folder).get(triton, {})
    return next((figures for card, figures in of_cards.items() if card in device), {})


def write_predictions(folder: Path, triton: str, figures: dict[str, dict[str, float]]) -> None:
    """predictions.json and .md in the folder; `figures` by card for one version, those of other versions
    stay."""
    known = _read(folder) | {triton: figures}
    known = dict(sorted(known.items()))
    date = datetime.date.today().isoformat()
    rounded = {
        version: {
            card: {key: float(f"{value:.4g}") for key, value in of_card.items()}
            for card, of_card in cards.items()
        }
        for version, cards in known.items()
    }
    write_whole(folder / FILE, (json.dumps({"date": date, "figures": rounded}, indent=1) + "\n").encode())
    columns = [(version, card) for version, cards in rounded.items() for card in cards]
    keys = list(dict.fromkeys(key for version, card in columns for key in rounded[version][card]))
    headings = ("figure", *(f"{card}, triton {version}" for version, card in columns))
    rows = [(key, *(_cell(rounded[version][card], key) for version, card in columns)) for key in keys]
    lines = [TEXT.format(date=date), *markdown_table(headings, rows)]
    write_whole(folder / "predictions.md", ("\n".join(lines) + "\n").encode())


def _read(folder: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Figures by version, card and key. Files of before the losses' names were one table say "supcon"."""
    path = folder / FILE
    known = json.loads(path.read_text())["figures"] if path.exists() else {}
    return {
        version: {
            card: {re.sub("^supcon\\b", "supervised_contrastive", key): ms for key, ms in figures.items()}
            for card, figures in cards.items()
        }
        for version, cards in known.items()
    }


def _cell(figures: dict[str, float], key: str) -> str:
    return f"{figures[key]:.3g}" if key in figures else ""
