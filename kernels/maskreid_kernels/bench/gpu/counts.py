"""Exact evaluation's count in one pass: whether it agrees with sorted float64 distances, and its time beside
the bare product.

Gaussian rows have no identities, so a query's good images are made up as measures: "in front", before all but
some thousandth of the gallery, as a trained network's mostly lie, or "anywhere", which leaves the most pairs
undecided.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ...retrieval_counts import Counts, Thresholds, count_below, error_bound
from .results import Figure
from .setting import Setting, timed

QUERIES, GALLERY, COLUMNS, GOOD = 3368, 1 << 20, 2048, 20
CHECKED = (256, 1 << 15)  # queries and rows whose measures are also sorted
TILE = 1 << 16  # rows of a launch
PLACES = {"in front": (3.1, 5.0), "anywhere": (-3.0, 3.0)}  # of good images, in standard deviations
SHARE = 1 / 32  # of a launch's pairs that may be undecided


@dataclass(frozen=True)
class Lists:
    """Rows of length about 1, all of different labels, and the exact measures of each query's good images."""

    query_QD: Tensor
    gallery_GD: Tensor
    slope_G: Tensor
    measure_QR: Tensor  # float64, descending
    margin_Q1: Tensor

    @classmethod
    def of(cls, setting: Setting, queries: int, rows: int, place: str) -> Lists:
        generator = torch.Generator(setting.device).manual_seed(0)
        columns = setting.columns(COLUMNS)

        def made(count: int) -> Tensor:
            out = torch.empty((count, columns), dtype=setting.dtype, device=setting.device)
            for part in out.split(TILE):
                part.copy_(torch.randn(part.shape, generator=generator, device=setting.device) / columns**0.5)
            return out

        query_QD, gallery_GD = made(setting.rows(queries)), made(setting.rows(rows))
        norm_Q1 = query_QD.double().norm(dim=1, keepdim=True)
        slope_G = torch.cat([-1 / part.double().norm(dim=1) for part in gallery_GD.split(TILE)]).float()
        low, high = PLACES[place]
        shape = (len(query_QD), GOOD)
        at_QR = low + (high - low) * torch.rand(shape, generator=generator, device=setting.device).double()
        measure_QR = (-at_QR / columns**0.5 * norm_Q1).sort(dim=1, descending=True).values
        return cls(query_QD, gallery_GD, slope_G, measure_QR, error_bound(columns, setting.dtype) * norm_Q1)

    def count(self, start: int = 0, stop: int | None = None) -> Counts:
        """One launch, over rows start ... stop - 1."""
        gallery, slope = self.gallery_GD[start:stop], self.slope_G[start:stop]
        own, other = (torch.full((len(x),), n, dtype=torch.int32, device=x.device)
                      for n, x in ((0, self.query_QD), (1, gallery)))  # fmt: skip
        low, high = (
            (self.measure_QR + side * self.margin_Q1).float().T.contiguous() for side in (-1.001, 1.001)
        )
        capacity = max(1 << 12, int(SHARE * len(own) * len(other)))
        offset = torch.zeros_like(slope)
        sides = (self.query_QD, gallery, own, other, slope, offset)
        return count_below(*sides, Thresholds(low, high), capacity=capacity)

    def measures(self, query: Tensor, row: Tensor) -> Tensor:
        """Of pairs, in float64."""
        return (self.query_QD[query].double() * self.gallery_GD[row].double()).sum(-1) * self.slope_G[
            row
        ].double()


def agreement(setting: Setting) -> Iterator[Figure]:
    """Counts whose undecided pairs are decided in float64, beside those of sorted float64 measures."""
    for place in PLACES:
        lists = Lists.of(setting, *CHECKED, place)
        counts = lists.count()
        key = f"counts beside sorted measures, good images {place}: that differ"
        if counts.open_3I is None:
            yield Figure(key, None, "", note="too many pairs were undecided").promised(0.0)
            continue
        found_RQ = counts.below_RQ.long()
        for part in counts.open_3I.long().split(1 << 14, dim=1):
            query, row, first = part
            r = torch.arange(GOOD, device=row.device)[:, None]
            nearer_RI = (r >= first) & (lists.measures(query, row) < lists.measure_QR[query].T)
            found_RQ.index_add_(1, query, nearer_RI.long())
        exact_QG = lists.query_QD.double() @ lists.gallery_GD.double().T * lists.slope_G.double()
        expected_QR = torch.searchsorted(exact_QG.sort(dim=1).values, lists.measure_QR)
        note = (
            f"of {expected_QR.numel()}; {counts.open_3I.shape[1]} pairs of {exact_QG.numel()} were undecided"
        )
        yield Figure(key, float((found_RQ.T != expected_QR).sum()), "", note=note).promised(0.0)


def counts(setting: Setting) -> Iterator[Figure]:
    """3,368 queries and a million rows, launch by launch, a host sync each; beside the bare product."""
    size = f"counts {QUERIES} x {GALLERY}, D = {COLUMNS}"
    for place in PLACES:
        lists = Lists.of(setting, QUERIES, GALLERY, place)
        starts = range(0, len(lists.gallery_GD), TILE)

        def whole(lists: Lists = lists, starts: range = starts) -> int:
            listed = [lists.count(start, start + TILE).open_3I for start in starts]
            return sum(open_3I.shape[1] for open_3I in listed if open_3I is not None)

        note = f"{whole()} of {len(lists.query_QD) * len(lists.gallery_GD)} pairs undecided"
        found = timed(setting, whole)
        figure = Figure(f"{size}, good images {place}", found.y50, "ms", found.y20, found.y80, note=note)
        # Of the 200 ms that an evaluation may take.
        yield figure.promised(150.0) if place == "in front" else figure
        if place == "in front":
            out = lists.query_QD.new_empty((len(lists.query_QD), min(TILE, len(lists.gallery_GD))))

            def product(lists: Lists = lists, out: Tensor = out) -> None:
                for part in lists.gallery_GD.split(TILE):
                    torch.mm(lists.query_QD, part.T, out=out[:, : len(part)])

            yield Figure.of(f"{size}, product", timed(setting, product))
        del lists
