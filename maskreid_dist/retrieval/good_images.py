"""Good images of a block of queries: their exact distances, and their order among themselves.

Shapes: B queries of the block, R the largest number of good images of a query, P pairs of a query and a good
image, N of those of one identity.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maskreid_dist.retrieval.distance import Metric, block_distances, pair_distances
from maskreid_dist.retrieval.inputs import ImageSet
from maskreid_dist.retrieval.pairs import BlockPairs, IntArray

_MANY_GOOD = 256  # good images of a query from which on its identity's distances are computed as a block
_CHUNK_COLUMNS = 4096  # of such a block


@dataclass(frozen=True, eq=False)
class GoodImages:
    """Good images per query in list order: distance_BR (float64, padded with inf),
    index_BR (global, int64), number_B."""

    distance_BR: NDArray[np.float64]
    index_BR: IntArray
    number_B: IntArray


def local_good_distances(
    query: ImageSet, gallery: ImageSet, first: int, pairs: BlockPairs, metric: Metric
) -> Tensor:
    """Exact distance of every good pair whose image is in this rank's gallery, which starts at global index
    `first`; 0 for the others: (P,) float64, on the CPU."""
    column_P = pairs.good_index - first
    here_P = (column_P >= 0) & (column_P < len(gallery))
    distance_P = torch.zeros(len(column_P), dtype=torch.float64)
    single_P = here_P.copy()
    many = np.bincount(pairs.good_row, minlength=len(query)) >= _MANY_GOOD
    for pid in np.unique(query.pids[many]):
        chosen = np.flatnonzero(here_P & (query.pids == pid)[pairs.good_row])
        distance_P[torch.from_numpy(chosen)] = _identity_distances(
            query, gallery, pairs.good_row[chosen], column_P[chosen], metric
        )
        single_P[chosen] = False
    rows = torch.from_numpy(pairs.good_row[single_P]).to(query.features.device)
    columns = torch.from_numpy(column_P[single_P]).to(gallery.features.device)
    q, g = (query.features, query.norms), (gallery.features, gallery.norms)
    distance_P[torch.from_numpy(single_P)] = pair_distances(*q, rows, *g, columns, metric).cpu()
    return distance_P


def _identity_distances(
    query: ImageSet, gallery: ImageSet, row_N: IntArray, column_N: IntArray, metric: Metric
) -> Tensor:
    """Exact distances of pairs of one identity, which share most rows and columns: (N,) on the CPU."""
    rows, at_row = np.unique(row_N, return_inverse=True)
    columns, at_column = np.unique(column_N, return_inverse=True)
    rows_b = torch.from_numpy(rows).to(query.features.device)
    columns_t = torch.from_numpy(columns).to(gallery.features.device)
    found = torch.empty(len(row_N), dtype=torch.float64)
    q = (query.features[rows_b], query.norms[rows_b])
    for start in range(0, len(columns), _CHUNK_COLUMNS):
        part = columns_t[start : start + _CHUNK_COLUMNS]
        block = block_distances(*q, gallery.features[part], gallery.norms[part], metric).cpu()
        inside = np.flatnonzero((at_column >= start) & (at_column < start + len(part)))
        at = (torch.from_numpy(at_row[inside]), torch.from_numpy(at_column[inside] - start))
        found[torch.from_numpy(inside)] = block[at]
    return found


def order_good_images(pairs: BlockPairs, distance_P: Tensor, rows: int) -> GoodImages:
    """Sort each query's good images by (distance, gallery index) and lay them out as padded rows.

    They come in rows, by ascending gallery index, so a stable sort keeps the order of ties.
    """
    number_B = np.bincount(pairs.good_row, minlength=rows)
    distance_BR = np.full((rows, int(number_B.max(initial=0))), np.inf)
    index_BR = np.zeros(distance_BR.shape, dtype=np.int64)
    ends = np.cumsum(number_B)
    for b, (start, end) in enumerate(zip(ends - number_B, ends, strict=True)):
        distance = distance_P[start:end].numpy()
        order = distance.argsort(kind="stable")
        distance_BR[b, : end - start] = distance[order]
        index_BR[b, : end - start] = pairs.good_index[start:end][order]
    return GoodImages(distance_BR, index_BR, number_B)
