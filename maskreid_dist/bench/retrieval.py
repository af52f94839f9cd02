"""Cost of an exact evaluation beside its floor, the bare float32 product, and a plain argsort.

Single-threaded CPU time of this thread, the smallest of several rounds: other programs on the machine change
it little. Features are Gaussian. In `random` rows have no structure, so good images lie all over the list; in
`clustered` rows of an identity lie around a centre. The last two are what used to be cliffs.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from maskreid_dist.errors import UserError
from maskreid_dist.retrieval import evaluate_retrieval, nearest
from maskreid_kernels.bench.figures import Promise

DIMENSIONS = 256
CAMERAS = 6
NEAREST = 20
BESIDE = {"all rows the same": "random", "nearly equal": "random", "10 identities": "random, long"}
_FLOAT_TILE = (128, 8192)  # the evaluation's own: a product in one piece would also pay for its memory


@dataclass(frozen=True)
class Case:
    """noise: of features around their identity's centre; None: no centre. same: every row a copy of one.

    ulp: every row is one row, of whose elements about half are the next float32.
    """

    name: str
    queries: int
    gallery: int
    identities: int
    noise: float | None = None
    same: bool = False
    ulp: bool = False

    @property
    def option(self) -> str:
        """As it is given on the command line."""
        return self.name.replace(",", "").replace(" ", "-")


@dataclass(frozen=True)
class Cost:
    """Seconds of CPU time; good: good images a query, on average."""

    case: str
    queries: int
    gallery: int
    dimensions: int
    good: float
    evaluation_s: float
    product_s: float
    argsort_s: float
    nearest_s: float

    @property
    def products(self) -> float:
        return self.evaluation_s / self.product_s


@dataclass(frozen=True)
class _Data:
    query: NDArray[np.float32]
    gallery: NDArray[np.float32]
    query_labels: tuple[NDArray[np.int64], NDArray[np.int64]]  # pids and camids
    gallery_labels: tuple[NDArray[np.int64], NDArray[np.int64]]

    def evaluate(self) -> None:
        evaluate_retrieval(self.query, *self.query_labels, self.gallery, *self.gallery_labels)

    def nearest(self) -> None:
        nearest(self.query, self.gallery, NEAREST)

    def product(self) -> None:
        for _ in _products(torch.from_numpy(self.query), torch.from_numpy(self.gallery)):
            pass

    def argsort(self) -> None:
        """Of whole rows of distances, without the product: a block's, as often as there are blocks."""
        rows = _FLOAT_TILE[0]
        block = (self.query[:rows] @ self.gallery.T).copy()
        for start in range(0, len(self.query), rows):
            block[: len(self.query) - start].argsort(axis=1)

    def good(self) -> float:
        pids, camids = self.gallery_labels
        pairs = [((pids == p) & (camids != c)).sum() for p, c in zip(*self.query_labels, strict=True)]
        return float(np.mean(pairs))


def cases(share: float) -> list[Case]:
    """At full size, share 1: Market-1501's, and the cliffs' with random rows beside them."""

    def size(number: int) -> int:
        return max(20, round(number * share))

    market, long = (size(3368), size(15913)), (size(500), size(50_000))
    return [
        Case("random", *market, 751),
        Case("clustered", *market, 751, noise=2.0),
        Case("all rows the same", *market, 751, same=True),
        Case("nearly equal", *market, 751, ulp=True),
        Case("random, long", *long, 751),
        Case("10 identities", *long, 10),
    ]


def chosen(known: Sequence[Case], names: Sequence[str]) -> list[Case]:
    """The cases named by their options, and those that they are compared with; all where none is named."""
    by_option = {case.option: case for case in known}
    if unknown := [name for name in names if name not in by_option]:
        raise UserError(f"--case {unknown[0]}: choose of {', '.join(by_option)}")
    wanted = {by_option[name].name for name in names} or {case.name for case in known}
    wanted |= {BESIDE[name] for name in wanted & set(BESIDE)}
    return [case for case in known if case.name in wanted]


def measure(chosen: Sequence[Case], rounds: int, progress: Callable[[str], None] | None = None) -> list[Cost]:
    """One thread; the works of a case take turns in every round."""
    costs = []
    with _one_thread():
        for case in chosen:
            data = _data(case)
            best = dict.fromkeys(("evaluate", "product", "argsort", "nearest"), float("inf"))
            for number in range(rounds):
                for work, least in best.items():
                    if progress:
                        progress(f"{case.name}: {work}, round {number + 1} of {rounds}")
                    before = time.thread_time()
                    getattr(data, work)()
                    best[work] = min(least, time.thread_time() - before)
            sizes = (case.name, case.queries, case.gallery, DIMENSIONS)
            costs.append(Cost(*sizes, data.good(), *best.values()))
    return costs


def promises(costs: Sequence[Cost]) -> list[Promise]:
    by_name = {cost.case: cost for cost in costs}
    kept = [
        Promise(f"{name}: times the bare float32 product", by_name[name].products, 3, False)
        for name in ("random", "clustered")
        if name in by_name
    ]
    for name, beside in BESIDE.items():
        if name not in by_name:
            continue
        one, other = by_name[name], by_name[beside]
        times = one.evaluation_s / other.evaluation_s
        kept.append(Promise(f"{name}: times random rows of that size", times, 3, False))
        if beside == "random":  # the rows are others
            times = one.nearest_s / other.nearest_s
            kept.append(Promise(f"{name}: the {NEAREST} nearest, times random rows", times, 3, False))
    return kept


def _data(case: Case) -> _Data:
    rng = np.random.default_rng(0)
    q_pids, pids = (rng.integers(1, case.identities + 1, count) for count in (case.queries, case.gallery))
    query, gallery = (
        rng.standard_normal((count, DIMENSIONS), dtype=np.float32) for count in (case.queries, case.gallery)
    )
    if case.noise is not None:
        centre = rng.standard_normal((case.identities + 1, DIMENSIONS), dtype=np.float32)
        query = centre[q_pids] + np.float32(case.noise) * query
        gallery = centre[pids] + np.float32(case.noise) * gallery
    if case.ulp:
        row = rng.standard_normal(DIMENSIONS, dtype=np.float32)
        query, gallery = (nearly_equal(row, len(x), rng) for x in (query, gallery))
    if case.same:
        query[:] = gallery[:] = gallery[0]
    camids = [rng.integers(0, CAMERAS, count) for count in (case.queries, case.gallery)]
    return _Data(query, gallery, (q_pids, camids[0]), (pids, camids[1]))


def nearly_equal(row_D: NDArray[np.float32], count: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Rows that hold, element by element, that of one row or the next float32."""
    upper = rng.integers(0, 2, (count, len(row_D)), dtype=np.int8) > 0
    found: NDArray[np.float32] = np.where(upper, np.nextafter(row_D, np.float32(np.inf)), row_D)
    return found


def _products(query: torch.Tensor, gallery: torch.Tensor) -> Iterator[torch.Tensor]:
    rows, columns = _FLOAT_TILE
    for g in gallery.split(columns):
        for q in query.split(rows):
            yield q @ g.T


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
