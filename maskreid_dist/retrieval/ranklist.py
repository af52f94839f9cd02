"""Ranked lists of chosen queries, for reports: the whole order, so for few queries only."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from maskreid_dist.retrieval.distance import pair_distances
from maskreid_dist.retrieval.inputs import Features, Ids, both_sides
from maskreid_dist.retrieval.pairs import JUNK_PID


@dataclass(frozen=True, eq=False)
class RankList:
    """The first n images of a query's list: gallery_index (n,) int64, distance
    (n,) float64, correct (n,) bool."""

    query: int
    gallery_index: NDArray[np.int64]
    distance: NDArray[np.float64]
    correct: NDArray[np.bool_]


def rank_list(
    query: Features,
    query_pids: Ids,
    query_camids: Ids,
    gallery: Features,
    gallery_pids: Ids,
    gallery_camids: Ids,
    *,
    queries: Sequence[int],
    top: int = 10,
    metric: Literal["cosine", "euclidean"] = "cosine",
) -> list[RankList]:
    """The `top` first non-junk gallery images of each query in `queries` (row
    numbers), in the order that is evaluated.

    Arguments as for `evaluate_retrieval`. distance: cosine (1 - similarity) or Euclidean. A list is
    shorter than `top` when fewer images remain after junk. Time O(G log G) and memory O(G) per
    query. Raises ValueError for bad input.
    """
    query_set, gallery_set = both_sides(
        query, query_pids, query_camids, gallery, gallery_pids, gallery_camids, metric=metric
    )
    if top < 1:
        raise ValueError(f"top must be at least 1, not {top}")
    lists = []
    for q in queries:
        if not 0 <= q < len(query_set):
            raise ValueError(f"query row {q} does not exist: there are {len(query_set)}")
        same_pid = gallery_set.pids == query_set.pids[q]
        same_camera = gallery_set.camids == query_set.camids[q]
        listed = np.flatnonzero((gallery_set.pids != JUNK_PID) & ~(same_pid & same_camera))
        distance = pair_distances(
            query_set.features,
            query_set.norms,
            torch.full((len(listed),), q),
            gallery_set.features,
            gallery_set.norms,
            torch.from_numpy(listed),
            metric,
        )
        distance_N = distance.cpu().numpy()
        first = np.argsort(distance_N, kind="stable")[:top]
        shown = np.sqrt(distance_N[first]) if metric == "euclidean" else distance_N[first]
        lists.append(RankList(int(q), listed[first], shown, same_pid[listed[first]]))
    return lists
