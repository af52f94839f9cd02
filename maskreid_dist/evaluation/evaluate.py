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
from maskreid_dist.evaluation.embed import embed_split
from maskreid_dist.evaluation.histogram import histogram_features
from maskreid_dist.model import MaskReID, build_network
from maskreid_dist.model.checkpoint import Checkpoint, find_checkpoint, load_weights
from maskreid_dist.progress import progress_bar
from maskreid_dist.retrieval import RetrievalResult, evaluate_retrieval
from maskreid_dist.retrieval.result import ApName
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


def rank_gallery(
    name: str, query: NDArray[np.float32], gallery: NDArray[np.float32], shards: ShardSet, ap: ApName = "hits"
) -> Ranked:
    """Evaluate features of the splits `query` and `gallery`, in the splits' order."""
    q, g = shards.split("query"), shards.split("gallery")
    result = evaluate_retrieval(query, q.pids, q.camids, gallery, g.pids, g.camids, ap=ap)
    return Ranked(name, query, gallery, result)


def check_queries(shards: ShardSet) -> None:
    """Raise before the long work what evaluation would raise after it: a missing split, no valid query."""
    query, gallery = shards.split("query"), shards.split("gallery")
    cameras: dict[int, set[int]] = {}
    for pid, camid in zip(gallery.pids.tolist(), gallery.camids.tolist(), strict=True):
        cameras.setdefault(pid, set()).add(camid)
    pairs = zip(query.pids.tolist(), query.camids.tolist(), strict=True)
    if not any(cameras.get(pid, set()) - {camid} for pid, camid in pairs):
        empty = [np.ones((len(split), 1), np.float32) for split in (query, gallery)]
        rank_gallery("no features", empty[0], empty[1], shards)  # its error says why no query is valid


def rank_network(
    name: str, network: MaskReID, config: Config, shards: ShardSet, console: Console, ap: ApName = "hits"
) -> Ranked:
    """Embed both splits, with a progress bar, and evaluate."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    features = []
    for split_name in ("query", "gallery"):
        with progress_bar(f"{name}: {split_name}", console) as progress:
            features.append(embed_split(network, shards.split(split_name), config, device, progress))
    return rank_gallery(name, features[0], features[1], shards, ap)


def rank_histogram(name: str, shards: ShardSet, stripes: int, masked: bool) -> Ranked:
    """Colour histograms of the whole images, no training."""
    features = []
    for split in (shards.split("query"), shards.split("gallery")):
        pairs = [decode_pair(raw) for raw in split.read_many(np.arange(len(split)))]
        masks = [mask for _, mask in pairs] if masked else None
        features.append(histogram_features([image for image, _ in pairs], masks, stripes=stripes))
    return rank_gallery(name, features[0], features[1], shards)


def load_network(checkpoint: Checkpoint) -> MaskReID:
    """The checkpoint's network with its weights, ready to embed."""
    network = build_network(checkpoint.config, checkpoint.classes)
    load_weights(network, checkpoint)
    return network


def evaluate_checkpoint(
    path: Path, shards: ShardSet, console: Console, ap: ApName = "hits"
) -> tuple[Checkpoint, Ranked]:
    """Rank the gallery of `shards` with the newest usable checkpoint of `path`."""
    check_queries(shards)
    checkpoint, passed_over = find_checkpoint(path)
    for line in passed_over:
        console.print(f"warning: passed over {line}", highlight=False)
    network = load_network(checkpoint)
    name = f"{checkpoint.config.name}, step {checkpoint.step}"
    return checkpoint, rank_network(name, network, checkpoint.config, shards, console, ap)


def print_table(console: Console, rows: Sequence[Ranked]) -> None:
    """The figures of several methods, in per cent."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("", no_wrap=True)
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
