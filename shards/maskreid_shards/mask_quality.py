"""How good the masks of finished shards are: coverage, empty, full and fragmented ones, and the worst of
them."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .decode import decode_pair
from .masks.policy import PERSON_LEVEL
from .reading import ShardSet, Split
from .samples import DISTRACTOR_PID

Defect = Literal["empty", "full", "fragmented", "tiny"]
DEFECTS: dict[Defect, str] = {
    "empty": "no person pixel",
    "full": "every pixel is person",
    "fragmented": "a second component holds at least a tenth of the person's pixels",
    "tiny": "less than a twentieth of the image is person",
}
FRAGMENT_SHARE = 0.1
TINY_COVERAGE = 0.05
HISTOGRAM_BINS = 20
READ_AHEAD = 256


@dataclass(frozen=True)
class MaskQuality:
    """One mask. A person pixel is one at PERSON_LEVEL (128) or above.

    coverage: person pixels / all pixels. components: 8-connected components of person pixels.
    second_share: the second largest component's share of the person pixels, 0 without one.
    defect: the first of these that holds, or None: "empty" (coverage 0), "full" (coverage 1), "fragmented"
    (second_share >= FRAGMENT_SHARE), "tiny" (coverage < TINY_COVERAGE).
    """

    coverage: float
    components: int
    second_share: float
    defect: Defect | None

    @classmethod
    def of(cls, mask: NDArray[np.uint8]) -> "MaskQuality":
        """`mask`: (H, W) uint8, 255 = person."""
        person = mask >= PERSON_LEVEL
        total = int(person.sum())
        coverage = total / person.size
        sizes = component_sizes(person)
        second = sizes[1] / total if len(sizes) > 1 else 0.0
        defect: Defect | None = None
        if total in (0, person.size):
            defect = "full" if total else "empty"
        elif second >= FRAGMENT_SHARE:
            defect = "fragmented"
        elif coverage < TINY_COVERAGE:
            defect = "tiny"
        return cls(coverage, len(sizes), second, defect)

    def reason(self) -> str:
        """Why a mask with a defect is bad, in a few words."""
        if self.defect == "fragmented":
            return f"{self.components} parts, second {100 * self.second_share:.0f} %"
        if self.defect == "tiny":
            return f"{100 * self.coverage:.1f} % person"
        return {"empty": "no person", "full": "all person", None: ""}[self.defect]


@dataclass(frozen=True)
class JudgedMask:
    """A sample and its mask's quality; `number` is the sample's in its split."""

    split: str
    number: int
    key: str
    pid: int
    quality: MaskQuality


@dataclass(frozen=True)
class QualityReport:
    """All masks of a shard folder. `histogram`: masks by coverage in HISTOGRAM_BINS equal bins from 0 to 1.

    `defective` holds every mask with a defect, worst first: by kind in the order of DEFECTS, identities
    before distractors and junk, fragmented ones by the second component's share, others by coverage; then
    split and key.
    """

    checked: dict[str, int]
    histogram: tuple[int, ...]
    coverage_quantiles: dict[str, float]
    counts: dict[Defect, int]
    defective: tuple[JudgedMask, ...]

    def worst(self, count: int) -> list[JudgedMask]:
        """At most `count` defective masks; kinds take turns, so that a frequent one does not hide the
        others."""
        kinds = [[mask for mask in self.defective if mask.quality.defect == kind] for kind in DEFECTS]
        rounds = max(map(len, kinds), default=0)
        turns = [kind[turn] for turn in range(rounds) for kind in kinds if turn < len(kind)]
        order = {mask: place for place, mask in enumerate(self.defective)}
        return sorted(turns[:count], key=order.__getitem__)

    def content(self) -> dict[str, Any]:
        """For JSON: counts, histogram, and every defective mask."""
        masks = [
            {"split": mask.split, "key": mask.key, "pid": mask.pid, **asdict(mask.quality)}
            for mask in self.defective
        ]
        return {
            **{
                name: getattr(self, name) for name in ("checked", "counts", "histogram", "coverage_quantiles")
            },
            "defective": masks,
        }


def judge_masks(shards: ShardSet, *, progress: Callable[[int], None] = lambda count: None) -> QualityReport:
    """Read and judge every mask. `progress` is called with the number of masks just judged.

    Raises ShardError: a sample that cannot be read or decoded.
    """
    judged: list[JudgedMask] = []
    for name in shards.splits:
        judged += _judge_split(shards.split(name), progress)
    coverage = np.array([mask.quality.coverage for mask in judged])
    counts = {defect: sum(mask.quality.defect == defect for mask in judged) for defect in DEFECTS}
    kinds = list(DEFECTS)
    defective = [mask for mask in judged if mask.quality.defect is not None]
    defective.sort(
        key=lambda mask: (
            kinds.index(mask.quality.defect) if mask.quality.defect else 0,
            mask.pid <= DISTRACTOR_PID,
            -mask.quality.second_share if mask.quality.defect == "fragmented" else mask.quality.coverage,
            mask.split,
            mask.key,
        )
    )
    return QualityReport(
        checked={name: len(shards.split(name)) for name in shards.splits},
        histogram=tuple(np.histogram(coverage, HISTOGRAM_BINS, (0.0, 1.0))[0].tolist()),
        coverage_quantiles={f"{q:g}": float(np.quantile(coverage, q)) for q in (0.05, 0.25, 0.5, 0.75, 0.95)},
        counts=counts,
        defective=tuple(defective),
    )


def _judge_split(split: Split, progress: Callable[[int], None]) -> list[JudgedMask]:
    judged = []
    for start in range(0, len(split), READ_AHEAD):
        pairs = split.read_many(range(start, min(start + READ_AHEAD, len(split))))
        for number, pair in enumerate(pairs, start):
            mask = np.asarray(decode_pair(pair)[1])
            judged.append(JudgedMask(split.name, number, pair.key, pair.pid, MaskQuality.of(mask)))
        progress(len(pairs))
    return judged


def component_sizes(person: NDArray[np.bool_]) -> list[int]:
    """Pixels of each 8-connected component of an (H, W) bool array, largest first.

    Runs of pixels in a row are found for all rows at once; a run joins those of the row above that it
    touches.
    """
    edges = np.diff(np.pad(person, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, starts = np.nonzero(edges == 1)
    stops = np.nonzero(edges == -1)[1]
    first_of_row = np.searchsorted(rows, np.arange(person.shape[0] + 1)).tolist()
    start, stop = starts.tolist(), stops.tolist()
    parent = list(range(len(start)))

    def root(run: int) -> int:
        while parent[run] != run:
            parent[run] = parent[parent[run]]
            run = parent[run]
        return run

    for row in range(1, person.shape[0]):
        above, end_above = first_of_row[row - 1], first_of_row[row]
        here, end = end_above, first_of_row[row + 1]
        while above < end_above and here < end:
            # [start, stop) touches diagonally too, hence <= and not <.
            if start[above] <= stop[here] and start[here] <= stop[above]:
                parent[root(here)] = root(above)
            if stop[above] < stop[here]:
                above += 1
            else:
                here += 1
    roots = np.array([root(run) for run in range(len(start))], np.int64)
    sizes = np.bincount(roots, weights=stops - starts) if len(roots) else np.zeros(0)
    return sorted((int(size) for size in sizes if size), reverse=True)
