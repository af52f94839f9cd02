"""What others rank with, from features to mAP by hits: run, never taken from.

`argsort, NumPy` is written here from the definition, in the form that BoxMOT's `evaluate_ranking` has too: an
argsort of every query's list, without images of its camera and person, and the mean of the precisions at its
matches. Torchreid and torchmetrics are run where they are installed. Distances come from one product of torch
in all of them.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[np.float32]
Labels = tuple[NDArray[np.int64], NDArray[np.int64]]  # pids and camids
BLOCK = 256  # queries whose distances are held at once


@dataclass(frozen=True)
class Lists:
    query: Array
    gallery: Array
    query_labels: Labels
    gallery_labels: Labels

    def similarities(self, start: int = 0, stop: int | None = None) -> Array:
        q, g = (
            torch.nn.functional.normalize(torch.from_numpy(x)) for x in (self.query[start:stop], self.gallery)
        )
        found: Array = (q @ g.T).numpy()
        return found

    def junk(self) -> NDArray[np.bool_]:
        """(Q, G): images that leave a query's list."""
        same = [q[:, None] == g[None, :] for q, g in zip(self.query_labels, self.gallery_labels, strict=True)]
        found: NDArray[np.bool_] = same[0] & same[1]
        return found


def argsort(lists: Lists) -> float:
    """mAP by hits: every query's whole list is sorted."""
    pids, camids = lists.gallery_labels
    scores = []
    for start in range(0, len(lists.query), BLOCK):
        order_BG = np.argsort(-lists.similarities(start, start + BLOCK), axis=1)
        own = zip(order_BG, *(x[start : start + BLOCK] for x in lists.query_labels), strict=True)
        for order_G, pid, camid in own:
            listed = order_G[(pids[order_G] != pid) | (camids[order_G] != camid)]
            places = np.flatnonzero(pids[listed] == pid) + 1
            if len(places):
                scores.append(np.mean(np.arange(1, len(places) + 1) / places))
    return float(np.mean(scores))


def torchmetrics(lists: Lists) -> float:
    """RetrievalMAP on all listed pairs of all queries at once, as it asks for them.

    What it is given lies above 0: it takes no image whose score does not for a match.
    """
    retrieval = importlib.import_module("torchmetrics.retrieval")
    listed = ~lists.junk()
    queries, _ = listed.nonzero()
    target = lists.query_labels[0][:, None] == lists.gallery_labels[0][None, :]
    scores = (torch.from_numpy(x) for x in (2 + lists.similarities()[listed], target[listed], queries))
    metric = retrieval.RetrievalMAP(empty_target_action="skip")
    preds, hits, indexes = scores
    return float(metric(preds, hits, indexes=indexes))


def torchreid(lists: Lists) -> float:
    """Its own Python, without the compiled extension."""
    rank = importlib.import_module(torchreid_module())
    (q_pids, q_camids), (g_pids, g_camids) = lists.query_labels, lists.gallery_labels
    distances = 1 - lists.similarities()
    return float(rank.evaluate_rank(distances, q_pids, g_pids, q_camids, g_camids, use_cython=False)[1])


def torchreid_module() -> str:
    """The name of the module that has its `evaluate_rank`. Raises ImportError where it is not installed."""
    for name in ("torchreid.metrics.rank", "torchreid.reid.metrics.rank"):
        try:
            importlib.import_module(name)
        except ImportError:
            continue
        return name
    raise ImportError("torchreid")


PEERS: dict[str, Callable[[Lists], float]] = {
    "argsort, NumPy": argsort,
    "torchmetrics": torchmetrics,
    "Torchreid, Python": torchreid,
}


def installed(name: str) -> bool:
    """Whether the peer can be run here."""
    try:
        if name == "torchmetrics":
            importlib.import_module("torchmetrics.retrieval")
        if name.startswith("Torchreid"):
            torchreid_module()
    except ImportError:
        return False
    return True
