"""Other protocols than the usual one (all gallery images, images of the query's camera left out), by name."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from maskreid_dist.errors import RetrievalError
from maskreid_dist.retrieval.distance import Metric, block_distances, pair_distances
from maskreid_dist.retrieval.evaluate import evaluate_retrieval
from maskreid_dist.retrieval.inputs import Features, Ids, ImageSet, check_widths, image_set
from maskreid_dist.retrieval.pairs import JUNK_PID, IntArray
from maskreid_dist.retrieval.result import ApName, RetrievalResult

_BLOCK = 256


def cameras_of_keys(
    query_keys: NDArray[np.bytes_ | np.str_], gallery_keys: NDArray[np.bytes_ | np.str_]
) -> tuple[IntArray, IntArray]:
    """Stand-ins for camera ids where there are none: one for each key, (Q,) and (G,).

    An evaluation with them leaves out a gallery image of the query's own key, and no other.
    """
    _, numbers = np.unique(np.concatenate([query_keys, gallery_keys]), return_inverse=True)
    numbers = numbers.reshape(-1).astype(np.int64)
    return numbers[: len(query_keys)], numbers[len(query_keys) :]


def pool_queries(
    query: Features, query_pids: Ids, query_camids: Ids
) -> tuple[NDArray[np.float64], IntArray, IntArray]:
    """Multiple query (Market-1501): one query for each pid and camera, the mean of its images' unit features.

    Returns unit features (M, D), pids and camids (M,), ordered by pid, then camera.
    """
    return pool_tracklets(query, query_pids, query_camids, np.zeros(len(query), np.int64))


def pool_tracklets(
    features: Features, pids: Ids, camids: Ids, tracklets: Ids
) -> tuple[NDArray[np.float64], IntArray, IntArray]:
    """Tracklets (MARS): one row for each pid, camera and tracklet, the mean of its images' unit features.

    tracklets: (N,) integers; two persons or cameras may use the same ones. Returns unit features (M, D), pids
    and camids (M,), ordered by pid, camera, tracklet. Raises ValueError for bad input.
    """
    images = image_set("query", features, pids, camids, metric="cosine")
    numbers = np.asarray(tracklets)
    if numbers.shape != (len(images),) or not np.issubdtype(numbers.dtype, np.integer):
        raise ValueError(
            f"tracklets must be one integer per feature row ({len(images)}), not {numbers.dtype} of shape "
            f"{numbers.shape}"
        )
    unit = (images.features.double() / images.norms.clamp_min(1e-12)[:, None]).cpu().numpy()
    names = np.stack([images.pids, images.camids, numbers], axis=1)
    labels, group = np.unique(names, axis=0, return_inverse=True)
    sums = np.zeros((len(labels), unit.shape[1]))
    np.add.at(sums, group.reshape(-1), unit)
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    return sums / np.maximum(lengths, 1e-12), labels[:, 0], labels[:, 1]


def gallery_growth(
    query: Features,
    query_pids: Ids,
    query_camids: Ids,
    gallery: Features,
    gallery_pids: Ids,
    gallery_camids: Ids,
    distractors: Features,
    sizes: Sequence[int],
    *,
    ap: ApName = "hits",
    metric: Metric = "cosine",
    max_rank: int = 50,
    seed: int = 0,
) -> list[RetrievalResult]:
    """The usual evaluation with galleries of `sizes` images: the whole gallery and more and more of the
    distractors (N, D), which show nobody that is asked for, in a random order of `seed`.

    Raises ValueError for sizes below the gallery's or beyond what is there, and as `evaluate_retrieval`.
    """
    G, most = len(gallery), len(gallery) + len(distractors)
    if not sizes or min(sizes) < G or max(sizes) > most:
        raise ValueError(f"sizes lie between {G}, the gallery's own, and {most}, not {list(sizes)}")
    g = image_set("gallery", gallery, gallery_pids, gallery_camids, metric=metric)
    ids = np.zeros(len(distractors), np.int64)
    more = image_set("gallery", distractors, ids, ids, metric=metric)
    check_widths(g, more)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(more)))
    results = []
    for size in sizes:
        extra = more.features[order[: size - G]].to(g.features.device, g.features.dtype)
        zeros = np.zeros(size - G, np.int64)
        labels = np.concatenate([g.pids, zeros]), np.concatenate([g.camids, zeros])
        sides = query, query_pids, query_camids, torch.cat([g.features, extra]), *labels
        results.append(evaluate_retrieval(*sides, ap=ap, metric=metric, max_rank=max_rank))
    return results


def single_shot_cmc(
    query: Features,
    query_pids: Ids,
    query_camids: Ids,
    gallery: Features,
    gallery_pids: Ids,
    gallery_camids: Ids,
    *,
    repeats: int = 10,
    seed: int = 0,
    max_rank: int = 50,
    metric: Metric = "cosine",
) -> NDArray[np.float64]:
    """CMC with a gallery of one random image an identity (classic CUHK03, VIPeR), the
    mean over `repeats` draws: (max_rank,).

    Junk (pid -1, the query's pid in its own camera) is never drawn. Every draw is one random order of the
    gallery, of which each query takes the first image it may of every identity. Queries without a good image
    are left out. Ties are ordered by gallery index. Arguments as for `evaluate_retrieval`. Costs a distance
    for every query, identity and draw. Raises RetrievalError when no query has a good image, ValueError for
    bad input.
    """
    if repeats < 1 or max_rank < 1:
        raise ValueError(f"repeats and max_rank must be at least 1, not {repeats} and {max_rank}")
    q = image_set("query", query, query_pids, query_camids, metric=metric)
    g = image_set("gallery", gallery, gallery_pids, gallery_camids, metric=metric)
    check_widths(q, g)
    rng = np.random.default_rng(seed)
    hits = np.zeros(max_rank)
    valid = 0
    for _ in range(repeats):
        order = rng.permutation(len(g))
        ranks = _single_shot_ranks(q, g, order[g.pids[order] != JUNK_PID], metric)
        valid = len(ranks)
        hits += np.bincount(ranks[ranks <= max_rank] - 1, minlength=max_rank).cumsum()
    if not valid:
        raise RetrievalError("no query has a match in another camera")
    return hits / (repeats * valid)


def _single_shot_ranks(q: ImageSet, g: ImageSet, order: IntArray, metric: Metric) -> IntArray:
    """Rank of the drawn good image of every query that has one."""
    drawn_pids, first = np.unique(g.pids[order], return_index=True)
    drawn = order[first]
    own = np.array([_first_good(q.pids[i], q.camids[i], g, order) for i in range(len(q))], dtype=np.int64)
    asked = np.flatnonzero(own >= 0)
    ranks = []
    for rows in np.split(asked, range(_BLOCK, len(asked), _BLOCK)):
        at, mine = torch.from_numpy(rows), torch.from_numpy(own[rows])
        sample = torch.from_numpy(drawn)
        block = (q.features[at], q.norms[at])
        distance_BP = block_distances(*block, g.features[sample], g.norms[sample], metric).cpu().numpy()
        own_B1 = (
            pair_distances(q.features, q.norms, at, g.features, g.norms, mine, metric).cpu().numpy()[:, None]
        )
        ties = (distance_BP == own_B1) & (drawn[None, :] < own[rows][:, None])
        others = drawn_pids[None, :] != q.pids[rows][:, None]
        ranks.append(1 + (((distance_BP < own_B1) | ties) & others).sum(axis=1))
    return np.concatenate(ranks)


def _first_good(pid: int, camid: int, g: ImageSet, order: IntArray) -> int:
    good = np.flatnonzero((g.pids[order] == pid) & (g.camids[order] != camid))
    return int(order[good[0]]) if len(good) else -1


@dataclass(frozen=True, eq=False)
class CameraPair:
    """Queries of one camera against the gallery images of another; result: None where no query has a
    match."""

    query_camera: int
    gallery_camera: int
    queries: int
    result: RetrievalResult | None


def camera_pairs(
    query: Features,
    query_pids: Ids,
    query_camids: Ids,
    gallery: Features,
    gallery_pids: Ids,
    gallery_camids: Ids,
    *,
    ap: ApName = "hits",
    metric: Metric = "cosine",
    max_rank: int = 50,
) -> list[CameraPair]:
    """Evaluate every pair of different cameras by itself: the gallery is one camera's images, negatives
    too."""
    q = image_set("query", query, query_pids, query_camids, metric=metric)
    g = image_set("gallery", gallery, gallery_pids, gallery_camids, metric=metric)
    check_widths(q, g)
    pairs = []
    for a in np.unique(q.camids).tolist():
        for b in np.unique(g.camids).tolist():
            if a != b:
                rows, columns = np.flatnonzero(q.camids == a), np.flatnonzero(g.camids == b)
                result = _between(q, rows, g, columns, ap, metric, max_rank)
                pairs.append(CameraPair(a, b, len(rows), result))
    return pairs


def _between(
    q: ImageSet, rows: IntArray, g: ImageSet, columns: IntArray, ap: ApName, metric: Metric, max_rank: int
) -> RetrievalResult | None:
    query = (q.features[torch.from_numpy(rows)], q.pids[rows], q.camids[rows])
    gallery = (g.features[torch.from_numpy(columns)], g.pids[columns], g.camids[columns])
    try:
        return evaluate_retrieval(*query, *gallery, metric=metric, ap=ap, max_rank=max_rank)
    except RetrievalError:
        return None
