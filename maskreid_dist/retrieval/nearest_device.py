"""Each image's nearest images and its largest distance, among all images, without leaving their device.

Shapes: N images, B of them whose products with all are held at once, P = N up to whole segments, S segments,
L candidates of an image, K images of a list, D dimensions.

What `nearest.nearest_and_largest` finds, by operations that a GPU does on many rows at once. A float64
product puts every pair at a place with a proven bound (`distance.py`). The L least places of a row lie within
the L segments of the least minima, so two small selections take the place of one over N. The candidates'
exact distances put them in order. A list is proven where its last image lies before the last candidate's
place by more than the bound: whatever is no candidate is then farther. The few lists that are not (many near
copies) are made by `nearest.py`. So the result has the same bits as there.

For MSMT17 (N = 93,820, D = 256): 4.5 TFLOP of float64 products, which an H100's tensor cores do as fast as
float32 ones outside of them (67 TFLOP/s at best: 0.07 s); the product is written once and read three times,
0.28 TB (0.09 s at 3.3 TB/s); candidates 3.4 million pairs, some 10 GB. No step waits for the GPU but the
count of unproven lists.
"""

import torch
from torch import Tensor

from maskreid_dist.retrieval.distance import (
    DOUBLE,
    Metric,
    gallery_operand,
    pair_distances,
    place_bound,
    places,
    query_operand,
    tile_scale,
)
from maskreid_dist.retrieval.inputs import ImageSet, chosen, part
from maskreid_dist.retrieval.nearest import nearest_and_largest

_PRODUCT_ELEMENTS = 1 << 26  # held at once: 512 MiB of float64
_SEGMENT = 64
_SPARE = 11  # candidates beyond k
_FARTHEST = 4  # candidates for the largest distance


def nearest_and_largest_on_device(images: ImageSet, k: int, metric: Metric) -> tuple[Tensor, Tensor]:
    """Of every image among all: its k nearest, itself included, by (distance, index), (N, K) int64 with
    K = min(k, N); the largest distance to any, exactly, (N,) float64, Euclidean squared. On the images'
    device, at most some 900 MB beyond them at N = 100,000."""
    N = len(images)
    k = min(k, N)
    near_NL, far_NL, near_last_N, far_last_N = _candidates(images, k + _SPARE, metric)
    scale = tile_scale(images.norms, images.norms, metric)
    bound = place_bound(images.features.shape[1], DOUBLE)
    index_NL, distance_NL = _ordered(images, near_NL, metric)
    largest_N = _distances(images, far_NL, metric).amax(1)
    ends_N2 = torch.stack([distance_NL[:, k - 1], largest_N], dim=1)
    kth_N, farthest_N = places(ends_N2, images.norms, metric, scale).unbind(1)
    near_proven_N = near_last_N - kth_N > bound
    far_proven_N = farthest_N - far_last_N > bound
    if near_NL.shape[1] == N:
        near_proven_N[:] = True
    if far_NL.shape[1] == N:
        far_proven_N[:] = True
    index_NK = index_NL[:, :k].contiguous()
    open_I = (~(near_proven_N & far_proven_N)).nonzero().flatten()
    if len(open_I):
        index_IK, largest_I = nearest_and_largest(chosen(images, open_I.cpu().numpy()), images, k, metric)
        index_NK[open_I] = torch.from_numpy(index_IK).to(index_NK.device)
        largest_N[open_I] = torch.from_numpy(largest_I).to(largest_N.device)
    return index_NK, largest_N


def _candidates(images: ImageSet, wanted: int, metric: Metric) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The L nearest and the farthest by their products, in any order, (N, L) int64 each, and the places
    (N,) that nothing else lies before, or beyond."""
    N, device = len(images), images.features.device
    scale = tile_scale(images.norms, images.norms, metric)
    rows_NK = gallery_operand(images.features, images.norms, metric, scale, DOUBLE)
    width = -(-N // _SEGMENT) * _SEGMENT
    rows_PK = torch.cat([rows_NK, rows_NK.new_zeros(width - N, rows_NK.shape[1])])
    del rows_NK
    step = max(1, min(N, _PRODUCT_ELEMENTS // width))
    product_BP = rows_PK.new_empty(step, width)  # the same memory for every step
    near_NL = torch.empty(N, min(wanted, N), dtype=torch.int64, device=device)
    far_NL = torch.empty(N, min(_FARTHEST, N), dtype=torch.int64, device=device)
    near_last_N, far_last_N = rows_PK.new_empty(2, N)
    for start in range(0, N, step):
        tile = part(images, start, start + step)
        own = slice(start, start + len(tile))
        place_BP = product_BP[: len(tile)]
        operand_BK = query_operand(tile.features, tile.norms, metric, scale, DOUBLE)
        torch.mm(operand_BK, rows_PK.T, out=place_BP)
        place_BP[:, N:] = torch.inf
        near_NL[own], near_last_N[own] = _ends(place_BP, near_NL.shape[1], largest=False)
        place_BP[:, N:] = -torch.inf
        far_NL[own], far_last_N[own] = _ends(place_BP, far_NL.shape[1], largest=True)
    return near_NL, far_NL, near_last_N / DOUBLE.steps, far_last_N / DOUBLE.steps


def _ends(place_BP: Tensor, wanted: int, *, largest: bool) -> tuple[Tensor, Tensor]:
    """Columns of so many of each row's least (largest) values, in any order, and the last of those values.

    Among equal values any may be chosen; a list that this could change is not proven.
    """
    parts_BSW = place_BP.view(len(place_BP), -1, _SEGMENT)
    end_BS = parts_BSW.amax(2) if largest else parts_BSW.amin(2)
    most = min(wanted, end_BS.shape[1])
    segment_BM = end_BS.topk(most, dim=1, largest=largest, sorted=False).indices
    inside_BMW = parts_BSW.gather(1, segment_BM[:, :, None].expand(-1, -1, _SEGMENT))
    value_BL, at_BL = inside_BMW.flatten(1).topk(wanted, dim=1, largest=largest, sorted=False)
    column_BL = segment_BM.gather(1, at_BL // _SEGMENT) * _SEGMENT + at_BL % _SEGMENT
    return column_BL, value_BL.amin(1) if largest else value_BL.amax(1)


def _ordered(images: ImageSet, index_NL: Tensor, metric: Metric) -> tuple[Tensor, Tensor]:
    """The candidates by (exact distance, index), and their distances."""
    index_NL = index_NL.sort(dim=1).values
    distance_NL, order_NL = _distances(images, index_NL, metric).sort(dim=1, stable=True)
    return index_NL.gather(1, order_NL), distance_NL


def _distances(images: ImageSet, index_NL: Tensor, metric: Metric) -> Tensor:
    """Exact distances of every image and its candidates: (N, L) float64."""
    row_NL = torch.arange(len(index_NL), device=index_NL.device)[:, None].expand_as(index_NL)
    sides = images.features, images.norms
    return pair_distances(*sides, row_NL.flatten(), *sides, index_NL.flatten(), metric).view_as(index_NL)
