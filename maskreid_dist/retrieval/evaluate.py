"""evaluate_retrieval: exact CMC, mAP and mINP in memory O(tile), on one process or
with a gallery spread over ranks. Where whole lists are sorted (`whole_lists.py`), those of a block are held.
"""

import importlib.util
from typing import Literal, cast

import numpy as np
import torch
import torch.distributed as dist

from maskreid_dist.errors import RetrievalError
from maskreid_dist.retrieval.counting import BlockCounter
from maskreid_dist.retrieval.distance import Metric, precisions
from maskreid_dist.retrieval.fused_counting import FusedCounter, side_by_side
from maskreid_dist.retrieval.good_images import GoodImages, local_good_distances, order_good_images
from maskreid_dist.retrieval.group import GalleryLabels, share_labels, sum_over_ranks
from maskreid_dist.retrieval.inputs import Features, Ids, ImageSet, both_sides, part
from maskreid_dist.retrieval.pairs import BlockPairs, GalleryIndex, IntArray, block_pairs
from maskreid_dist.retrieval.result import AP_NAMES, ApName, RetrievalResult
from maskreid_dist.retrieval.scores import average_precisions, cmc_curve
from maskreid_dist.retrieval.tile import LARGEST_TILE, Tile
from maskreid_dist.retrieval.whole_lists import WholeLists, sorts_whole_lists
from maskreid_kernels.options import check_group

QUERY_BLOCK = 128
GALLERY_TILE = LARGEST_TILE  # a block's places in a tile: 4 MiB each as float32 and as int32


def evaluate_retrieval(
    query: Features,
    query_pids: Ids,
    query_camids: Ids,
    gallery: Features,
    gallery_pids: Ids,
    gallery_camids: Ids,
    *,
    metric: Literal["cosine", "euclidean"] = "cosine",
    ap: Literal["hits", "trapezoid"] = "hits",
    group: dist.ProcessGroup | None = None,
    max_rank: int = 50,
) -> RetrievalResult:
    """Rank the gallery for every query and score the lists (multi-gallery-shot CMC, mAP, mINP).

    query (Q, D), gallery (G, D): NumPy or torch, any floating dtype; the order is that
    of float64 distances, computed on the queries' device.
    *_pids, *_camids: (Q,) and (G,) integers. For a query of pid q and camera c, good are the gallery images
    of pid q from another camera; junk, of pid -1 or of pid q from camera c, leaves the list before ranks are
    counted; everything else is a negative, distractors (pid 0) included. Ties are ordered by gallery index.
    The curve has min(max_rank, G) ranks, G with junk.

    ap: "hits", (1/R) sum i/r_i (Torchreid, FastReID); "trapezoid", Market-1501's
    MATLAB code. Never mix them in a table.
    group: a process group. The gallery arguments are then this rank's rows (the global order is rank order; a
    rank may have none), the queries are the same on all ranks, and the result is, bit for bit, that of one
    process on every rank. All ranks of the group take part.

    Equals Torchreid's eval_market1501 bit for bit (CMC float32, AP float64) where no two distances
    are tied, in a gallery without pid -1.
    Raises RetrievalError when no query has a good image, ValueError for bad input; over a group the same line
    on every rank, also where the ranks' options or queries differ.
    """
    check_group(group)
    query_set = gallery_set = problem = None
    try:
        check_options(ap, max_rank)
        query_set, gallery_set = both_sides(
            query, query_pids, query_camids, gallery, gallery_pids, gallery_camids, metric=metric
        )
        if not len(query_set):
            raise ValueError("there is no query image")
    except ValueError as error:
        problem = str(error)
    options = {"metric": metric, "ap": ap, "max_rank": max_rank}
    labels = share_labels(query_set, gallery_set, problem, options, group)
    query_set, gallery_set = cast(ImageSet, query_set), cast(ImageSet, gallery_set)
    if not len(labels.gallery.pids):
        raise ValueError("there is no gallery image")
    ranks, listed_Q = _rank_good_images(query_set, gallery_set, labels, metric, group)
    if not any(map(len, ranks)):
        raise RetrievalError(why_no_query_is_valid(query_set, labels.gallery))
    return score(ranks, listed_Q, ap, max_rank, len(labels.gallery.pids))


def check_options(ap: object, max_rank: object) -> None:
    if ap not in AP_NAMES:
        raise ValueError(f"ap {ap!r} is unknown: choose one of {', '.join(AP_NAMES)}")
    if isinstance(max_rank, bool) or not isinstance(max_rank, int | np.integer) or max_rank < 1:
        raise ValueError(f"max_rank: expected an integer of at least 1, got {max_rank!r}")


def _rank_good_images(
    query: ImageSet, gallery: ImageSet, labels: GalleryLabels, metric: Metric, group: dist.ProcessGroup | None
) -> tuple[list[IntArray], IntArray]:
    """For every query the ascending ranks of its good images (empty: none) and the length of its list."""
    blocks = [part(query, start, start + QUERY_BLOCK) for start in range(0, len(query), QUERY_BLOCK)]
    pairs = [block_pairs(block.pids, block.camids, labels.gallery) for block in blocks]
    ranks: list[IntArray] = []
    counted = 0  # blocks
    alone = group is None or dist.get_world_size(group) == 1
    if alone and sorts_whole_lists(query, gallery, pairs):
        lists = WholeLists(query, gallery, metric, QUERY_BLOCK)
        for block, block_pair in zip(blocks, pairs, strict=True):
            found = lists.ranks(block, block_pair)
            if found is None:  # and the next block is like this one
                break
            ranks += found
            counted += 1
        del lists
    if counted < len(blocks):
        ranks += _count_before_good(query, blocks[counted:], pairs[counted:], gallery, labels, metric, group)
    return ranks, np.concatenate([block_pair.listed_B for block_pair in pairs])


def _count_before_good(
    query: ImageSet,
    blocks: list[ImageSet],
    pairs: list[BlockPairs],
    gallery: ImageSet,
    labels: GalleryLabels,
    metric: Metric,
    group: dist.ProcessGroup | None,
) -> list[IntArray]:
    """The ranks by counting what comes before each good image; blocks: of all queries, or on a CPU of some.

    Two all-reduces, of one number per good image each; all ranks hold the same
    labels, so all agree on their number.
    """
    device = query.features.device
    distances = [
        local_good_distances(block, gallery, labels.offset, block_pair, metric)
        for block, block_pair in zip(blocks, pairs, strict=True)
    ]
    sizes = [len(distance) for distance in distances]
    distances = list(sum_over_ranks(torch.cat(distances), group).split(sizes))
    good = [order_good_images(*args) for args in zip(pairs, distances, map(len, blocks), strict=True)]
    del distances
    counters = [BlockCounter(*args) for args in zip(blocks, pairs, good, strict=True)]
    fused = _fused(query, good, labels)
    step = GALLERY_TILE if fused is None else fused.step()
    for start in range(0, len(gallery), step):
        rows, first = part(gallery, start, start + step, device), labels.offset + start
        if fused is None or not fused.add(Tile.build(rows, first, query.norms, metric)):
            _count(counters, rows, first, query.norms, metric)
    before = [torch.from_numpy(counter.before_BR) for counter in counters]
    if fused is not None:
        for counts, rest in zip(before, torch.from_numpy(fused.finish()).split(QUERY_BLOCK), strict=True):
            counts += rest[:, : counts.shape[1]]
    total = sum_over_ranks(torch.cat([counts.flatten() for counts in before]), group)
    number_Q = np.concatenate([good_images.number_B for good_images in good])
    before_Q = [
        row
        for counts, whole in zip(before, total.split([c.numel() for c in before]), strict=True)
        for row in whole.view_as(counts).numpy()
    ]
    return [row[:number] + np.arange(1, number + 1) for row, number in zip(before_Q, number_Q, strict=True)]


def _count(
    counters: list[BlockCounter], rows: ImageSet, first: int, query_norms: torch.Tensor, metric: Metric
) -> None:
    """The gallery's `rows` from global index `first` on, tile by tile."""
    levels = precisions(rows.features.device, rows.features.shape[1])
    for start in range(0, len(rows), GALLERY_TILE):
        tile = Tile.build(part(rows, start, start + GALLERY_TILE), first + start, query_norms, metric)
        waiting = counters
        for precision in levels:
            last = precision is levels[-1]
            waiting = [counter for counter in waiting if not counter.add(tile, precision, last)]


def _fused(query: ImageSet, good: list[GoodImages], labels: GalleryLabels) -> FusedCounter | None:
    """What counts all queries at once; None on a CPU, and where it cannot."""
    if not counts_on(query.features.device):
        return None
    found = FusedCounter(query, side_by_side(good), labels.gallery.pids)
    return found if found.takes() else None


def counts_on(device: torch.device) -> bool:
    """Whether Triton programs run there."""
    return device.type == "cuda" and importlib.util.find_spec("triton") is not None


def score(
    ranks: list[IntArray], listed_Q: IntArray, ap: ApName, max_rank: int, gallery_size: int
) -> RetrievalResult:
    hits_Q, trapezoid_Q, inp_Q = average_precisions(ranks, listed_Q)
    valid_Q = ~np.isnan(hits_Q)
    mean_hits, mean_trapezoid = float(np.mean(hits_Q[valid_Q])), float(np.mean(trapezoid_Q[valid_Q]))
    return RetrievalResult(
        cmc=cmc_curve(np.array([rank_R[0] for rank_R in ranks if len(rank_R)]), min(max_rank, gallery_size)),
        mAP=mean_hits if ap == "hits" else mean_trapezoid,
        mINP=float(np.mean(inp_Q[valid_Q])),
        valid_queries=int(valid_Q.sum()),
        skipped_queries=int((~valid_Q).sum()),
        ap=ap,
        mAP_hits=mean_hits,
        mAP_trapezoid=mean_trapezoid,
        average_precision=hits_Q if ap == "hits" else trapezoid_Q,
        reaches_end=max_rank >= gallery_size,
        first_rank=np.array([rank_R[0] if len(rank_R) else 0 for rank_R in ranks], dtype=np.int64),
    )


def why_no_query_is_valid(query: ImageSet, gallery: GalleryIndex) -> str:
    cameras = np.union1d(query.camids, gallery.camids)
    if len(cameras) == 1:
        return (
            f"no query has a match in another camera: all {len(query)} queries and all {len(gallery.pids)} "
            f"gallery images come from camera {cameras[0]}"
        )
    if not np.intersect1d(query.pids, gallery.sorted_pids).size:
        return (
            f"no query has a match: none of the {len(np.unique(query.pids))} query identities occurs among "
            f"the {len(np.unique(gallery.sorted_pids))} gallery identities"
        )
    return (
        f"no query has a match in another camera: each of the {len(query)} queries meets its identity only "
        "in images of its own camera, which are left out"
    )
