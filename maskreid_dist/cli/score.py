"""`maskreid score`: figures of embeddings that were made before, without the network."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from maskreid_dist.cli.failures import one_line_errors
from maskreid_dist.cli.options import (
    AsJson,
    DistancesOn,
    ReRank,
    ReRankIndex,
    ReRankK1,
    ReRankK2,
    ReRankPower,
    ReRankWeight,
    re_ranking,
)
from maskreid_dist.cli.ranks import ranking_on, share_work
from maskreid_dist.errors import UserError
from maskreid_dist.terminal import Terminal, say, say_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from maskreid_dist.evaluation.evaluate import Ranked
    from maskreid_dist.evaluation.ranks import Ranks
    from maskreid_dist.gallery import Gallery
    from maskreid_dist.retrieval import ReRanking


@one_line_errors
def score(
    query: Annotated[Path, typer.Argument(help="Gallery folder with the queries.", show_default=False)],
    gallery: Annotated[Path, typer.Argument(help="Folder of a gallery.", show_default=False)],
    ap: Annotated[Literal["hits", "trapezoid"], typer.Option(help="Definition of AP.")] = "hits",
    rerank: ReRank = False,
    k1: ReRankK1 = 20,
    k2: ReRankK2 = 6,
    weight: ReRankWeight = 0.3,
    power: ReRankPower = "squared",
    index: ReRankIndex = "exact",
    distances_on: DistancesOn = "cpu",
    as_json: AsJson = False,
) -> None:
    """Evaluate embeddings that were made before: CMC, mAP (both definitions), mINP."""

    def work(ranks: "Ranks") -> None:
        options = re_ranking(k1, k2, weight, power, index) if rerank else None
        _score((query, gallery), ap, options, ranking_on(ranks, distances_on), as_json)

    share_work(work)


def _score(
    folders: tuple[Path, Path],
    ap: Literal["hits", "trapezoid"],
    options: "ReRanking | None",
    ranks: "Ranks",
    as_json: bool,
) -> None:
    from maskreid_dist.gallery import Gallery

    query, gallery = sides = [Gallery.open(folder) for folder in folders]
    if query.model != gallery.model:
        raise UserError(
            f"{query.folder} is of {query.model}, {gallery.folder} of {gallery.model}: not comparable"
        )
    if ranks.size > 1:
        held = {
            f"the {name}": (side.fingerprint, f"{side.fingerprint} ({side.folder})")
            for name, side in zip(("queries", "gallery"), sides, strict=True)
        }
        asked = {"--ap": ap, "--rerank": str(options)}
        ranks.agree(held | {name: (value, value) for name, value in asked.items()})
    rows = _ranked(query, gallery, ap, options, ranks)
    if ranks.is_first:
        _print(rows, as_json)


def _ranked(
    query: "Gallery",
    gallery: "Gallery",
    ap: Literal["hits", "trapezoid"],
    options: "ReRanking | None",
    ranks: "Ranks",
) -> "list[Ranked]":
    """All of `ranks` take part, each with its part of the gallery."""
    from maskreid_dist.evaluation.evaluate import Labels, Ranked, own_sides
    from maskreid_dist.retrieval import evaluate_reranked, evaluate_retrieval

    labels = Labels(*((side.pids[side.alive], side.camids[side.alive]) for side in (query, gallery)))
    features = query.living(slice(None))
    own = gallery.living(ranks.rows(len(labels.gallery[0])))
    sides = own_sides(features, own, labels, ranks)
    result = evaluate_retrieval(*sides, ap=ap, group=ranks.group)
    name = f"{query.model.name}, step {query.model.step}"
    rows = [Ranked(name, features, own, result)]
    if options:
        result = evaluate_reranked(*sides, options, ap=ap, group=ranks.group)
        rows.append(Ranked("re-ranked", features, own, result))
    return rows


def _print(rows: "Sequence[Ranked]", as_json: bool) -> None:
    from maskreid_dist.evaluation.evaluate import percentages, print_table

    if as_json:
        plain, *others = (percentages(row.result) for row in rows)
        say_json({"unit": "percent", **plain, **({"reranked": others[0]} if others else {})})
        return
    print_table(Terminal(), rows)
    result = rows[0].result
    say(
        f"{result.valid_queries} valid queries, {result.skipped_queries} skipped (no match in another camera)"
    )
