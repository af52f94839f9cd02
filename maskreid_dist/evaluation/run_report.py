"""A checkpoint's evaluation as something to look at: the HTML report, and a picture beside it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from maskreid_dist.evaluation.activations import drawn, responses
from maskreid_dist.evaluation.calibration_file import load_for
from maskreid_dist.evaluation.evaluate import Ranked, load_network, percentages
from maskreid_dist.evaluation.extras import Figures, extra_lines
from maskreid_dist.evaluation.labels import Cameras, Labels, all_images, split_labels
from maskreid_dist.evaluation.ranked_pictures import chosen_queries, ranked_queries
from maskreid_dist.evaluation.report_facts import recipe_json, report_facts
from maskreid_dist.evaluation.report_figures import distances, embedding_map
from maskreid_dist.model.checkpoint import Checkpoint
from maskreid_dist.report import RunReport, ranked_list_figure, write_report
from maskreid_dist.report.html import CameraPairRow, Distances, EmbeddingMap, StreamMaps
from maskreid_dist.report.protocols import OtherProtocols
from maskreid_dist.retrieval import RetrievalResult
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
    protocols: OtherProtocols | None = None,
) -> None:
    """The HTML report, and beside it `<name>.png` with one ranked list of each kind.

    rows: the methods of the table; shown: the one whose ranked lists are drawn. The training curves are
    those of the run that the checkpoint belongs to.
    """
    labels = split_labels(shards, cameras)
    chosen = chosen_queries(shown, labels, shards.names, EACH, MOST_QUERIES)
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
        distances=_distances(checkpoint, shown, labels),
        protocols=protocols,
        camera_pairs=_camera_pairs(shown, labels, shards.names) if cameras == "labels" else (),
        embedding_map=_map(shards, shown, labels),
        streams=_streams(checkpoint, shards, {name: chosen[name][:2] for name in LOOKED_AT}),
    )
    write_report(path, report)
    firsts = [next(query for query in ranked if query.heading == name) for name in LOOKED_AT if chosen[name]]
    ranked_list_figure(firsts, path.with_suffix(".png"))


def other_protocols(shown: Ranked, growth: Mapping[int, RetrievalResult], extras: Figures) -> OtherProtocols:
    """For the report, of `growth.grown` and `extras.extra_figures`. Pairs of cameras have their own part."""
    lines = extra_lines(
        {key: found for key, found in extras.items() if key != "camera_pairs"}, shown.result.ap
    )
    sizes = {len(shown.gallery): shown.result, **growth} if growth else {}
    roc = extras.get("roc", {})
    return OtherProtocols(
        lines=lines,
        growth=[(size, percentages(result)) for size, result in sorted(sizes.items())],
        false_match_rates=roc.get("false_match_rate", ()),
        true_match_rates=roc.get("true_match_rate", ()),
    )


def _distances(checkpoint: Checkpoint, shown: Ranked, labels: Labels) -> Distances | str:
    images = all_images(shown.query, shown.gallery, labels)
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


def _map(shards: ShardSet, shown: Ranked, labels: Labels) -> EmbeddingMap:
    images = all_images(shown.query, shown.gallery, labels)
    splits = [shards.split(name) for name in ("query", "gallery")][: 1 if labels.alone else 2]
    names = [f"{split.name} {key.decode()}" for split in splits for key in split.keys.tolist()]
    return embedding_map(images.features, images.pids, names, shards.names)


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
