"""How the figures fall as the gallery grows by people that nobody asks for."""

import re

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from maskreid_dist.config import Config
from maskreid_dist.errors import UserError
from maskreid_dist.evaluation.embed import embed_share
from maskreid_dist.evaluation.evaluate import Ranked
from maskreid_dist.evaluation.labels import Labels
from maskreid_dist.evaluation.ranks import Ranks, rows_on_first
from maskreid_dist.model import ReIDNetwork
from maskreid_dist.progress import progress_bar
from maskreid_dist.retrieval import RetrievalResult
from maskreid_dist.retrieval.protocols import gallery_growth
from maskreid_dist.retrieval.result import ApName
from maskreid_shards import ShardSet

UNITS = {"": 1, "k": 1000, "M": 1_000_000}


def parse_sizes(text: str) -> list[int]:
    """20k,100k,1M as numbers. Raises UserError."""
    sizes = []
    for part in text.split(","):
        found = re.fullmatch(r"(\d{1,12})([kM]?)", part.strip())
        if not found:
            raise UserError(f"--sizes {text}: numbers such as 20k,100k,1M are needed")
        sizes.append(int(found[1]) * UNITS[found[2]])
    return sizes


def embed_distractors(
    network: ReIDNetwork, shards: ShardSet, config: Config, console: Console, ranks: Ranks
) -> NDArray[np.float32]:
    """(N, D) of every image of every split, on rank 0. All of `ranks` take part."""
    rows = []
    for name in sorted(shards.splits):
        work, split = f"distractors: {name}", shards.split(name)
        with progress_bar(work, console) as progress:
            own = embed_share(network, split, config, ranks, work, progress)
        ranks.wait()
        rows.append(rows_on_first(own, len(split), ranks))
    return np.concatenate(rows)


def grown(
    ranked: Ranked,
    labels: Labels,
    distractors: NDArray[np.float32],
    sizes: list[int] | None,
    ap: ApName,
) -> dict[int, RetrievalResult]:
    """The figures by size of the gallery; sizes None: all distractors. Raises UserError for sizes that cannot
    be."""
    sides = ranked.query, *labels.query, ranked.gallery, *labels.gallery
    wanted = sizes or [len(ranked.gallery) + len(distractors)]
    try:
        return dict(zip(wanted, gallery_growth(*sides, distractors, wanted, ap=ap), strict=True))
    except ValueError as error:
        raise UserError(f"--sizes: {error}") from None
