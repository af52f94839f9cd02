"""The k nearest gallery images of every query, exactly, in memory O(Q k + tile).

Shapes: B queries of a block, U rows of a tile, K images of a list, I candidates.
The order is that of evaluation: (float64 distance, gallery index). A tile's matrix product puts every row at
a place with a bounded error (`distance.py`). Rows that this bound does not put behind the K-th image found so
far are candidates; their exact distances decide. So the lists are the same for every tiling and every number
of ranks.
"""

from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from maskreid_dist.retrieval.distance import COLUMN_BITS, Metric, Precision, place_bound, places, precisions
from maskreid_dist.retrieval.faiss_lists import FLAT, check_index, faiss_lists
from maskreid_dist.retrieval.group import gather_rows, share_labels
from maskreid_dist.retrieval.inputs import Features, ImageSet, both_sides, chosen, part
from maskreid_dist.retrieval.pairs import IntArray
from maskreid_dist.retrieval.tile import LARGEST_TILE, Tile
from maskreid_kernels.options import check_group

QUERY_BLOCK = 128
_SEGMENT = 64  # keys whose least one is looked at first
_OPEN_SHARE = 1 / 16  # of a block's pairs with a tile; above it float64 products are cheaper than exact pairs
# Above it in float64 the exact distances of a whole block are cheaper than those of pairs.
_SORTED_SHARE = 1 / 8


@dataclass(frozen=True, eq=False)
class Neighbours:
    """index_QK (Q, K) int64: gallery rows, nearest first. distance_QK (Q, K) float64: cosine (1 - similarity)
    or Euclidean. K = min(k, G)."""

    index_QK: IntArray
    distance_QK: NDArray[np.float64]


def nearest(
    query: Features,
    gallery: Features,
    k: int,
    *,
    metric: Literal["cosine", "euclidean"] = "cosine",
    group: dist.ProcessGroup | None = None,
    index: str = "exact",
) -> Neighbours:
    """The k nearest gallery rows of every query, ties by gallery index.

    query (Q, D), gallery (G, D): NumPy or torch, any floating dtype; the gallery may be a memory-mapped file.
    group: a process group; the gallery is then this rank's rows (the global order is rank order), the queries
    are the same on all ranks, and so is the result. All ranks of the group take part.
    index: "faiss" finds the same lists by FAISS's IndexFlat, "faiss:HNSW32" (any of its factory strings, and
    after a semicolon its parameters) approximate ones, by an index that is built for this call: FAISS must be
    installed.
    Raises ValueError for bad input; over a group the same line on every rank. UserError: an index that is not
    to be had.
    """
    check_group(group)
    check_index(index)
    sides: tuple[ImageSet | None, ImageSet | None] = (None, None)
    problem = None
    try:
        if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
            raise ValueError(f"k: expected an integer of at least 1, got {k!r}")
        ids = [np.zeros(len(rows), np.int64) for rows in (query, gallery)]
        sides = both_sides(query, ids[0], ids[0], gallery, ids[1], ids[1], metric=metric)
    except (TypeError, ValueError) as error:
        problem = str(error)
    options = {"metric": metric, "k": k, "index": index}
    labels = share_labels(*sides, problem, options, group)
    query_set, gallery_set = cast(tuple[ImageSet, ImageSet], sides)
    lists = nearest_of_all(query_set, gallery_set, int(k), metric, labels.offset, group, index)
    if metric == "euclidean":
        return Neighbours(lists.index_QK, np.sqrt(lists.distance_QK))
    return lists


def nearest_of_all(
    query: ImageSet,
    gallery: ImageSet,
    k: int,
    metric: Metric,
    offset: int,
    group: dist.ProcessGroup | None,
    index: str = "exact",
) -> Neighbours:
    """As `nearest_images`, of the galleries of all ranks, on each. offset: of this rank's first image."""
    found = nearest_images(query, gallery, k, metric, first=offset, index=index)
    return merge(gather_rows(found.index_QK, group), gather_rows(found.distance_QK, group), k)


def nearest_images(
    query: ImageSet, gallery: ImageSet, k: int, metric: Metric, *, first: int = 0, index: str = "exact"
) -> Neighbours:
    """Of this rank's gallery, whose first image has the global index `first`; Euclidean distances squared."""
    if index != "exact":
        found = faiss_lists(query, gallery, k, metric, index)
        lists = Neighbours(found.index_QK + first, found.distance_QK)
        if index == FLAT and not found.proven_Q.all():
            rows = np.flatnonzero(~found.proven_Q)
            ours = nearest_images(chosen(query, rows), gallery, k, metric, first=first)
            lists.index_QK[rows], lists.distance_QK[rows] = ours.index_QK, ours.distance_QK
        return lists
    blocks = _lists(query, gallery, k, metric, first, False)
    width = min(k, len(gallery))
    return Neighbours(
        np.concatenate([block.index_BK for block in blocks] or [np.zeros((0, width), np.int64)]),
        np.concatenate([block.distance_BK for block in blocks] or [np.zeros((0, width))]),
    )


def nearest_and_largest(
    query: ImageSet, images: ImageSet, k: int, metric: Metric, index: str = "exact"
) -> tuple[IntArray, NDArray[np.float64]]:
    """Of every query among all images: its k nearest, (Q, K) int64, and the largest distance to any, exactly,
    (Q,) float64, Euclidean squared. index: "exact", one product of these with all, or "faiss", two."""
    if index != "exact":
        near = faiss_lists(query, images, k, metric, FLAT)
        far = faiss_lists(query, images, 1, metric, FLAT, farthest=True)
        index_QK, largest_Q = near.index_QK, far.distance_QK[:, 0]
        rows = np.flatnonzero(~(near.proven_Q & far.proven_Q))
        if len(rows):
            ours = nearest_and_largest(chosen(query, rows), images, k, metric)
            index_QK[rows], largest_Q[rows] = ours
        return index_QK, largest_Q
    blocks = _lists(query, images, k, metric, 0, True)
    found = [block.index_BK for block in blocks] or [np.zeros((0, min(k, len(images))), np.int64)]
    return np.concatenate(found), np.concatenate([block.largest_B for block in blocks] or [np.zeros(0)])


def _lists(
    query: ImageSet, gallery: ImageSet, k: int, metric: Metric, first: int, largest: bool
) -> list["_BlockLists"]:
    starts = range(0, len(query), QUERY_BLOCK)
    lists = [_BlockLists(part(query, start, start + QUERY_BLOCK), k, metric, largest) for start in starts]
    for start in range(0, len(gallery), LARGEST_TILE):
        rows = part(gallery, start, start + LARGEST_TILE, query.features.device)
        tile = Tile.build(rows, first + start, query.norms, metric)
        for block in lists:
            block.add(tile)
    return lists


class _BlockLists:
    """The lists of a block of queries over the tiles seen, sorted; K grows to k. largest_B, where asked for:
    the largest distance seen."""

    def __init__(self, query: ImageSet, k: int, metric: Metric, largest: bool) -> None:
        self.query, self.k, self.metric = query, k, metric
        self.index_BK = np.zeros((len(query), 0), np.int64)
        self.distance_BK = np.zeros((len(query), 0))
        self.wants_largest = largest
        self.largest_B = np.full(len(query), -np.inf)

    def add(self, tile: Tile) -> None:
        if not len(tile.index_N):
            return
        levels = precisions(self.query.features.device, self.query.features.shape[1])
        for precision in levels:
            keys_BU = tile.keys(self.query, precision)
            near = _below(keys_BU, self._limits(tile, keys_BU, precision))
            far = self._far(tile, keys_BU, precision)
            enough = max(_OPEN_SHARE * keys_BU.numel(), 4 * self.k * len(keys_BU))
            if len(near[0]) + len(far[0]) <= enough:
                break
            if precision is levels[-1] and len(near[0]) + len(far[0]) > _SORTED_SHARE * keys_BU.numel():
                self._take_all(tile)
                return
        self._take(tile, *near)
        np.maximum.at(self.largest_B, far[0].cpu().numpy(), tile.exact(self.query, *far).cpu().numpy())

    def _take(self, tile: Tile, b: Tensor, u: Tensor) -> None:
        """Merge the candidates, by their exact distances, into the lists."""
        distance_I = tile.exact(self.query, b, u).cpu().numpy()
        self._merge(*_images(tile, b.cpu().numpy(), u.cpu().numpy(), distance_I, self.k))

    def _take_all(self, tile: Tile) -> None:
        """The same where most are candidates: all exact distances, of which those up to the k-th."""
        distance_BN = tile.exact_block(self.query)
        N = distance_BN.shape[1]
        if N > self.k:
            last_B = np.partition(distance_BN, self.k - 1, axis=1)[:, self.k - 1]
            row_I, position_I = _first_ties(distance_BN, last_B, self.k)
        else:
            row_I, position_I = (x.ravel() for x in np.indices(distance_BN.shape))
        self._merge(row_I, tile.index_N[position_I], distance_BN[row_I, position_I])
        if self.wants_largest:
            np.maximum(self.largest_B, distance_BN.max(axis=1), out=self.largest_B)

    def _merge(self, row_I: IntArray, index_I: IntArray, distance_I: NDArray[np.float64]) -> None:
        B, K = self.index_BK.shape
        rows = np.concatenate([np.repeat(np.arange(B), K), row_I])
        index = np.concatenate([self.index_BK.ravel(), index_I])
        distance = np.concatenate([self.distance_BK.ravel(), distance_I])
        self.index_BK, self.distance_BK = _first_k(rows, index, distance, B, self.k)

    def _far(self, tile: Tile, keys_BU: Tensor, precision: Precision) -> tuple[Tensor, Tensor]:
        """Rows that may be farther than what was seen and than the others of the tile: as `_below`."""
        if not self.wants_largest:
            nothing = torch.zeros(0, dtype=torch.long, device=keys_BU.device)
            return nothing, nothing
        steps = _steps(precision, self.query)
        least_B = (keys_BU.amax(dim=1) >> COLUMN_BITS) - (2 * steps + 1)
        seen_B1 = torch.from_numpy(self.largest_B[:, None]).to(self.query.norms.device)
        seen_B = places(seen_B1, self.query.norms, self.metric, tile.scale)[:, 0] * precision.steps - steps
        least_B = torch.maximum(least_B, _clamped(seen_B.floor() - 1, precision))
        return _below(-keys_BU, -(least_B << COLUMN_BITS) + 1)

    def _limits(self, tile: Tile, keys_BU: Tensor, precision: Precision) -> Tensor:
        """Keys at or above which a row is certainly behind the K-th image: (B,) integers."""
        steps = _steps(precision, self.query)
        if self.index_BK.shape[1] == self.k:
            last_B1 = torch.from_numpy(self.distance_BK[:, -1:]).to(self.query.norms.device)
            place_B = places(last_B1, self.query.norms, self.metric, tile.scale)[:, 0] * precision.steps
            step_B = _clamped((place_B + steps).floor(), precision)
        elif keys_BU.shape[1] > self.k:  # at least k rows are certainly not behind the k-th by its key
            step_B = (_kth(keys_BU, self.k) >> COLUMN_BITS) + (2 * steps + 1)
        else:
            return keys_BU.new_full((len(keys_BU),), torch.iinfo(keys_BU.dtype).max)
        return (step_B + 1) << COLUMN_BITS


def _first_ties(
    distance_BN: NDArray[np.float64], last_B: NDArray[np.float64], k: int
) -> tuple[IntArray, IntArray]:
    """Rows and positions of what is nearer than the k-th, and of the first of those as near, k a row."""
    nearer_BN, tied_BN = distance_BN < last_B[:, None], distance_BN == last_B[:, None]
    missing_B = k - nearer_BN.sum(axis=1)
    row_I, position_I = tied_BN.nonzero()
    number_B = np.bincount(row_I, minlength=len(last_B))
    within_I = np.arange(len(row_I)) - np.repeat(np.cumsum(number_B) - number_B, number_B)
    first_I = within_I < missing_B[row_I]
    row_J, position_J = nearer_BN.nonzero()
    return np.concatenate([row_J, row_I[first_I]]), np.concatenate([position_J, position_I[first_I]])


def _clamped(step_B: Tensor, precision: Precision) -> Tensor:
    """As the precision's integers; what lies beyond all keys stays beyond them."""
    limit = (1 << (torch.iinfo(precision.integer).bits - COLUMN_BITS - 1)) - 2
    return step_B.clamp(-limit, limit).to(precision.integer)


def _kth(keys_BU: Tensor, k: int) -> Tensor:
    """The k-th smallest of every row; on the CPU by NumPy, whose selection is vectorised."""
    if keys_BU.device.type != "cpu":
        return keys_BU.kthvalue(k, dim=1).values
    return torch.from_numpy(np.partition(keys_BU.numpy(), k - 1, axis=1)[:, k - 1])


def _steps(precision: Precision, query: ImageSet) -> int:
    """The bound on a place, in the integers of keys."""
    return int(np.ceil(place_bound(query.features.shape[1], precision) * precision.steps))


def _below(keys_BU: Tensor, limit_B: Tensor) -> tuple[Tensor, Tensor]:
    """Where keys are below their row's limit: (I,) rows and (I,) columns. On the CPU most segments are passed
    over by their least key, which takes an eighth of the time."""
    B, U = keys_BU.shape
    whole = U - U % _SEGMENT
    if keys_BU.device.type != "cpu" or not whole:
        b, u = (keys_BU < limit_B[:, None]).nonzero(as_tuple=True)
        return b, u
    parts_BSW = keys_BU[:, :whole].reshape(B, -1, _SEGMENT)
    near_b, near_s = (parts_BSW.amin(dim=2) < limit_B[:, None]).nonzero(as_tuple=True)
    i, w = (parts_BSW[near_b, near_s] < limit_B[near_b][:, None]).nonzero(as_tuple=True)
    rest_b, rest_u = (keys_BU[:, whole:] < limit_B[:, None]).nonzero(as_tuple=True)
    return torch.cat([near_b[i], rest_b]), torch.cat([near_s[i] * _SEGMENT + w, rest_u + whole])


def _images(
    tile: Tile, row_I: IntArray, u_I: IntArray, distance_I: NDArray[np.float64], k: int
) -> tuple[IntArray, IntArray, NDArray[np.float64]]:
    """From rows of a tile to gallery images: of merged copies the first k."""
    if tile.member_N is None:
        return row_I, tile.index_N[u_I], distance_I
    N = len(tile.index_N)
    start_I = tile.member_N.searchsorted(u_I * N)
    count_I = np.minimum(tile.member_N.searchsorted((u_I + 1) * N) - start_I, k)
    within = np.arange(int(count_I.sum())) - np.repeat(np.cumsum(count_I) - count_I, count_I)
    position = tile.member_N[np.repeat(start_I, count_I) + within] % N
    return np.repeat(row_I, count_I), tile.index_N[position], np.repeat(distance_I, count_I)


def _first_k(
    row_I: IntArray, index_I: IntArray, distance_I: NDArray[np.float64], rows: int, k: int
) -> tuple[IntArray, NDArray[np.float64]]:
    """Each row's first k by (distance, index). All rows have k items or more, or all have equally many."""
    order = np.lexsort((index_I, distance_I, row_I))
    count_B = np.bincount(row_I, minlength=rows)
    within = np.arange(len(order)) - np.repeat(np.cumsum(count_B) - count_B, count_B)
    first = order[within < k]
    return index_I[first].reshape(rows, -1), distance_I[first].reshape(rows, -1)


def merge(index_RQK: list[IntArray], distance_RQK: list[NDArray[np.float64]], k: int) -> Neighbours:
    """The lists of R ranks as one list a query."""
    if len(index_RQK) == 1:
        return Neighbours(index_RQK[0], distance_RQK[0])
    index, distance = np.concatenate(index_RQK, axis=1), np.concatenate(distance_RQK, axis=1)
    rows = np.repeat(np.arange(len(index)), index.shape[1])
    return Neighbours(*_first_k(rows, index.ravel(), distance.ravel(), len(index), k))
