"""Which data set a folder holds: by its whole name, or by counts that are nearly the published ones."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ..samples import Layout

NEAR = 0.02
LEAST_COUNTS = 3  # fewer are near by chance


def with_published(layout: Layout, src: Path, names: tuple[str, ...], published: Mapping[str, int]) -> Layout:
    """The layout with the `published` counts, if it is the data set of one of these names.

    The folder's name or its parent's says so as a whole, without regard to case and signs ("Market-1501" is
    "market1501", "Occluded_Duke" and "supermarket" are no known names); or all counts are within NEAR of the
    published ones.
    """
    near = len(published) >= LEAST_COUNTS and _is_near(layout.counts(), published)
    return (
        replace(layout, published={**layout.published, **published})
        if near or is_named(src, names)
        else layout
    )


def is_named(src: Path, names: tuple[str, ...]) -> bool:
    return any(re.sub("[^a-z0-9]", "", part.lower()) in names for part in src.resolve().parts[-2:])


def _is_near(found: Mapping[str, int], published: Mapping[str, int]) -> bool:
    return all(abs(found.get(name, 0) - count) <= NEAR * count for name, count in published.items())
