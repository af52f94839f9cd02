"""Arguments and options that several commands share."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from maskreid_dist.errors import UserError
from maskreid_dist.exit_status import NEVER_AGAIN
from maskreid_dist.terminal import say

if TYPE_CHECKING:
    from maskreid_dist.retrieval import Expansion, ReRanking

RunOrCheckpoint = Annotated[
    Path, typer.Argument(help="A run directory, one of its checkpoints, or pretrained:walkers.")
]
RankedShards = Annotated[
    str,
    typer.Argument(help="Shards with the splits query and gallery, a folder or a URL.", show_default=False),
]
Cache = Annotated[Path | None, typer.Option(help="Keep the shards of a URL in this folder.")]
CameraIds = Annotated[
    Literal["labels", "none"],
    typer.Option(help="none: the data has no camera ids; only the query's own image, by key, is left out."),
]
Ap = Annotated[
    Literal["hits", "trapezoid"],
    typer.Option(help="Definition of AP, by which queries of a report are ordered too."),
]
Intervals = Annotated[bool, typer.Option("--intervals", help="95 % bootstrap intervals over queries.")]
MultipleQuery = Annotated[
    bool, typer.Option("--multiple-query", help="Also with the queries of a person and camera averaged.")
]
SingleShot = Annotated[
    int, typer.Option(min=0, help="Also CMC with one gallery image a person: draws to average; 0: not.")
]
SingleShotSeed = Annotated[int, typer.Option(min=0, help="Of those draws.")]
CameraPairs = Annotated[bool, typer.Option("--camera-pairs", help="Also every pair of cameras by itself.")]
Verification = Annotated[
    bool, typer.Option("--verification", help="Also over pairs: true match rates, and the ROC curve.")
]
ExpandQueries = Annotated[
    int,
    typer.Option(
        "--expand-queries",
        min=0,
        help="Also with each query plus its K nearest images (alpha-query expansion); 0: not.",
    ),
]
ExpandAlpha = Annotated[
    float,
    typer.Option(
        "--expand-alpha", help="Those weigh their similarity to this power; 0: as much as the query."
    ),
]
DistancesOn = Annotated[
    Literal["cpu", "gpu"],
    typer.Option(help="Where galleries are ranked and re-ranked; the same ranks. Not yet run on a GPU."),
]
FiguresFile = Annotated[Path | None, typer.Option(help="Write the figures as JSON here.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON on standard output, nothing else.")]

ReRank = Annotated[
    bool, typer.Option("--rerank", help="Also with k-reciprocal re-ranking (Zhong et al. 2017).")
]
ReRankK1 = Annotated[int, typer.Option("--rerank-k1", help="Neighbours of its sets.")]
ReRankK2 = Annotated[int, typer.Option("--rerank-k2", help="Neighbours of its mean; 1: no mean.")]
ReRankWeight = Annotated[
    float, typer.Option("--rerank-weight", help="Of the distance beside the sets', 0 to 1.")
]
ReRankPower = Annotated[
    Literal["squared", "fourth"],
    typer.Option("--rerank-power", help="Distances squared (the paper) or d^4 (the Python ports)."),
]
ReRankIndex = Annotated[
    Literal["exact", "faiss"],
    typer.Option(
        "--rerank-index", help="What finds its neighbours: our own, or FAISS, which finds the same."
    ),
]


def expansion(k: int, alpha: float) -> "Expansion | None":
    """None for k = 0. Raises UserError for values that cannot be."""
    from maskreid_dist.retrieval import Expansion

    try:
        found = Expansion(max(k, 1), alpha)
    except ValueError as error:
        raise UserError(str(error)) from None
    return found if k else None


def re_ranking(
    k1: int,
    k2: int,
    weight: float,
    power: Literal["squared", "fourth"],
    index: Literal["exact", "faiss"],
) -> "ReRanking":
    """Raises UserError for values that cannot be, and where FAISS is not installed."""
    from maskreid_dist.retrieval import ReRanking
    from maskreid_dist.retrieval.faiss_lists import check_index

    check_index(index)
    try:
        return ReRanking(k1, k2, weight, power, index)
    except ValueError as error:
        raise UserError(str(error)) from None


def refuse_pretrained(name: str | None) -> None:
    """Of `--pretrained`, which `maskreid demo` alone has: elsewhere the network stands in place of a run."""
    if name is not None:
        say(
            "maskreid: error: --pretrained is for maskreid demo; here name the network in place of the run: "
            "pretrained:walkers",
            file=sys.stderr,
        )
        raise typer.Exit(NEVER_AGAIN)
