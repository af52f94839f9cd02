"""Exact evaluation at the sizes of data sets, beside its floor and its peers: CPU seconds of one thread, and
peak memory, each in a process of its own.

Rows are Gaussian without structure, so good images lie all over the list: the most that is left undecided.
Of `million` the gallery is a memory-mapped file, Market-1501's and distractors.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from maskreid_dist.bench.retrieval_peers import PEERS, Lists, installed
from maskreid_dist.retrieval import evaluate_retrieval
from maskreid_kernels.bench.figures import Promise
from maskreid_shards.bench.own_process import in_own_process, peak_mb

DIMENSIONS = 256
FLOAT_TILE = (128, 8192)  # the evaluation's own: a product in one piece would also pay for its memory
OURS, PRODUCT = "ours", "product"


@dataclass(frozen=True)
class Size:
    """Images of a test split; pictured: those of the gallery that are no distractors. rounds: at most, the
    smallest time counts. products, megabytes: what is promised at most."""

    name: str
    queries: int
    gallery: int
    identities: int
    pictured: int
    rounds: int
    peers: tuple[str, ...] = ()
    products: float | None = None
    megabytes: float | None = None


MARKET = Size("market1501", 3368, 15913, 751, 15913, 3, tuple(PEERS), products=3)
# Of the peers only the one that holds no whole matrix.
MSMT17 = Size("msmt17", 11659, 82161, 3060, 82161, 1, ("argsort, NumPy",))
MILLION = Size("million", 3368, 1_000_000, 751, 15913, 1, products=2.5, megabytes=2000)
SIZES = {size.name: size for size in (MARKET, MSMT17, MILLION)}


@dataclass(frozen=True)
class Cost:
    """Of one work: CPU seconds, peak_mb of its process with the rows and what Python and torch take, and the
    mAP found. seconds None: the peer is not installed."""

    size: str
    work: str
    seconds: float | None
    peak_mb: float | None = None
    mAP: float | None = None


def measure(size: Size, share: float, progress: Callable[[str], None] | None = None) -> list[Cost]:
    """share: of queries, gallery and identities."""
    costs = []
    with tempfile.TemporaryDirectory(prefix="maskreid-bench-") as folder:
        path = Path(folder) / "gallery.npy"
        _write_gallery(size, share, path)
        for work in (OURS, PRODUCT, *size.peers):
            if progress:
                progress(f"{size.name}: {work}")
            known = work in (OURS, PRODUCT) or installed(work)
            cost = Cost(size.name, work, None)
            costs.append(in_own_process(_on_one_thread, size, share, work, path) if known else cost)
    return costs


def promises(size: Size, costs: Sequence[Cost]) -> list[Promise]:
    by_work = {cost.work: cost for cost in costs}
    ours, product = (by_work[work].seconds or 0.0 for work in (OURS, PRODUCT))
    peers = [cost.seconds for name in size.peers if (cost := by_work[name]).seconds is not None]
    found = []
    if size.products is not None:
        found.append(
            Promise(f"{size.name}: times the bare float32 product", ours / product, size.products, False)
        )
    if size is MARKET:
        fastest = min(seconds for seconds in peers if seconds is not None)
        found.append(Promise(f"{size.name}: times faster than the fastest peer", fastest / ours, 4, True))
    if size.megabytes is not None:
        found.append(Promise(f"{size.name}: MB at most", by_work[OURS].peak_mb, size.megabytes, False))
    return found


def _counts(size: Size, share: float) -> tuple[int, int, int, int]:
    """Queries, gallery, identities, and images of the gallery that are no distractors."""
    wanted = (size.queries, size.gallery, size.identities, size.pictured)
    queries, gallery, identities, pictured = (max(20, round(number * share)) for number in wanted)
    return queries, gallery, identities, pictured


def _write_gallery(size: Size, share: float, path: Path) -> None:
    rows = _counts(size, share)[1]
    rng = np.random.default_rng(1)
    out = np.lib.format.open_memmap(path, "w+", np.float32, (rows, DIMENSIONS))
    for start in range(0, rows, FLOAT_TILE[1]):
        part = out[start : start + FLOAT_TILE[1]]
        part[:] = rng.standard_normal(part.shape, dtype=np.float32)
    out.flush()


def _lists(size: Size, share: float, path: Path) -> Lists:
    queries, gallery, identities, pictured = _counts(size, share)
    rng = np.random.default_rng(0)
    query = rng.standard_normal((queries, DIMENSIONS), dtype=np.float32)
    q_pids, pids = rng.integers(1, identities + 1, queries), np.zeros(gallery, np.int64)
    pids[:pictured] = rng.integers(1, identities + 1, pictured)
    q_camids, camids = rng.integers(0, 6, queries), rng.integers(0, 6, gallery)
    rows = np.load(path, mmap_mode="r" if size is MILLION else None)
    return Lists(query, rows, (q_pids, q_camids), (pids, camids))


def _on_one_thread(size: Size, share: float, work: str, path: Path) -> Cost:
    torch.set_num_threads(1)
    return cost_of(size, share, work, path)


def cost_of(size: Size, share: float, work: str, path: Path) -> Cost:
    """In this process, on as many threads as torch has here."""
    lists = _lists(size, share, path)
    seconds, found = float("inf"), None
    slow = work not in (OURS, PRODUCT)
    for _ in range(1 if slow else size.rounds):
        before = time.thread_time()
        found = _do(work, lists)
        seconds = min(seconds, time.thread_time() - before)
    return Cost(size.name, work, seconds, peak_mb(), found)


def _do(work: str, lists: Lists) -> float | None:
    if work == OURS:
        sides = lists.query, *lists.query_labels, lists.gallery, *lists.gallery_labels
        return evaluate_retrieval(*sides).mAP
    if work == PRODUCT:
        rows, columns = FLOAT_TILE
        query = torch.from_numpy(lists.query)
        for start in range(0, len(lists.gallery), columns):
            g = torch.from_numpy(np.array(lists.gallery[start : start + columns]))
            for q in query.split(rows):
                _ = q @ g.T
        return None
    return PEERS[work](lists)
