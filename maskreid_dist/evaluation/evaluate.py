"""Checkpoint -> embeddings -> ranking -> figures: what `maskreid evaluate` and the demo do."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from maskreid_dist.config import Config
from maskreid_dist.data.mask_damage import mean_iou
from maskreid_dist.errors import UserError
from maskreid_dist.evaluation.calibration import Calibration, doubts
from maskreid_dist.evaluation.embed import embed_share
from maskreid_dist.evaluation.histogram import HistogramBaseline, histogram_features
from maskreid_dist.evaluation.labels import Cameras, Labels, all_images, check_labels, split_labels
from maskreid_dist.evaluation.ranks import Ranks, all_rows, rows_on_first
from maskreid_dist.model import ReIDNetwork, build_network
from maskreid_dist.model.checkpoint import Checkpoint, find_checkpoint, load_weights
from maskreid_dist.progress import progress_bar
from maskreid_dist.retrieval import RetrievalResult, evaluate_retrieval
from maskreid_dist.retrieval.inputs import Features, Ids
from maskreid_dist.retrieval.result import ApName
from maskreid_shards import ShardSet, Split, decode_pair
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


def check_queries(shards: ShardSet, cameras: Cameras = "labels") -> None:
    """Raise before the long work what evaluation would raise after it: a missing split, no valid query."""
    check_labels(split_labels(shards, cameras))


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

    def embedded(split: Split) -> NDArray[np.float32]:
        work = f"{name}: {split.name}"
        with progress_bar(work, console) as progress:
            return embed_share(network, split, config, ranks, work, progress)

    query, gallery = shards.split("query"), shards.split("gallery")
    query_share = embedded(query)
    gallery_share = query_share if gallery is query else embedded(gallery)
    return rank_shares(name, query_share, gallery_share, shards, ranks, ap, cameras)


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
    query = all_rows(query, labels.queries, ranks)
    try:
        result = evaluate_retrieval(*own_sides(query, gallery, labels, ranks), ap=ap, group=ranks.group)
    except UserError:
        raise
    except ValueError as error:  # of evaluate_retrieval, the same on every rank
        raise UserError(f"{name}: {error}") from None
    return Ranked(name, query, rows_on_first(gallery, labels.images, ranks), result)


def rank_damaged(
    network: ReIDNetwork,
    damages: Sequence[str],
    config: Config,
    shards: ShardSet,
    console: Console,
    ap: ApName = "hits",
    cameras: Cameras = "labels",
    ranks: Ranks | None = None,
) -> dict[str, Ranked]:
    """`rank_network` with the masks of query and gallery made worse, once for each of `damages`
    (`data.mask_damage` of a recipe), by its text. Their names have the mean IoU with the stored masks."""
    rows = {}
    splits = [shards.split(name) for name in ("query", "gallery")]
    for damage in damages:
        data = config.data.model_copy(update={"mask_damage": damage})
        worse = config.model_copy(update={"data": data})
        name = f"masks: {damage}, IoU {mean_iou(damage, splits):.2f}"
        rows[damage] = rank_network(name, network, worse, shards, console, ap, cameras, ranks)
    return rows


def rank_mirrored(
    network: ReIDNetwork,
    config: Config,
    shards: ShardSet,
    console: Console,
    ap: ApName = "hits",
    cameras: Cameras = "labels",
    ranks: Ranks | None = None,
) -> dict[str, Ranked]:
    """`rank_network` with each image's mirror image averaged in where the recipe (`model.with_mirror`) leaves
    it out, and the other way round; by "with_mirror" or "without_mirror"."""
    own = network.with_mirror
    key = "without_mirror" if own else "with_mirror"
    network.with_mirror = not own
    try:
        name = f"{key.replace('_', ' ')} images"
        return {key: rank_network(name, network, config, shards, console, ap, cameras, ranks)}
    finally:
        network.with_mirror = own


def own_sides(
    query: NDArray[np.float32], own_gallery: NDArray[np.float32], labels: Labels, ranks: Ranks
) -> tuple[Features, Ids, Ids, Features, Ids, Ids]:
    """What an evaluation over ranks takes: all queries, which say by their device where distances are made,
    and this rank's part of the gallery."""
    pids, camids = (ids[ranks.rows(labels.images)] for ids in labels.gallery)
    on_host = ranks.distances_on.type == "cpu"
    queries: Features = query if on_host else torch.tensor(query, device=ranks.distances_on)
    return queries, *labels.query, own_gallery, pids, camids


def rank_histograms(shards: ShardSet, baselines: Sequence[HistogramBaseline]) -> list[Ranked]:
    """Colour histograms, no training; every image is decoded once for all of them."""
    features: list[list[NDArray[np.float32]]] = [[] for _ in baselines]
    for split in (shards.split("query"), shards.split("gallery")):
        pairs = [decode_pair(raw) for raw in split.read_many(np.arange(len(split)))]
        images, masks = [image for image, _ in pairs], [mask for _, mask in pairs]
        for found, one in zip(features, baselines, strict=True):
            found.append(histogram_features(images, masks if one.masked else None, stripes=one.stripes))
    named = zip(baselines, features, strict=True)
    return [rank_gallery(one.name, query, gallery, shards) for one, (query, gallery) in named]


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
    return f"{checkpoint.config.name}, step {checkpoint.step}{views(checkpoint.config)}"


def views(config: Config) -> str:
    """What a method's name adds where an embedding is of two images."""
    return ", with mirror images" if config.model.with_mirror else ""


def evaluate_checkpoint(
    path: Path, shards: ShardSet, console: Console, ap: ApName = "hits", cameras: Cameras = "labels"
) -> tuple[Checkpoint, Ranked]:
    """Rank the gallery of `shards` with the newest usable checkpoint of `path`."""
    check_queries(shards, cameras)
    checkpoint = checkpoint_of(path, console)
    network = load_network(checkpoint)
    ranked = rank_network(name_of(checkpoint), network, checkpoint.config, shards, console, ap, cameras)
    return checkpoint, ranked


def ranked_doubts(calibration: Calibration, ranked: Ranked, labels: Labels) -> list[str]:
    """Where the images of both splits lie outside the network's calibration."""
    images = all_images(ranked.query, ranked.gallery, labels)
    return doubts(calibration, images.features, images.pids, images.camids)


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
