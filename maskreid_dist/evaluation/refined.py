"""The same features, ranked again: queries expanded by their nearest images, lists re-ranked."""

from typing import Any

from maskreid_dist.evaluation.evaluate import Ranked, own_sides
from maskreid_dist.evaluation.labels import Labels
from maskreid_dist.evaluation.ranks import Ranks
from maskreid_dist.retrieval import (
    Expansion,
    ReRanking,
    evaluate_reranked,
    evaluate_retrieval,
    expand_queries,
)
from maskreid_dist.retrieval.result import ApName


def refined(
    ranked: Ranked,
    labels: Labels,
    ap: ApName,
    rerank: ReRanking | None = None,
    expand: Expansion | None = None,
    ranks: Ranks | None = None,
) -> dict[str, Ranked]:
    """The same features, ranked with what is asked for: "expanded", queries plus their nearest; "reranked";
    "expanded_reranked" where both are.

    All of `ranks` take part, with what `rank_shares` gave each.
    """
    ranks = ranks or Ranks()
    own = ranked.gallery[ranks.rows(labels.images)] if ranks.is_first else ranked.gallery
    how: dict[str, Any] = {"ap": ap, "group": ranks.group}
    rows: dict[str, Ranked] = {}
    if expand:
        ranks.wait()
        query = expand_queries(ranked.query, own, k=expand.k, alpha=expand.alpha, group=ranks.group)
        result = evaluate_retrieval(*own_sides(query, own, labels, ranks), **how)
        name = f"queries + {expand.k} nearest"
        name += "" if expand.alpha == Expansion.alpha else f", alpha {expand.alpha:g}"
        rows["expanded"] = Ranked(name, query, ranked.gallery, result)
    if rerank:
        text = f"re-ranked {rerank.k1}, {rerank.k2}, {rerank.weight:g}"  # short: six figures stand beside it
        text += ", d^4" if rerank.power == "fourth" else ""
        for key, before in [("", ranked), *((f"{key}_", row) for key, row in list(rows.items()))]:
            ranks.wait()
            result = evaluate_reranked(*own_sides(before.query, own, labels, ranks), rerank, **how)
            name = f"{before.name}, re-ranked" if key else text
            rows[f"{key}reranked"] = Ranked(name, before.query, before.gallery, result)
    return rows
