"""Protocols beside the usual figures, each a flag of `maskreid evaluate`: as figures, and as lines."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from maskreid_dist.evaluation.evaluate import Cameras, Ranked, all_images, split_labels
from maskreid_dist.retrieval import RetrievalResult, evaluate_retrieval
from maskreid_dist.retrieval.intervals import bootstrap_intervals
from maskreid_dist.retrieval.protocols import camera_pairs, pool_queries, single_shot_cmc
from maskreid_dist.retrieval.result import ApName
from maskreid_dist.retrieval.verification import count_similarities, named_images, true_match_rates
from maskreid_shards import ShardSet

FALSE_MATCH_RATES = (0.1, 0.01, 0.001, 0.0001)
Figures = dict[str, Any]  # in per cent, for JSON


@dataclass(frozen=True)
class Extras:
    multiple_query: bool = False
    single_shot: int = 0
    camera_pairs: bool = False
    intervals: bool = False
    verification: bool = False


def extra_figures(ranked: Ranked, shards: ShardSet, extras: Extras, ap: ApName, cameras: Cameras) -> Figures:
    """What was asked for, by the protocol's name. None: no query has a match, or there are too few pairs."""
    labels = split_labels(shards, cameras)
    query, gallery = (ranked.query, *labels.query), (ranked.gallery, *labels.gallery)
    figures: Figures = {}
    if extras.intervals:
        found = bootstrap_intervals(ranked.result, ranks=(1, 5))
        figures["intervals"] = {name: [_percent(low), _percent(high)] for name, (low, high) in found.items()}
    if extras.multiple_query:
        pooled = pool_queries(*query)
        result = evaluate_retrieval(*pooled, *gallery, ap=ap)
        figures["multiple_query"] = {"queries": len(pooled[1]), **_two_figures(result)}
    if extras.single_shot:
        curve = single_shot_cmc(*query, *gallery, repeats=extras.single_shot)
        ranks = {f"rank{k}": _percent(curve[k - 1]) for k in (1, 5, 10)}
        figures["single_shot"] = {"draws": extras.single_shot, **ranks}
    if extras.verification:
        images = all_images(ranked, shards, cameras)
        named = named_images(images.features, images.pids, images.camids)
        rates = true_match_rates(count_similarities(named), FALSE_MATCH_RATES)
        pairs = zip(FALSE_MATCH_RATES, rates, strict=True)
        shares = {f"{100 * rate:g}": None if one is None else _percent(one) for rate, one in pairs}
        figures["true_match_rate_at_false_match_rate"] = shares
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


def extra_lines(figures: Mapping[str, Any], ap: ApName) -> list[str]:
    """The same for people."""
    lines = []
    if found := figures.get("intervals"):
        texts = [f"{name} {low:.2f} to {high:.2f}" for name, (low, high) in found.items()]
        lines.append(f"95 % intervals, queries resampled 1000 times, AP by {ap}: {', '.join(texts)}")
    if found := figures.get("multiple_query"):
        lines.append(f"multiple query, {found['queries']} queries: {_said(found, ap)}")
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
        cameras = f"camera {pair['query_camera']} to camera {pair['gallery_camera']}"
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
