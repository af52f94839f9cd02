"""k-reciprocal re-ranking (Zhong et al., CVPR 2017, arXiv 1701.08398) in sparse form.

Shapes: N = Q + G images, queries first; K neighbours of an image, itself included; M entries of a sparse
matrix. The definition needs N x N distances; all but the last step need only each image's K1 + 1 nearest
images and the distances within the sets made of them, so that is all that is kept: O(N k1^2) at most, mostly
a few dozen entries a row. What is left of N x N is a block of queries at a time.

    R(i)   the images among the k1 + 1 nearest of i that have i among theirs; each c of them adds its own such
           set at k1 / 2 where more than two thirds of it lie in R(i)
    V_i    exp(-d(i, j)) on R(i), summing to 1; then the mean of V over the k2 nearest images of i
    J      1 - sum_j min(V_i, V_j) / sum_j max(V_i, V_j)
    final  (1 - weight) J + weight d
    d      the distance divided by the largest of its row

The paper's d is the squared Euclidean distance. The public Python ports square their input once more, and
Torchreid's default hands them squared distances: power = "fourth".

Over ranks every rank holds all images; each finds the neighbours, the sets and the means of its share of them
and the final distances of its share of the queries. What is found is sent to all: integers and float64, whole
chunks and blocks of one process, so that every number is computed as that process would.
"""

from collections.abc import Iterator
from typing import Literal, cast

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from maskreid_dist.errors import RetrievalError
from maskreid_dist.retrieval.distance import Metric, pair_distances
from maskreid_dist.retrieval.evaluate import check_options, score, why_no_query_is_valid
from maskreid_dist.retrieval.faiss_lists import check_index
from maskreid_dist.retrieval.group import gather_all, own_run, share_labels, whole_gallery
from maskreid_dist.retrieval.inputs import Features, Ids, ImageSet, both_sides, part, unlabelled
from maskreid_dist.retrieval.nearest import nearest_and_largest
from maskreid_dist.retrieval.pairs import JUNK_PID, GalleryIndex, IntArray, block_pairs
from maskreid_dist.retrieval.reranking_device import good_ranks, stays_on_device
from maskreid_dist.retrieval.reranking_options import ReRanking
from maskreid_dist.retrieval.result import RetrievalResult
from maskreid_dist.retrieval.sparse import Rows, gathered, mean_of_rows, shared_mass, transposed
from maskreid_kernels.options import check_group

_CHUNK = 512  # images whose sets are made at once
_BLOCK = 64  # queries whose final distances are held at once


def reranked_blocks(
    query: ImageSet,
    gallery: ImageSet,
    options: ReRanking,
    metric: Metric,
    block: int,
    group: dist.ProcessGroup | None = None,
) -> Iterator[NDArray[np.float64]]:
    """Final distances of the queries to the gallery, `block` queries at a time: (B, G) float64.

    A gallery smaller than k1 or k2 has fewer neighbours. Products are float64: equal up to its rounding. The
    array may be overwritten; the next block overwrites it. group: every rank gives all images, and gets the
    distances of its share of the queries, `own_run(Q, block, group)`. All ranks of the group take part.
    """
    images = unlabelled(query, gallery)
    own = own_run(len(images), _CHUNK, group)
    wanted = min(max(options.k1 + 1, options.k2), len(images))
    found = nearest_and_largest(part(images, own.start, own.stop), images, wanted, metric, options.index)
    index_NK, distance_N = (gather_all(torch.from_numpy(part), group).numpy() for part in found)
    largest_N = _powered(distance_N, options)
    largest_N[largest_N == 0] = 1.0  # all images are copies of one
    encoded = gathered(_encode(images, own, index_NK[:, : options.k1 + 1], largest_N, options, metric), group)
    if options.k2 > 1:
        encoded = gathered(mean_of_rows(encoded, index_NK[own, : options.k2]), group)
    Q = len(query)
    by_column = transposed(encoded.from_row(Q))
    g_GD, g_G = _operand(gallery, metric)
    mine = own_run(Q, block, group)
    # The same memory for every block: glibc's heap would break up, and hold twice as much in the end.
    buffers = np.empty((3, min(block, Q), len(gallery)))
    for start in range(mine.start, mine.stop, block):
        stop = min(start + block, Q)
        d_BG, shared_BG, union_BG = buffers[:, : stop - start]
        shared_mass(encoded, start, stop, by_column, shared_BG)
        _distances(_operand(part(query, start, stop), metric), (g_GD, g_G), metric, d_BG)
        if options.power == "fourth":
            np.square(d_BG, out=d_BG)
        d_BG *= options.weight / largest_N[start:stop, None]
        np.subtract(2.0, shared_BG, out=union_BG)
        shared_BG /= union_BG
        shared_BG *= 1.0 - options.weight
        d_BG -= shared_BG
        d_BG += 1.0 - options.weight
        yield d_BG


def _encode(
    images: ImageSet,
    own: slice,
    index_NK: IntArray,
    largest_N: NDArray[np.float64],
    options: ReRanking,
    metric: Metric,
) -> Rows:
    """V of the images `own` before the mean: row i sums to 1 over i's expanded reciprocal set."""
    half_NH = index_NK[:, : round(options.k1 / 2) + 1]
    mutual_NK, mutual_NH = _mutual(index_NK), _mutual(half_NH)
    parts = []
    for start in range(own.start, own.stop, _CHUNK):
        rows = np.arange(start, min(start + _CHUNK, own.stop))
        row_M, column_M = _expanded(rows, index_NK, mutual_NK, half_NH, mutual_NH)
        d_M = _powered(_pairs(images, row_M, column_M, metric), options) / largest_N[row_M]
        weight_M = np.exp(-d_M)
        sum_C = np.bincount(row_M - start, weights=weight_M, minlength=len(rows))
        counts = np.bincount(row_M - start, minlength=len(rows))
        parts.append((counts, column_M.astype(np.int32), weight_M / sum_C[row_M - start]))
    return Rows.join(parts, len(images))


def _mutual(index_NK: IntArray) -> NDArray[np.bool_]:
    """Whether i is among the K neighbours of its own k-th: (N, K)."""
    parts = []
    for start in range(0, len(index_NK), _CHUNK):
        mine = np.arange(start, min(start + _CHUNK, len(index_NK)))
        parts.append((index_NK[index_NK[mine]] == mine[:, None, None]).any(axis=2))
    return np.concatenate(parts)


def _expanded(
    rows: IntArray,
    index_NK: IntArray,
    mutual_NK: NDArray[np.bool_],
    half_NH: IntArray,
    mutual_NH: NDArray[np.bool_],
) -> tuple[IntArray, IntArray]:
    """The expanded sets of `rows` as pairs (row, member), sorted, each once."""
    N = len(index_NK)
    set_CK = np.where(mutual_NK[rows], index_NK[rows], -1)  # R(i), -1: not in it
    candidate_CK = np.maximum(set_CK, 0)
    member_CKH = np.where(mutual_NH[candidate_CK], half_NH[candidate_CK], -2)
    member_CKH[set_CK < 0] = -2
    inside_CKH = np.zeros(member_CKH.shape, bool)
    for k in range(set_CK.shape[1]):
        inside_CKH |= member_CKH == set_CK[:, k, None, None]
    sizes_CK = (member_CKH >= 0).sum(axis=2)
    taken_CK = 3 * inside_CKH.sum(axis=2) > 2 * sizes_CK
    member_CKH[~taken_CK] = -2
    members = np.concatenate([set_CK, member_CKH.reshape(len(rows), -1)], axis=1)
    keys = np.unique((rows[:, None] * N + members)[members >= 0])
    return keys // N, keys % N


def _pairs(images: ImageSet, row_M: IntArray, column_M: IntArray, metric: Metric) -> NDArray[np.float64]:
    device = images.features.device
    rows, columns = torch.from_numpy(row_M).to(device), torch.from_numpy(column_M).to(device)
    sides = images.features, images.norms
    return pair_distances(*sides, rows, *sides, columns, metric).cpu().numpy()


def _powered(squared: NDArray[np.float64], options: ReRanking) -> NDArray[np.float64]:
    return np.square(squared) if options.power == "fourth" else squared


def _operand(images: ImageSet, metric: Metric) -> tuple[Tensor, Tensor]:
    rows = images.features.double()
    if metric == "cosine":
        rows = rows / images.norms.clamp_min(1e-12)[:, None]
    return rows, images.norms.square()


def _distances(
    q: tuple[Tensor, Tensor], g: tuple[Tensor, Tensor], metric: Metric, out_BG: NDArray[np.float64]
) -> None:
    """Of rows and their squared norms, into `out_BG`; Euclidean squared."""
    d_BG = torch.from_numpy(out_BG)
    if q[0].device.type == "cpu":
        torch.mm(q[0], g[0].T, out=d_BG)
    else:
        d_BG.copy_(q[0] @ g[0].T)
    if metric == "cosine":
        d_BG.neg_().add_(1.0)
    else:
        d_BG.mul_(-2.0).add_(q[1].cpu()[:, None]).add_(g[1].cpu()).clamp_min_(0.0)


def evaluate_reranked(
    query: Features,
    query_pids: Ids,
    query_camids: Ids,
    gallery: Features,
    gallery_pids: Ids,
    gallery_camids: Ids,
    options: ReRanking = ReRanking(),  # noqa: B008  # frozen
    *,
    metric: Literal["cosine", "euclidean"] = "cosine",
    ap: Literal["hits", "trapezoid"] = "hits",
    group: dist.ProcessGroup | None = None,
    max_rank: int = 50,
) -> RetrievalResult:
    """As `evaluate_retrieval`, with the lists of re-ranking; over a group too, but every rank then holds the
    whole gallery while it works. Ties are ordered by gallery index.

    Junk takes part in the neighbourhoods, as in the public code, and leaves the lists. Of queries on
    a GPU all is done there (`reranking_device.py`, which says how far its distances may be from these), but
    over a group, or with lists by FAISS, products and exact distances alone.
    """
    check_group(group)
    check_index(options.index)
    query_set = gallery_set = problem = None
    try:
        check_options(ap, max_rank)
        sides = query, query_pids, query_camids, gallery, gallery_pids, gallery_camids
        query_set, gallery_set = both_sides(*sides, metric=metric)
        if not len(query_set):
            raise ValueError("re-ranking needs a query and a gallery image")
    except ValueError as error:
        problem = str(error)
    settings = {"metric": metric, "ap": ap, "max_rank": max_rank, "re-ranking": str(options)}
    settings |= {"gallery dtype": "" if gallery_set is None else str(gallery_set.features.dtype)}
    labels = share_labels(query_set, gallery_set, problem, settings, group)
    query_set, gallery_set = cast(ImageSet, query_set), cast(ImageSet, gallery_set)
    gallery_set = whole_gallery(gallery_set, labels, group)
    if not len(gallery_set):
        raise ValueError("re-ranking needs a query and a gallery image")
    if stays_on_device(query_set, options, group):
        gallery_set = part(gallery_set, 0, len(gallery_set), query_set.features.device)
        ranks_Q, listed_Q = good_ranks(query_set, gallery_set, labels.gallery, options, metric)
        if not any(map(len, ranks_Q)):
            raise RetrievalError(why_no_query_is_valid(query_set, labels.gallery))
        return score(ranks_Q, listed_Q, ap, max_rank, len(gallery_set))
    rows = list(_ranked(query_set, gallery_set, labels.gallery, options, metric, group))
    numbers, listed = (np.array([row[n] for row in rows], np.int64) for n in (1, 2))
    ranks = np.concatenate([np.zeros(0, np.int64), *(row[0] for row in rows)])
    ranks, numbers, listed = (
        gather_all(torch.from_numpy(own), group).numpy() for own in (ranks, numbers, listed)
    )
    if not len(ranks):
        raise RetrievalError(why_no_query_is_valid(query_set, labels.gallery))
    return score(np.split(ranks, np.cumsum(numbers)[:-1]), listed, ap, max_rank, len(gallery_set))


def _ranked(
    query: ImageSet,
    gallery: ImageSet,
    labels: GalleryIndex,
    options: ReRanking,
    metric: Metric,
    group: dist.ProcessGroup | None,
) -> Iterator[tuple[IntArray, int, int]]:
    """Of each of this rank's queries: the ranks of its good images, their number, the length of its list."""
    unlisted = np.flatnonzero(gallery.pids == JUNK_PID)
    start = own_run(len(query), _BLOCK, group).start
    for final_BG in reranked_blocks(query, gallery, options, metric, _BLOCK, group):
        mine = part(query, start, start + len(final_BG))
        start += len(final_BG)
        pairs = block_pairs(mine.pids, mine.camids, labels)
        final_BG[:, unlisted] = np.inf
        final_BG[pairs.junk_row, pairs.junk_index] = np.inf
        good = np.split(pairs.good_index, np.searchsorted(pairs.good_row, np.arange(1, len(mine))))
        for row, own, listed in zip(final_BG, good, pairs.listed_B.tolist(), strict=True):
            yield _ranks_of(row, own), len(own), listed


def _ranks_of(distance_G: NDArray[np.float64], index_R: IntArray) -> IntArray:
    """Ascending ranks of the images index_R by (distance, index)."""
    sorted_G = np.sort(distance_G)
    distance_R = distance_G[index_R]
    first_R = sorted_G.searchsorted(distance_R)
    tied = sorted_G.searchsorted(distance_R, side="right") - first_R > 1
    for r in np.flatnonzero(tied):
        first_R[r] += np.count_nonzero(distance_G[: index_R[r]] == distance_R[r])
    return np.sort(first_R) + 1
