"""Predicted figures as they lie beside the results: one number a figure, by Triton's version and by card."""

from __future__ import annotations

import json
from pathlib import Path

RESULTS = Path(__file__).parents[2] / "bench" / "results"
FILE = RESULTS / "predictions.json"


def read_predictions(triton: str, device: str, path: Path = FILE) -> dict[str, float]:
    """Figure by key for this version and card; empty where nothing was predicted for them."""
    if not path.exists():
        return {}
    of_cards = json.loads(path.read_text())["figures"].get(triton, {})
    return next((figures for card, figures in of_cards.items() if card in device), {})
