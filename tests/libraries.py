"""The libraries whose calling forms the adapters take, for tests: their names where installed, else the test
is skipped."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn


class Embedder(nn.Module):
    """What a SentenceTransformer is to a loss: features in, "sentence_embedding" out."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(6, dtype=torch.float64))

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sentence_embedding": features["x"] @ self.weight}


def package(name: str) -> Any:
    if os.environ.get("ADAPTERS") == "all":  # then a test that does not run is a failure
        return importlib.import_module(name)
    return pytest.importorskip(name, reason=f"{name} is not installed; make test-adapters has it")


def pytorch_metric_learning() -> dict[str, Any]:
    package("pytorch_metric_learning")
    from pytorch_metric_learning import distances, losses, miners, reducers
    from pytorch_metric_learning.utils import distributed

    found = {**vars(distances), **vars(losses), **vars(miners), **vars(reducers), **vars(distributed)}
    found["d"] = found["LpDistance"](normalize_embeddings=False)
    found["mean"] = found["MeanReducer"]()
    return found


def open_metric_learning() -> dict[str, Any]:
    package("oml.losses.triplet")
    from oml.losses import triplet
    from oml.miners import inbatch_hard_tri

    return {**vars(triplet), **vars(inbatch_hard_tri)}


def sentence_transformers() -> dict[str, Any]:
    package("sentence_transformers")
    from sentence_transformers.sentence_transformer import losses

    functions = losses.BatchHardTripletLossDistanceFunction
    return {**vars(losses), "cosine_distance": functions.cosine_distance}


LIBRARIES: dict[str, Callable[[], dict[str, Any]]] = {
    "pytorch-metric-learning": pytorch_metric_learning,
    "open-metric-learning": open_metric_learning,
    "sentence-transformers": sentence_transformers,
}


def library(name: str) -> dict[str, Any]:
    """What one imports of it, by name."""
    return LIBRARIES[name]()
