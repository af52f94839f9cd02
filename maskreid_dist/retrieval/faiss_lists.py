"""The k nearest by FAISS, where it is installed: our exact lists, or those of an approximate index.

Shapes: Q queries, G images, L of them candidates of a query, K' operand columns (`distance.py`).
FAISS finds candidates; their distances and their order are those of `pair_distances`. Its IndexFlat is a
float32 product, for which the bound of `distance.py` holds in whatever order it adds. So a list is proven
where the k-th image lies nearer, by more than that bound, than the last candidate that FAISS found: every
image that it passed over is farther. A query for which that is not so (ties, near copies) is searched by our
own tiles. An approximate index proves nothing: its candidates are put in order, and images may be missing.
"""

from dataclasses import dataclass
from importlib import import_module
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maskreid_dist.errors import UserError
from maskreid_dist.retrieval.distance import (
    Metric,
    Precision,
    gallery_operand,
    pair_distances,
    place_bound,
    places,
    query_operand,
    tile_scale,
)
from maskreid_dist.retrieval.inputs import ImageSet, part
from maskreid_dist.retrieval.pairs import JUNK_PID, IntArray

FLAT = "faiss"
_SPARE = 8  # candidates beyond k
_TILE = 1 << 16  # gallery rows that IndexFlat holds at once
_QUERIES = 1024  # whose candidates are ordered at once
# Operands in float32, scaled by a power of two, which rounds nothing.
_OPERAND = Precision(torch.float32, 2.0**-24, torch.int32, 2.0**40)


@dataclass(frozen=True, eq=False)
class Found:
    """index_QK (Q, K) int64 and distance_QK (Q, K) float64 of gallery images, nearest first; Euclidean
    squared. proven_Q: whether it is the exact list."""

    index_QK: IntArray
    distance_QK: NDArray[np.float64]
    proven_Q: NDArray[np.bool_]


def check_index(index: str) -> None:
    """Raises UserError: not "exact", "faiss" or "faiss:FACTORY", or FAISS is not installed."""
    if index == "exact":
        return
    if index != FLAT and not index.startswith(f"{FLAT}:"):
        raise UserError(f"index {index!r}: exact, faiss or faiss:FACTORY (say faiss:HNSW32)")
    _faiss()


def index_text(index: str) -> str:
    """What the lists are, for a line of output; "" for our own."""
    if index == "exact":
        return ""
    version = _faiss().__version__
    if index == FLAT:
        return f"lists by FAISS {version}, IndexFlat: exact"
    return f"APPROXIMATE lists by FAISS {version}, {index.removeprefix(f'{FLAT}:')}: images may be missing"


def faiss_lists(
    query: ImageSet, gallery: ImageSet, k: int, metric: Metric, index: str, *, farthest: bool = False
) -> Found:
    """The k nearest (or farthest) gallery images of every query, by gallery row; fewer where there are not k.

    Raises UserError for an index that FAISS cannot make, or that found fewer than k.
    """
    faiss = _faiss()
    faiss.omp_set_num_threads(torch.get_num_threads())
    listed = np.flatnonzero(gallery.pids != JUNK_PID)
    k = min(k, len(listed))
    if not k or not len(query):
        nothing = np.zeros((len(query), k), np.int64)
        return Found(nothing, nothing.astype(np.float64), np.ones(len(query), bool))
    scale = tile_scale(gallery.norms[torch.from_numpy(listed)], query.norms, metric)
    operand = query_operand(query.features, query.norms, metric, scale, _OPERAND).cpu()
    rows_QK = _contiguous(operand if farthest else -operand)  # FAISS looks for the largest product
    whole = _Gallery(gallery, listed, metric, scale)
    if index == FLAT:
        product_QL, candidate_QL = _flat(faiss, rows_QK, whole, min(k + _SPARE, len(listed)))
    else:
        product_QL, candidate_QL = _approximate(faiss, rows_QK, whole, k, index.removeprefix(f"{FLAT}:"))
    found = _ordered(query, gallery, listed[candidate_QL], k, metric, farthest)
    if index != FLAT:
        return Found(*found, np.zeros(len(query), bool))
    sign = 1.0 if farthest else -1.0
    last_Q = torch.from_numpy(product_QL.min(axis=1).astype(np.float64)) / _OPERAND.steps
    own_Q = places(torch.from_numpy(found[1][:, -1:]), query.norms.cpu(), metric, scale)[:, 0]
    apart_Q = sign * own_Q - last_Q > place_bound(query.features.shape[1], _OPERAND)
    everything = candidate_QL.shape[1] == len(listed)
    return Found(*found, (apart_Q | everything).numpy())


class _Gallery:
    """The listed images as rows of a product."""

    def __init__(self, images: ImageSet, listed: IntArray, metric: Metric, scale: float) -> None:
        self.images, self.listed, self.metric, self.scale = images, listed, metric, scale

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """(n, K') of those listed from `start` to `stop`."""
        numbers = self.listed[start:stop]
        # Neighbours as a view: of a memory-mapped file only this part is read.
        first, last = int(numbers[0]), int(numbers[-1]) + 1
        held = part(self.images, first, last)
        chosen = torch.from_numpy(numbers - first)
        sides = (held.features, held.norms)
        if len(numbers) < last - first:
            sides = (held.features[chosen], held.norms[chosen])
        return _contiguous(gallery_operand(*sides, self.metric, self.scale, _OPERAND).cpu())


def _flat(
    faiss: Any, rows_QK: NDArray[np.float32], gallery: _Gallery, wanted: int
) -> tuple[NDArray[np.float32], IntArray]:
    """The `wanted` largest products of every query, and their rows, in any order: (Q, L) each."""
    index = faiss.IndexFlatIP(rows_QK.shape[1])
    product_QL = np.zeros((len(rows_QK), 0), np.float32)
    candidate_QL = np.zeros((len(rows_QK), 0), np.int64)
    for start in range(0, len(gallery.listed), _TILE):
        index.reset()
        index.add(gallery.rows(start, start + _TILE))
        product, candidate = index.search(rows_QK, min(wanted, index.ntotal))
        product_QL = np.concatenate([product_QL, product], axis=1)
        candidate_QL = np.concatenate([candidate_QL, candidate + start], axis=1)
        if product_QL.shape[1] > wanted:
            best = np.argpartition(-product_QL, wanted - 1, axis=1)[:, :wanted]
            product_QL = np.take_along_axis(product_QL, best, axis=1)
            candidate_QL = np.take_along_axis(candidate_QL, best, axis=1)
    return product_QL, candidate_QL


def _approximate(
    faiss: Any, rows_QK: NDArray[np.float32], gallery: _Gallery, k: int, text: str
) -> tuple[NDArray[np.float32], IntArray]:
    """text: FAISS's factory string, and after a semicolon its search parameters."""
    factory, _, parameters = text.partition(";")
    whole = gallery.rows(0, len(gallery.listed))
    try:
        index = faiss.index_factory(whole.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
        if parameters:
            faiss.ParameterSpace().set_index_parameters(index, parameters)
        index.train(whole)
        index.add(whole)
        product_QL, candidate_QL = index.search(rows_QK, k)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].split(": ")[-1]
        raise UserError(f"index faiss:{text}: FAISS cannot: {reason}") from None
    short = int((candidate_QL < 0).any(axis=1).sum())
    if short:
        raise UserError(
            f"index faiss:{text}: fewer than {k} images found for {short} of {len(rows_QK)} queries; let it "
            "look at more (faiss:IVF256,Flat;nprobe=32)"
        )
    return product_QL, candidate_QL


def _ordered(
    query: ImageSet, gallery: ImageSet, image_QL: IntArray, k: int, metric: Metric, farthest: bool
) -> tuple[IntArray, NDArray[np.float64]]:
    """The k nearest (farthest) of every query's candidates, by (distance, gallery row); their distances."""
    Q, L = image_QL.shape
    index_QK, distance_QK = np.empty((Q, k), np.int64), np.empty((Q, k))
    q, g = (query.features, query.norms), (gallery.features, gallery.norms)
    for start in range(0, Q, _QUERIES):
        images = image_QL[start : start + _QUERIES]
        rows = torch.arange(start, start + len(images), device=query.features.device).repeat_interleave(L)
        columns = torch.from_numpy(images.ravel()).to(gallery.features.device)
        distance = pair_distances(*q, rows, *g, columns, metric).cpu().numpy().reshape(-1, L)
        order = np.lexsort((images, -distance if farthest else distance))[:, :k]
        index_QK[start : start + len(images)] = np.take_along_axis(images, order, axis=1)
        distance_QK[start : start + len(images)] = np.take_along_axis(distance, order, axis=1)
    return index_QK, distance_QK


def _contiguous(rows: Tensor) -> NDArray[np.float32]:
    return cast(NDArray[np.float32], np.ascontiguousarray(rows.numpy()))


def _faiss() -> Any:
    try:
        return import_module("faiss")
    except ImportError:
        raise UserError("FAISS is not installed: pip install 'maskreid-dist[faiss]'") from None
