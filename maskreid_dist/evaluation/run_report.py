"""A checkpoint's evaluation as something to look at: the HTML report, and a picture beside it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from maskreid_dist.evaluation.activations import drawn, responses
from maskreid_dist.evaluation.calibration_file import load_for
from maskreid_dist.evaluation.evaluate import (
    Cameras,
    Labels,
    Ranked,
    all_images,
    load_network,
    percentages,
    split_labels,
)
from maskreid_dist.evaluation.ranked_pictures import chosen_queries, ranked_queries
from maskreid_dist.evaluation.report_facts import recipe_json, report_facts
from maskreid_dist.evaluation.report_figures import distances, embedding_map
from maskreid_dist.model.checkpoint import Checkpoint
from maskreid_dist.report import RunReport, ranked_list_figure, write_report
from maskreid_dist.report.html import CameraPairRow, Distances, EmbeddingMap, StreamMaps
from maskreid_dist.retrieval.protocols import camera_pairs
from maskreid_dist.run_directory import METRICS
from maskreid_shards import ShardSet, SourceNames, decode_pair

EACH = 5  # queries shown of the hardest, the median and the easiest of all
MOST_QUERIES = 48
LOOKED_AT = ("hardest", "median", "easiest")  # two of each with the streams' maps


def write_run_report(
    path: Path,
    checkpoint: Checkpoint,
    shards: ShardSet,
    rows: Sequence[Ranked],
    shown: Ranked,
    cameras: Cameras = "labels",
) -> None:
    """The HTML report, and beside it `<name>.png` with one ranked list of each kind.

    rows: the methods of the table; shown: the one whose ranked lists are drawn. The training curves are
    those of the run that the checkpoint belongs to.
    """
    labels = split_labels(shards, cameras)
    chosen = chosen_queries(shown, labels, EACH, MOST_QUERIES)
    ranked = ranked_queries(shown, shards, labels, chosen)
    ap_Q = shown.result.average_precision
    report = RunReport(
        title=f"MaskReID: {checkpoint.config.name}",
        table=[(row.name, percentages(row.result)) for row in rows],
        metrics=checkpoint.path.parent.parent / METRICS,
        ranked=ranked,
        facts=report_facts(checkpoint, shards, shown, cameras),
        recipe=recipe_json(checkpoint.config),
        cmc={row.name: row.result.cmc.tolist() for row in rows[-4:]},
        average_precisions=ap_Q[~np.isnan(ap_Q)].tolist(),
        distances=_distances(checkpoint, shards, shown, cameras),
        camera_pairs=_camera_pairs(shown, labels, shards.names) if cameras == "labels" else (),
        embedding_map=_map(shards, shown),
        streams=_streams(checkpoint, shards, {name: chosen[name][:2] for name in LOOKED_AT}),
    )
    write_report(path, report)
    firsts = [next(query for query in ranked if query.heading == name) for name in LOOKED_AT if chosen[name]]
    ranked_list_figure(firsts, path.with_suffix(".png"))


def _distances(checkpoint: Checkpoint, shards: ShardSet, shown: Ranked, cameras: Cameras) -> Distances | str:
    images = all_images(shown, shards, cameras)
    calibration = load_for(checkpoint.path, checkpoint.weights_sha256)
    return distances(images.features, images.pids, images.camids, calibration)


def _camera_pairs(shown: Ranked, labels: Labels, names: SourceNames) -> list[CameraPairRow]:
    """The hardest first, those without a match last."""
    pairs = camera_pairs(shown.query, *labels.query, shown.gallery, *labels.gallery, ap=shown.result.ap)
    rows = [
        CameraPairRow(
            names.camera(pair.query_camera),
            names.camera(pair.gallery_camera),
            pair.queries,
            100 * pair.result.mAP if pair.result else None,
            100 * pair.result.rank(1) if pair.result else None,
        )
        for pair in pairs
    ]
    return sorted(rows, key=lambda row: (row.mAP is None, row.mAP or 0.0))


def _map(shards: ShardSet, shown: Ranked) -> EmbeddingMap:
    images = all_images(shown, shards)
    return embedding_map(images.features, images.pids, images.names, shards.names)


def _streams(checkpoint: Checkpoint, shards: ShardSet, chosen: dict[str, list[int]]) -> list[StreamMaps]:
    rows = [(heading, row) for heading, numbers in chosen.items() for row in numbers]
    raws = shards.split("query").read_many([row for _, row in rows])
    network, names = load_network(checkpoint).eval(), shards.names
    found = responses(network, checkpoint.config, [decode_pair(raw) for raw in raws])
    return [
        StreamMaps(
            f"{heading} · {raw.key} · {names.person(raw.pid)}, camera {names.camera(raw.camid)}",
            drawn(response),
        )
        for (heading, _), raw, response in zip(rows, raws, found, strict=True)
    ]
