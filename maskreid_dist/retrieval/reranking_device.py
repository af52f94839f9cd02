"""k-reciprocal re-ranking in torch operations on the device of the features: a GPU, or in tests a CPU.

Shapes: as in `reranking.py`, which has the definition; C images whose sets are made at once, E of their
entries, B queries whose final distances are held at once, R good images of a query at most.

Neighbours, largest distances and sets are those of `reranking.py`, bit for bit. V is kept as integers, in
units of 2^-F, and the shared mass is summed in them: additions of integers have no order, so every run has
the same bits, and no sum overflows since a row of V sums to 1. F is 59 at k2 = 6: finer than float64's sums.

The error. A final distance differs from the definition by at most 1e-12 for rows of V of up to 4,000 entries
(each is wrong by a few 2^-53 of itself and 2^-F), plus weight times what a float64 product may be wrong by
(`distance.py`) over the row's largest distance, twice that for "fourth": at most 3e-14 / largest for cosine
and D = 256. Where that is all a row's distances are, they count as 0. Images are ordered by (final distance
rounded to 2^-(62 - b), gallery index), b the bits of a gallery index: 3e-14 at 82,161 images. So images that
lie farther apart than these are ordered as by the definition, and copies by index.

At MSMT17's size (11,659 + 82,161 images of 256, V of some 70 entries a row), beside `nearest_device.py`:

    sets        24 million members sorted in rows of 252 and compared with 21: some 20 GB
    V           2 to 3 million exact pairs: some 10 GB
    mean        some 15 million entries, sorted by (row, column): some 5 GB
    shared      some 10^8 minima, 200 bytes each of them and 64 of its atomic addition: 30 GB
    final       0.5 TFLOP of float64 products; 10^9 distances, some 15 passes of 16 bytes: 250 GB
    ranks       one binary search among R and one atomic addition a distance: 40 GB

in all some 0.4 TB, 0.12 s at 3.3 TB/s, and some 15,000 launches. The host waits some 60 times, for the sizes
of sets and means. `average_precisions` of the ranks takes it 0.4 s more.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from maskreid_dist.retrieval.distance import (
    DOUBLE,
    Metric,
    pair_distances,
    place_bound,
    place_line,
    safe_norms,
    tile_scale,
)
from maskreid_dist.retrieval.inputs import ImageSet, part, unlabelled
from maskreid_dist.retrieval.nearest_device import nearest_and_largest_on_device
from maskreid_dist.retrieval.pairs import JUNK_PID, GalleryIndex, IntArray, block_pairs
from maskreid_dist.retrieval.reranking_options import ReRanking
from maskreid_dist.retrieval.sparse import runs

_MEMBERS = 1 << 22  # of the sets that are made at once
_ENTRIES = 1 << 21  # of sparse rows that are handled at once: some 200 MB
_FINAL = 1 << 23  # final distances held at once: 64 MiB an array
_APART = 256  # counters that images behind the last good one are spread over


@dataclass(frozen=True, eq=False)
class _Rows:
    """Compressed rows: row i has the entries start_N[i] to start_N[i] + count_N[i] - 1 of column_M and
    value_M, all int64."""

    count_N: Tensor
    column_M: Tensor
    value_M: Tensor
    columns: int

    @property
    def start_N(self) -> Tensor:
        return self.count_N.cumsum(0) - self.count_N

    def entries(self, row_I: Tensor, total: int) -> tuple[Tensor, Tensor]:
        """Of each of the rows asked for, its entries' numbers, `total` in all; which of the I each is of."""
        count_I = self.count_N[row_I]
        number_I = torch.arange(len(row_I), device=row_I.device)
        of_E = number_I.repeat_interleave(count_I, output_size=total)
        first_I = self.start_N[row_I] - (count_I.cumsum(0) - count_I)
        return first_I[of_E] + torch.arange(total, device=row_I.device), of_E


def stays_on_device(query: ImageSet, options: ReRanking, group: dist.ProcessGroup | None) -> bool:
    """Whether `evaluate_reranked` works here: queries on a GPU, our own lists, one process."""
    alone = group is None or dist.get_world_size(group) == 1
    return alone and options.index == "exact" and query.features.is_cuda


def good_ranks(
    query: ImageSet, gallery: ImageSet, labels: GalleryIndex, options: ReRanking, metric: Metric
) -> tuple[list[IntArray], IntArray]:
    """Of every query: the ascending ranks of its good images in its re-ranked list, and that list's length.

    Both sides on one device; options.index is "exact". Memory beyond the features: at MSMT17's size less
    than 2 GB; O(N k1^2), and blocks of fixed size.
    """
    pairs = block_pairs(query.pids, query.camids, labels)
    number_Q = np.bincount(pairs.good_row, minlength=len(query))
    within = np.arange(len(pairs.good_row)) - np.repeat(np.cumsum(number_Q) - number_Q, number_Q)
    good_QR = np.full((len(query), max(1, int(number_Q.max(initial=0)))), -1)
    good_QR[pairs.good_row, within] = pairs.good_index
    device = query.features.device
    good = torch.from_numpy(good_QR).to(device)
    unlisted = torch.from_numpy(np.flatnonzero(gallery.pids == JUNK_PID)).to(device)
    junk_row, junk_index = (torch.from_numpy(x).to(device) for x in (pairs.junk_row, pairs.junk_index))
    parts = []
    for start, key_BG in _keys(query, gallery, options, metric):
        own = slice(start, start + len(key_BG))
        first, last = np.searchsorted(pairs.junk_row, [own.start, own.stop]).tolist()
        behind = torch.iinfo(key_BG.dtype).max
        key_BG.index_fill_(1, unlisted, behind)
        key_BG[junk_row[first:last] - start, junk_index[first:last]] = behind
        parts.append(_ranks(key_BG, good[own]))
    rank_QR = torch.cat(parts).cpu().numpy()
    return [row[:number] for row, number in zip(rank_QR, number_Q, strict=True)], pairs.listed_B


def _ranks(key_BG: Tensor, good_BR: Tensor) -> Tensor:
    """1-based ranks, ascending, of the columns good_BR (-1: none) by their keys, of which no listed two are
    equal; (B, R) int64. Only a row's first, as many as it has, mean anything."""
    B, R = good_BR.shape
    none_BR = good_BR < 0
    good_key_BR = key_BG.gather(1, good_BR.clamp_min(0))
    good_key_BR = good_key_BR.masked_fill(none_BR, torch.iinfo(key_BG.dtype).max).sort(dim=1).values
    at_BG = torch.searchsorted(good_key_BR, key_BG, right=True)  # good images at or before each
    # Most lie behind all good images. Their count is not needed, and one counter would be a queue.
    counter_G = R + torch.arange(key_BG.shape[1], device=key_BG.device) % _APART
    at_BG = torch.where(at_BG < (~none_BR).sum(1, keepdim=True), at_BG, counter_G)
    count = torch.zeros(B, R + _APART, dtype=torch.int64, device=key_BG.device)
    count.scatter_add_(1, at_BG, torch.ones_like(count[:, :1]).expand_as(at_BG))
    return count[:, :R].cumsum(1) + 1


def _keys(
    query: ImageSet, gallery: ImageSet, options: ReRanking, metric: Metric
) -> Iterator[tuple[int, Tensor]]:
    """Blocks of queries, each by its first and its keys: (B, G) int64, the final distance and, in the last
    bits, the gallery index."""
    bits = max(1, (len(gallery) - 1).bit_length())
    column_G = torch.arange(len(gallery), device=query.features.device)
    for start, final_BG in final_blocks(query, gallery, options, metric):
        key_BG = final_BG.mul_(2.0 ** (62 - bits)).round_().long()
        yield start, key_BG.bitwise_left_shift_(bits).add_(column_G)


def final_blocks(
    query: ImageSet, gallery: ImageSet, options: ReRanking, metric: Metric
) -> Iterator[tuple[int, Tensor]]:
    """Blocks of queries, each by its first and its final distances to the gallery: (B, G) float64."""
    images = unlabelled(query, gallery)
    wanted = min(max(options.k1 + 1, options.k2), len(images))
    index_NK, largest_N = nearest_and_largest_on_device(images, wanted, metric)
    scale_N = _scales(images, largest_N, options, metric)
    largest_N = _powered(largest_N, options)
    largest_N[largest_N == 0] = 1.0  # all images are copies of one
    # In these units k2 rows of V together stay below 2^62.
    unit = 2.0 ** -min(60, 62 - options.k2.bit_length())
    rows = _encode(images, index_NK[:, : options.k1 + 1], largest_N, options, metric, unit)
    if options.k2 > 1:
        rows = _mean_of_rows(rows, index_NK[:, : options.k2])
    del images, index_NK
    step = max(1, min(_FINAL // len(gallery), len(query)))
    gallery_rows = _operand(gallery, metric)
    for start, shared_BG in _shared_mass(rows, len(query), step):
        own = part(query, start, start + len(shared_BG))
        final_BG = _powered(_distances(_operand(own, metric), gallery_rows, metric), options)
        final_BG.mul_(scale_N[start : start + len(shared_BG), None]).clamp_max_(1.0).mul_(options.weight)
        mass_BG = shared_BG.double().mul_(unit)
        mass_BG.div_(2.0 - mass_BG).neg_().add_(1.0)
        yield start, final_BG.add_(mass_BG, alpha=1.0 - options.weight)


def _scales(images: ImageSet, largest_N: Tensor, options: ReRanking, metric: Metric) -> Tensor:
    """What a row's distances by a product are multiplied by: one over the largest, 0 where all are noise."""
    line = place_line(images.norms, metric, tile_scale(images.norms, images.norms, metric))
    noise_N = line[1] * place_bound(images.features.shape[1], DOUBLE)
    return torch.where(largest_N > noise_N, 1.0 / _powered(largest_N, options), 0.0)


def _encode(
    images: ImageSet, index_NK: Tensor, largest_N: Tensor, options: ReRanking, metric: Metric, unit: float
) -> _Rows:
    """V before the mean, in units: row i sums to 1 over i's expanded reciprocal set."""
    N, K = index_NK.shape
    half_NH = index_NK[:, : round(options.k1 / 2) + 1]
    step = max(1, _MEMBERS // (K * (K + half_NH.shape[1])))
    mutual_NK, mutual_NH = _mutual(index_NK, step), _mutual(half_NH, step)
    counts, columns, values = [], [], []
    sides = images.features, images.norms
    for start in range(0, N, step):
        own = slice(start, start + step)
        member_CM = _expanded(own, index_NK, mutual_NK, half_NH, mutual_NH)
        c, m = (member_CM >= 0).nonzero(as_tuple=True)
        column_M = member_CM[c, m]
        d_M = _powered(pair_distances(*sides, c + start, *sides, column_M, metric), options)
        weight_CM = torch.zeros(member_CM.shape, dtype=torch.float64, device=member_CM.device)
        weight_CM[c, m] = torch.exp(-d_M / largest_N[c + start])
        weight_CM /= weight_CM.sum(1, keepdim=True)  # a row without members: nan, of which nothing is taken
        counts.append((member_CM >= 0).sum(1))
        columns.append(column_M)
        values.append(weight_CM[c, m].div_(unit).round_().long())
    return _Rows(torch.cat(counts), torch.cat(columns), torch.cat(values), N)


def _mutual(index_NK: Tensor, step: int) -> Tensor:
    """Whether i is among the K neighbours of its own k-th: (N, K) bool."""
    number_N = torch.arange(len(index_NK), device=index_NK.device)
    chunks = zip(index_NK.split(step), number_N.split(step), strict=True)
    return torch.cat([(index_NK[mine] == own[:, None, None]).any(2) for mine, own in chunks])


def _expanded(own: slice, index_NK: Tensor, mutual_NK: Tensor, half_NH: Tensor, mutual_NH: Tensor) -> Tensor:
    """The expanded sets of the images `own`: (C, M) int64, ascending, each member once; the rest is -1."""
    set_CK = torch.where(mutual_NK[own], index_NK[own], -1)  # R(i), -1: not in it
    candidate_CK = set_CK.clamp_min(0)
    taken_CKH = mutual_NH[candidate_CK] & (set_CK >= 0)[:, :, None]
    member_CKH = torch.where(taken_CKH, half_NH[candidate_CK], -2)
    inside_CKH = torch.zeros_like(taken_CKH)
    for set_C in set_CK.unbind(1):
        inside_CKH |= member_CKH == set_C[:, None, None]
    grown_CK = 3 * inside_CKH.sum(2) > 2 * taken_CKH.sum(2)
    member_CKH = torch.where(grown_CK[:, :, None], member_CKH, -1)
    member_CM = torch.cat([set_CK, member_CKH.clamp_min(-1).flatten(1)], dim=1).sort(dim=1).values
    again_CM = member_CM[:, 1:] == member_CM[:, :-1]
    member_CM[:, 1:][again_CM] = -1
    return member_CM


def _mean_of_rows(rows: _Rows, index_NK: Tensor) -> _Rows:
    """Row i is the mean of the rows index_NK[i], rounded down to a unit."""
    K = index_NK.shape[1]
    counts, columns, values = [], [], []
    size_N = rows.count_N[index_NK].sum(1).cpu().numpy()
    for first, last in runs(size_N, _ENTRIES):
        entry_E, of_E = rows.entries(index_NK[first:last].flatten(), int(size_N[first:last].sum()))
        key_E = (of_E // K) * rows.columns + rows.column_M[entry_E]
        key_M, place_E = key_E.unique(return_inverse=True)
        sum_M = torch.zeros_like(key_M).scatter_add_(0, place_E, rows.value_M[entry_E])
        counts.append(torch.bincount(key_M // rows.columns, minlength=last - first))
        columns.append(key_M % rows.columns)
        values.append(sum_M // K)
    return _Rows(torch.cat(counts), torch.cat(columns), torch.cat(values), rows.columns)


def _shared_mass(rows: _Rows, Q: int, step: int) -> Iterator[tuple[int, Tensor]]:
    """sum_c min(V[i, c], V[j, c]) of `step` queries i at a time and all gallery images j, in units: (B, G)
    int64. The next block overwrites it."""
    device = rows.count_N.device
    split = int(rows.count_N[:Q].sum())
    by_column = _transposed(
        _Rows(rows.count_N[Q:], rows.column_M[split:], rows.value_M[split:], rows.columns)
    )
    column_M, value_M = rows.column_M[:split], rows.value_M[:split]
    row_M = torch.arange(Q, device=device).repeat_interleave(rows.count_N[:Q], output_size=split)
    size_M = by_column.count_N[column_M].cpu().numpy()
    stop_Q = rows.count_N[:Q].cumsum(0).cpu().numpy()
    G = by_column.columns
    buffer = torch.empty(min(step, Q), G, dtype=torch.int64, device=device)
    for start in range(0, Q, step):
        stop = min(start + step, Q)
        shared_BG = buffer[: stop - start].zero_()
        low, high = int(stop_Q[start - 1]) if start else 0, int(stop_Q[stop - 1])
        for first, last in runs(size_M[low:high], _ENTRIES):
            mine = slice(low + first, low + last)
            entry_E, of_E = by_column.entries(column_M[mine], int(size_M[mine].sum()))
            least_E = torch.minimum(value_M[mine][of_E], by_column.value_M[entry_E])
            at_E = ((row_M[mine] - start) * G)[of_E] + by_column.column_M[entry_E]
            shared_BG.view(-1).scatter_add_(0, at_E, least_E)
        yield start, shared_BG


def _transposed(rows: _Rows) -> _Rows:
    """Its columns as rows, their entries in ascending order."""
    order_M = rows.column_M.argsort(stable=True)
    number_N = torch.arange(len(rows.count_N), device=order_M.device)
    row_M = number_N.repeat_interleave(rows.count_N, output_size=len(order_M))
    count = torch.bincount(rows.column_M, minlength=rows.columns)
    return _Rows(count, row_M[order_M], rows.value_M[order_M], len(number_N))


def _operand(images: ImageSet, metric: Metric) -> tuple[Tensor, Tensor]:
    rows = images.features.double()
    return rows / safe_norms(images.norms)[:, None] if metric == "cosine" else rows, images.norms.square()


def _distances(q: tuple[Tensor, Tensor], g: tuple[Tensor, Tensor], metric: Metric) -> Tensor:
    """Of rows and their squared norms: (B, G) float64, Euclidean squared."""
    product_BG = q[0] @ g[0].T
    if metric == "cosine":
        return product_BG.neg_().add_(1.0)
    return product_BG.mul_(-2.0).add_(q[1][:, None]).add_(g[1]).clamp_min_(0.0)


def _powered(squared: Tensor, options: ReRanking) -> Tensor:
    return squared.square() if options.power == "fourth" else squared
