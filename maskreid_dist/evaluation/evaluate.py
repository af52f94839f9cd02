"""Checkpoint -> embeddings -> ranking -> figures: what `maskreid evaluate` and the demo do."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from maskreid_dist.config import Config
from maskreid_dist.errors import UserError
from maskreid_dist.evaluation.calibration import Calibration, doubts
from maskreid_dist.evaluation.embed import embed_share
from maskreid_dist.evaluation.histogram import histogram_features
from maskreid_dist.evaluation.ranks import Ranks, all_rows, rows_on_first
from maskreid_dist.model import ReIDNetwork, build_network
from maskreid_dist.model.checkpoint import Checkpoint, find_checkpoint, load_weights
from maskreid_dist.progress import progress_bar
from maskreid_dist.retrieval import (
    ReRanking,
    RetrievalError,
    RetrievalResult,
    evaluate_reranked,
    evaluate_retrieval,
    expand_queries,
)
from maskreid_dist.retrieval.intervals import bootstrap_intervals
from maskreid_dist.retrieval.protocols import camera_pairs, cameras_of_keys, pool_queries, single_shot_cmc
from maskreid_dist.retrieval.result import ApName
from maskreid_dist.retrieval.verification import count_similarities, named_images, true_match_rates
from maskreid_shards import ShardSet, decode_pair
from maskreid_shards.atomic import write_atomically

COLUMNS = {
    "mAP_hits": "mAP\nhits",
    "mAP_trapezoid": "mAP\ntrapez.",
    "rank1": "Rank-1",
    "rank5": "Rank-5",
    "rank10": "Rank-10",
    "mINP": "mINP",
}


@dataclass(frozen=True)
class Ranked:
    """A named way of describing images, its features of query (Q, D) and gallery
    (G, D), and how well they rank."""

    name: str
    query: NDArray[np.float32]
    gallery: NDArray[np.float32]
    result: RetrievalResult


Cameras = Literal["labels", "none"]


def rank_gallery(
    name: str,
    query: NDArray[np.float32],
    gallery: NDArray[np.float32],
    shards: ShardSet,
    ap: ApName = "hits",
    cameras: Cameras = "labels",
) -> Ranked:
    """Evaluate features of the splits `query` and `gallery`, in the splits' order."""
    labels = split_labels(shards, cameras)
    result = evaluate_retrieval(query, *labels.query, gallery, *labels.gallery, ap=ap)
    return Ranked(name, query, gallery, result)


@dataclass(frozen=True, eq=False)
class Labels:
    """(pids, camids) of the splits query and gallery."""

    query: tuple[NDArray[np.int64], NDArray[np.int64]]
    gallery: tuple[NDArray[np.int64], NDArray[np.int64]]


def split_labels(shards: ShardSet, cameras: Cameras) -> Labels:
    """cameras "none": camera ids are passed over; of a query's identity only its own image, by key, is left
    out."""
    query, gallery = shards.split("query"), shards.split("gallery")
    camids = query.camids, gallery.camids
    if cameras == "none":
        camids = cameras_of_keys(query.keys, gallery.keys)
    return Labels((query.pids, camids[0]), (gallery.pids, camids[1]))


def check_queries(shards: ShardSet, cameras: Cameras = "labels") -> None:
    """Raise before the long work what evaluation would raise after it: a missing split, no valid query."""
    labels = split_labels(shards, cameras)
    seen: dict[int, set[int]] = {}
    for pid, camid in zip(*(ids.tolist() for ids in labels.gallery), strict=True):
        seen.setdefault(pid, set()).add(camid)
    pairs = zip(*(ids.tolist() for ids in labels.query), strict=True)
    if not any(seen.get(pid, set()) - {camid} for pid, camid in pairs):
        if cameras == "none":
            raise RetrievalError(
                "no query has a match: the gallery holds no other image of any query's person"
            )
        empty = [np.ones((len(shards.split(name)), 1), np.float32) for name in ("query", "gallery")]
        rank_gallery("no features", empty[0], empty[1], shards)  # its error says why no query is valid


def rank_network(
    name: str,
    network: ReIDNetwork,
    config: Config,
    shards: ShardSet,
    console: Console,
    ap: ApName = "hits",
    cameras: Cameras = "labels",
    ranks: Ranks | None = None,
) -> Ranked:
    """Embed both splits, with a progress bar, and evaluate. All of `ranks` take part: each has the figures of
    one process, and rank 0 the features of the whole gallery, others those of their share."""
    ranks = ranks or Ranks()
    features = []
    for split_name in ("query", "gallery"):
        with progress_bar(f"{name}: {split_name}", console) as progress:
            features.append(
                embed_share(network, shards.split(split_name), config, ranks, split_name, progress)
            )
    return rank_shares(name, features[0], features[1], shards, ranks, ap, cameras)


def rank_shares(
    name: str,
    query: NDArray[np.float32],
    gallery: NDArray[np.float32],
    shards: ShardSet,
    ranks: Ranks,
    ap: ApName,
    cameras: Cameras,
) -> Ranked:
    """`rank_gallery` of features that each of `ranks` has its `Ranks.rows` of. All take part.

    Raises UserError, on every rank, for features that are not finite.
    """
    ranks.wait()
    labels = split_labels(shards, cameras)
    rows = ranks.rows(len(labels.gallery[0]))
    query = all_rows(query, len(labels.query[0]), ranks)
    pids, camids = (ids[rows] for ids in labels.gallery)
    sides = query, *labels.query, gallery, pids, camids
    try:
        result = evaluate_retrieval(*sides, ap=ap, group=ranks.group)
    except UserError:
        raise
    except ValueError as error:  # of evaluate_retrieval, the same on every rank
        raise UserError(f"{name}: {error}") from None
    return Ranked(name, query, rows_on_first(gallery, len(labels.gallery[0]), ranks), result)


def rank_histogram(name: str, shards: ShardSet, stripes: int, masked: bool) -> Ranked:
    """Colour histograms of the whole images, no training."""
    features = []
    for split in (shards.split("query"), shards.split("gallery")):
        pairs = [decode_pair(raw) for raw in split.read_many(np.arange(len(split)))]
        masks = [mask for _, mask in pairs] if masked else None
        features.append(histogram_features([image for image, _ in pairs], masks, stripes=stripes))
    return rank_gallery(name, features[0], features[1], shards)


def load_network(checkpoint: Checkpoint) -> ReIDNetwork:
    """The checkpoint's network with its weights, ready to embed."""
    network = build_network(checkpoint.config, checkpoint.classes)
    load_weights(network, checkpoint)
    return network


def checkpoint_of(path: Path, console: Console) -> Checkpoint:
    """The newest usable checkpoint of `path`; a line for each that was passed over."""
    checkpoint, passed_over = find_checkpoint(path)
    for line in passed_over:
        console.print(f"warning: passed over {line}", highlight=False)
    return checkpoint


def name_of(checkpoint: Checkpoint) -> str:
    return f"{checkpoint.config.name}, step {checkpoint.step}"


def evaluate_checkpoint(
    path: Path, shards: ShardSet, console: Console, ap: ApName = "hits", cameras: Cameras = "labels"
) -> tuple[Checkpoint, Ranked]:
    """Rank the gallery of `shards` with the newest usable checkpoint of `path`."""
    check_queries(shards, cameras)
    checkpoint = checkpoint_of(path, console)
    network = load_network(checkpoint)
    ranked = rank_network(name_of(checkpoint), network, checkpoint.config, shards, console, ap, cameras)
    return checkpoint, ranked


def refined(
    ranked: Ranked,
    shards: ShardSet,
    ap: ApName,
    cameras: Cameras,
    rerank: ReRanking | None = None,
    expand: int = 0,
) -> dict[str, Ranked]:
    """The same features, ranked with what is asked for: "expanded", queries plus their `expand` nearest;
    "reranked"; "expanded_reranked" where both are."""
    labels = split_labels(shards, cameras)
    rows: dict[str, Ranked] = {}
    if expand:
        query = expand_queries(ranked.query, ranked.gallery, k=expand)
        name = f"queries + {expand} nearest"
        rows["expanded"] = rank_gallery(name, query, ranked.gallery, shards, ap, cameras)
    if rerank:
        text = f"re-ranked {rerank.k1}, {rerank.k2}, {rerank.weight:g}"  # short: six figures stand beside it
        text += ", d^4" if rerank.power == "fourth" else ""
        for key, before in [("", ranked), *((f"{key}_", row) for key, row in list(rows.items()))]:
            sides = before.query, *labels.query, before.gallery, *labels.gallery
            result = evaluate_reranked(*sides, rerank, ap=ap)
            name = f"{before.name}, re-ranked" if key else text
            rows[f"{key}reranked"] = Ranked(name, before.query, before.gallery, result)
    return rows


def ranked_doubts(calibration: Calibration, ranked: Ranked, shards: ShardSet) -> list[str]:
    """Where the images of both splits lie outside the network's calibration."""
    query, gallery = shards.split("query"), shards.split("gallery")
    features = np.concatenate([ranked.query, ranked.gallery])
    pids = np.concatenate([query.pids, gallery.pids])
    return doubts(calibration, features, pids, np.concatenate([query.camids, gallery.camids]))


FALSE_MATCH_RATES = (0.1, 0.01, 0.001, 0.0001)


@dataclass(frozen=True)
class Extras:
    """Protocols beside the usual figures, each as a flag of `maskreid evaluate`."""

    multiple_query: bool = False
    single_shot: int = 0
    camera_pairs: bool = False
    intervals: bool = False
    verification: bool = False


def print_extras(
    console: Console, ranked: Ranked, shards: ShardSet, extras: Extras, ap: ApName, cameras: Cameras
) -> None:
    """Each protocol asked for, by name, in per cent."""
    labels = split_labels(shards, cameras)
    query, gallery = (ranked.query, *labels.query), (ranked.gallery, *labels.gallery)
    if extras.intervals:
        found = bootstrap_intervals(ranked.result, ranks=(1, 5))
        texts = [f"{name} {100 * low:.2f} to {100 * high:.2f}" for name, (low, high) in found.items()]
        console.print(
            f"95 % intervals, queries resampled 1000 times, AP by {ap}: {', '.join(texts)}", highlight=False
        )
    if extras.multiple_query:
        pooled = pool_queries(*query)
        result = evaluate_retrieval(*pooled, *gallery, ap=ap)
        _print_figures(console, f"multiple query, {len(pooled[1])} queries", result)
    if extras.single_shot:
        curve = single_shot_cmc(*query, *gallery, repeats=extras.single_shot)
        texts = [f"Rank-{k} {100 * curve[k - 1]:.2f}" for k in (1, 5, 10)]
        console.print(f"single gallery shot, {extras.single_shot} draws: {', '.join(texts)}", highlight=False)
    if extras.verification:
        pids, camids = (np.concatenate([labels.query[n], labels.gallery[n]]) for n in range(2))
        images = named_images(np.concatenate([ranked.query, ranked.gallery]), pids, camids)
        rates = true_match_rates(count_similarities(images), FALSE_MATCH_RATES)
        texts = [
            f"{100 * rate:g} %: " + ("too few pairs" if found is None else f"{100 * found:.2f}")
            for rate, found in zip(FALSE_MATCH_RATES, rates, strict=True)
        ]
        console.print(f"pairs: true match rate at a false match rate of {', '.join(texts)}", highlight=False)
    if extras.camera_pairs:
        for pair in camera_pairs(*query, *gallery, ap=ap):
            name = f"camera {pair.query_camera} to camera {pair.gallery_camera}, {pair.queries} queries"
            _print_figures(console, name, pair.result)


def _print_figures(console: Console, name: str, result: RetrievalResult | None) -> None:
    figures = "no query has a match"
    if result:
        figures = f"mAP {100 * result.mAP:.2f} (AP by {result.ap}), Rank-1 {100 * result.rank(1):.2f}"
        figures += f", {result.skipped_queries} skipped"
    console.print(f"{name}: {figures}", highlight=False)


def print_table(console: Console, rows: Sequence[Ranked]) -> None:
    """The figures of several methods, in per cent."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("")  # wraps before a figure is cut
    for title in COLUMNS.values():
        table.add_column(title, justify="right", vertical="bottom", no_wrap=True)
    for row in rows:
        figures = percentages(row.result)
        table.add_row(row.name, *(f"{figures[key]:.2f}" for key in COLUMNS))
    console.print(table)


def percentages(result: RetrievalResult) -> dict[str, float]:
    """The six figures in per cent, as `print_table` shows them, to two places."""
    return {key: round(100 * value, 2) for key, value in result.metrics().items()}


def write_json(path: Path, value: object) -> None:
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())
