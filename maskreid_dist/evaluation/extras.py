"""Protocols beside the usual figures, each a flag of `maskreid evaluate` and `score`: as figures, and as
lines."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from maskreid_dist.evaluation.evaluate import Ranked
from maskreid_dist.evaluation.labels import Labels, all_images
from maskreid_dist.retrieval import ReRanking, RetrievalResult, evaluate_reranked, evaluate_retrieval
from maskreid_dist.retrieval.intervals import bootstrap_intervals
from maskreid_dist.retrieval.protocols import camera_pairs, pool_queries, single_shot_cmc
from maskreid_dist.retrieval.result import ApName
from maskreid_dist.retrieval.verification import (
    Similarities,
    count_similarities,
    named_images,
    roc_curve,
    true_match_rates,
)

FALSE_MATCH_RATES = (0.1, 0.01, 0.001, 0.0001)
Figures = dict[str, Any]  # in per cent, for JSON


@dataclass(frozen=True)
class Extras:
    """single_shot: draws of a gallery of one image a person, 0: not asked for."""

    intervals: bool = False
    multiple_query: bool = False
    single_shot: int = 0
    single_shot_seed: int = 0
    camera_pairs: bool = False
    verification: bool = False


def extra_figures(
    ranked: Ranked, labels: Labels, extras: Extras, ap: ApName, rerank: ReRanking | None = None
) -> Figures:
    """What was asked for, by the protocol's name. rerank: averaged queries are also ranked with it. None: no
    query has a match, or there are too few pairs."""
    query, gallery = (ranked.query, *labels.query), (ranked.gallery, *labels.gallery)
    figures: Figures = {}
    if extras.intervals:
        found = bootstrap_intervals(ranked.result, ranks=(1, 5))
        figures["intervals"] = {name: [_percent(low), _percent(high)] for name, (low, high) in found.items()}
    if extras.multiple_query:
        pooled = pool_queries(*query)
        result = evaluate_retrieval(*pooled, *gallery, ap=ap)
        figures["multiple_query"] = {"queries": len(pooled[1]), **_two_figures(result)}
        if rerank:
            result = evaluate_reranked(*pooled, *gallery, rerank, ap=ap)
            figures["multiple_query"]["reranked"] = _two_figures(result)
    if extras.single_shot:
        draws, seed = extras.single_shot, extras.single_shot_seed
        curve = single_shot_cmc(*query, *gallery, repeats=draws, seed=seed)
        ranks = {f"rank{k}": _percent(curve[k - 1]) for k in (1, 5, 10)}
        figures["single_shot"] = {"draws": draws, "seed": seed, **ranks}
    if extras.verification:
        images = all_images(ranked.query, ranked.gallery, labels)
        counted = count_similarities(named_images(images.features, images.pids, images.camids))
        figures |= _verification(counted)
    if extras.camera_pairs:
        figures["camera_pairs"] = [
            {
                "query_camera": int(pair.query_camera),
                "gallery_camera": int(pair.gallery_camera),
                "queries": int(pair.queries),
                **_two_figures(pair.result),
            }
            for pair in camera_pairs(*query, *gallery, ap=ap)
        ]
    return figures


def _verification(found: Similarities) -> Figures:
    pairs = zip(FALSE_MATCH_RATES, true_match_rates(found, FALSE_MATCH_RATES), strict=True)
    shares = {f"{100 * rate:g}": None if one is None else _percent(one) for rate, one in pairs}
    false, true = roc_curve(found)
    roc = {
        "false_match_rate": [float(f"{100 * rate:.4g}") for rate in false],  # small ones tell most
        "true_match_rate": [_percent(rate) for rate in true],
    }
    return {"true_match_rate_at_false_match_rate": shares, "roc": roc}


def extra_lines(figures: Mapping[str, Any], ap: ApName, camera: Callable[[int], str] = str) -> list[str]:
    """The same for people, without the curve. camera: what one is called, by its number."""
    lines = []
    if found := figures.get("intervals"):
        texts = [f"{name} {low:.2f} to {high:.2f}" for name, (low, high) in found.items()]
        lines.append(f"95 % intervals, queries resampled 1000 times, AP by {ap}: {', '.join(texts)}")
    if found := figures.get("multiple_query"):
        line = f"multiple query, {found['queries']} queries: {_said(found, ap)}"
        again = found.get("reranked")
        lines.append(f"{line}; re-ranked: {_said(again, ap)}" if again else line)
    if found := figures.get("single_shot"):
        texts = [f"Rank-{k} {found[f'rank{k}']:.2f}" for k in (1, 5, 10)]
        lines.append(f"single gallery shot, {found['draws']} draws: {', '.join(texts)}")
    if found := figures.get("true_match_rate_at_false_match_rate"):
        texts = [
            f"{rate} %: " + ("too few pairs" if share is None else f"{share:.2f}")
            for rate, share in found.items()
        ]
        lines.append(f"pairs: true match rate at a false match rate of {', '.join(texts)}")
    for pair in figures.get("camera_pairs", ()):
        cameras = f"camera {camera(pair['query_camera'])} to camera {camera(pair['gallery_camera'])}"
        lines.append(f"{cameras}, {pair['queries']} queries: {_said(pair, ap)}")
    return lines


def _percent(share: float) -> float:
    return round(100 * float(share), 2)


def _two_figures(result: RetrievalResult | None) -> Figures:
    if result is None:
        return {"mAP": None, "rank1": None, "skipped": None}
    skipped = int(result.skipped_queries)
    return {"mAP": _percent(result.mAP), "rank1": _percent(result.rank(1)), "skipped": skipped}


def _said(found: Mapping[str, Any], ap: ApName) -> str:
    if found["mAP"] is None:
        return "no query has a match"
    figures = f"mAP {found['mAP']:.2f} (AP by {ap}), Rank-1 {found['rank1']:.2f}"
    return f"{figures}, {found['skipped']} skipped"
