"""Masks made here beside exact ones: intersection over union, speed, and what a histogram ranks with them."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from maskreid_dist.errors import UserError
from maskreid_dist.evaluation.evaluate import rank_histograms
from maskreid_dist.evaluation.histogram import HistogramBaseline
from maskreid_dist.segmentation.masks import segment
from maskreid_dist.segmentation.networks import SegmentationModel
from maskreid_kernels.bench.figures import Promise
from maskreid_shards import Layout, MaskOptions, Source, convert, open_shards, place_masks, scan_market1501

STRIPES = 6  # of the histogram
PERSON = 128


@dataclass(frozen=True)
class MaskFigures:
    """One kind of masks: their intersection over union with the exact ones that are not empty (mean, median,
    share below 0.5), None without masks. `crops_s`: made per second of one core's time, reading and writing
    included. mAP (by hits) and Rank-1 of a histogram of six stripes, in per cent; a bad mask is replaced by a
    full one."""

    name: str
    iou: float | None
    iou_median: float | None
    iou_below_half: float | None
    crops_s: float | None
    mAP: float
    rank1: float


@dataclass(frozen=True)
class MaskBench:
    """Rows: no mask, those beside the images, made ones, exact ones; their IoU is over the `crops` whose
    exact mask is not empty, junk and distractors too. `identities`: the made ones' mean IoU without these
    two; `by_kind`: over the identities of each split, over junk and over distractors."""

    rows: tuple[MaskFigures, ...]
    by_kind: Mapping[str, float]
    identities: float
    crops: int

    def promises(self) -> tuple[Promise, ...]:
        made = self.rows[2]
        assert made.iou is not None and made.crops_s is not None
        return (
            Promise("mean IoU with the exact masks, of everything", made.iou, 0.85, True),
            Promise("mean IoU with the exact masks, of identities", self.identities, 0.85, True),
            Promise("crops/s per core", made.crops_s, 100, True),
        )


def measure(
    source: Path,
    exact: str,
    folder: Path,
    *,
    model: SegmentationModel = "pose",
    weights: Path | None = None,
    say: Callable[[str], None] = lambda what: None,
) -> MaskBench:
    """Masks of `source` (Market-1501's layout): none, those beside the images, made ones, and the exact ones
    at `exact` (a folder or a pattern of `MaskOptions`). `folder` is for what is made.

    Raises UserError, ShardError: see `segment`, `convert`; exact masks that are missing.
    """
    layout = scan_market1501(source)
    say("making masks")
    crops_s = _made(layout, folder / "masks", model, weights)
    kinds = {
        "carried": MaskOptions(),
        model: MaskOptions(str(folder / "masks")),
        "exact": MaskOptions(exact),
    }
    truth = place_masks(layout, kinds["exact"])
    overlaps = {name: _overlaps(place_masks(layout, options), truth) for name, options in kinds.items()}
    rows: list[MaskFigures] = []
    for name, options in kinds.items():
        say(f"{name} masks")
        convert(layout, folder / name, dataset=name, on_bad_mask="full", mask_options=options)
        shards = open_shards(folder / name)
        if not rows:
            (row,) = rank_histograms(shards, [HistogramBaseline("no mask", STRIPES, False)])
            plain = row.result
            rows.append(
                MaskFigures("no mask", None, None, None, None, 100 * plain.mAP_hits, 100 * plain.rank(1))
            )
        (row,) = rank_histograms(shards, [HistogramBaseline(name, STRIPES, True)])
        ranked = row.result
        together = np.concatenate(list(overlaps[name].values()))
        rows.append(
            MaskFigures(
                name,
                float(together.mean()),
                float(np.median(together)),
                float((together < 0.5).mean()),
                crops_s if name == model else None,
                100 * ranked.mAP_hits,
                100 * ranked.rank(1),
            )
        )
    by_kind = {kind: float(iou.mean()) for kind, iou in overlaps[model].items()}
    identities = np.concatenate([iou for kind, iou in overlaps[model].items() if kind in layout.splits])
    return MaskBench(tuple(rows), by_kind, float(identities.mean()), len(together))


def _made(layout: Layout, folder: Path, model: SegmentationModel, weights: Path | None) -> float:
    """Make the masks on one thread; crops per second of its time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    start = time.process_time()
    try:
        report = segment(layout, folder, model=model, weights=weights, device="cpu")
    finally:
        torch.set_num_threads(threads)
    return report.made / (time.process_time() - start)


def _overlaps(masks: Layout, exact: Layout) -> dict[str, NDArray[np.float64]]:
    """Intersection over union of each pair of masks whose exact one is not empty: of identities by split, of
    all junk, of all distractors.

    A mask that is not there is empty. Raises UserError: an exact one that is not there.
    """
    found: dict[str, list[float]] = {}
    for mine, true in zip(masks.sources(), exact.sources(), strict=True):
        person = _person(true.mask_path)
        if person is None:
            raise UserError(f"{true.mask_path}: no exact mask of {true.name}; say where they are (--against)")
        if person.any():
            other = _person(mine.mask_path)
            overlap = 0.0 if other is None else float((person & other).sum() / (person | other).sum())
            found.setdefault(_kind(mine), []).append(overlap)
    return {kind: np.array(overlaps) for kind, overlaps in found.items()}


def _kind(source: Source) -> str:
    return source.split if source.pid > 0 else "junk" if source.pid < 0 else "distractors"


def _person(path: Path | None) -> NDArray[np.bool_] | None:
    if path is None or not path.is_file():
        return None
    with Image.open(path) as mask:
        person: NDArray[np.bool_] = np.asarray(mask.convert("L")) >= PERSON
    return person
