"""What a ranked list shows, which queries are worth showing, and one picture of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from maskreid_shards.atomic import write_atomically

GREEN, RED, GREY = "#1a8f3c", "#c8322b", "#888888"


@dataclass(frozen=True, eq=False)
class RankedImage:
    """One gallery image of a ranked list; `rank` counts from 1. person, camera: as people are told."""

    image: Image.Image
    distance: float
    correct: bool
    person: str
    camera: str
    key: str
    rank: int


@dataclass(frozen=True, eq=False)
class RankedQuery:
    """A query, its mask-cut twin and the first images of its list, with its first true match even where that
    comes later. `heading`: hardest, median or easiest. first_rank, first_camera: of the first true match.
    mask: quality of the query's mask, its defect before a colon."""

    heading: str
    image: Image.Image
    masked: Image.Image
    person: str
    camera: str
    key: str
    average_precision: float
    ranked: tuple[RankedImage, ...]
    first_rank: int
    first_camera: str
    mask: str


def select_queries(
    average_precision: NDArray[np.float64], pids: NDArray[np.int64], *, each: int
) -> dict[str, list[int]]:
    """Row numbers of the `each` hardest, median and easiest queries by AP, each of another identity; nan
    (skipped) ones are left out.

    Ties are ordered by row. With fewer than 3 * each identities one may be in two of the three.
    """
    valid = np.flatnonzero(~np.isnan(average_precision))
    order = valid[np.argsort(average_precision[valid], kind="stable")]
    middle = len(order) // 2
    # From the middle outwards, the earlier of two that are as far from it first.
    outwards = sorted(range(len(order)), key=lambda place: (abs(place - middle), place))
    median = _distinct(order[outwards], pids, each)
    median.sort(key=order.tolist().index)
    hardest, easiest = (_distinct(rows, pids, each) for rows in (order, order[::-1]))
    return {"hardest": hardest, "median": median, "easiest": easiest}


def _distinct(rows: NDArray[np.int64], pids: NDArray[np.int64], most: int) -> list[int]:
    """The first rows, each of another identity."""
    chosen: dict[int, int] = {}
    for row in rows.tolist():
        if len(chosen) == most:
            break
        chosen.setdefault(int(pids[row]), row)
    return list(chosen.values())


def ranked_list_figure(queries: Sequence[RankedQuery], path: Path) -> None:
    """Draw ranked lists into one PNG: a row a query; query, mask-cut twin, then the
    list with green and red borders."""
    from matplotlib.figure import Figure

    columns = 2 + max((len(_nearest(query)) for query in queries), default=0)
    figure = Figure(figsize=(1.0 * columns, 2.3 * len(queries)), dpi=110, layout="constrained")
    axes = figure.subplots(len(queries), columns, squeeze=False)
    for row, query in zip(axes, queries, strict=True):
        for axis in row:
            axis.set_xticks([])
            axis.set_yticks([])
            axis.spines[:].set_visible(False)
        _draw(row[0], query.image, f"query\ncam {query.camera}", GREY, 1.0)
        _draw(row[1], query.masked, "mask-cut", GREY, 1.0)
        row[0].set_ylabel(f"{query.heading}\nAP {100 * query.average_precision:.0f} %", fontsize=9)
        for axis, found in zip(row[2:], _nearest(query), strict=False):
            mark = "✓" if found.correct else "✗"
            _draw(
                axis,
                found.image,
                f"{mark} {found.distance:.3f}\ncam {found.camera}",
                GREEN if found.correct else RED,
                3.0,
            )
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    write_atomically(path, buffer.getvalue())


def _nearest(query: RankedQuery) -> list[RankedImage]:
    """The list without a match that comes later."""
    return [item for place, item in enumerate(query.ranked, 1) if item.rank == place]


def _draw(axis, image: Image.Image, title: str, colour: str, width: float) -> None:  # type: ignore[no-untyped-def]
    axis.imshow(image, aspect="auto", interpolation="bilinear")
    axis.set_title(title, fontsize=8, color=colour)
    axis.spines[:].set(visible=True, color=colour, linewidth=width)
