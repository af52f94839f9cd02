"""A checkpoint's evaluation as pictures: which queries are shown, and the facts printed beside them."""

import platform
from collections.abc import Sequence
from pathlib import Path

import torch

from maskreid_dist import __version__
from maskreid_dist.data.transforms import cut_out
from maskreid_dist.evaluation.evaluate import Cameras, Labels, Ranked, percentages, split_labels
from maskreid_dist.model.checkpoint import Checkpoint
from maskreid_dist.report import RankedImage, RankedQuery, ranked_list_figure, select_queries, write_report
from maskreid_dist.retrieval import rank_list
from maskreid_dist.run_directory import METRICS
from maskreid_shards import ShardSet, Split, decode_pair

EACH = 3  # queries shown of the hardest, the median and the easiest
TOP = 10


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
    chosen = select_queries(shown.result.average_precision, each=EACH)
    ranked = [
        query
        for heading, numbers in chosen.items()
        for query in _ranked_queries(shown, shards, split_labels(shards, cameras), heading, numbers)
    ]
    run = checkpoint.path.parent.parent
    write_report(
        path,
        title=f"MaskReID: {checkpoint.config.name}",
        table=[(row.name, percentages(row.result)) for row in rows],
        curves=run / METRICS,
        ranked=ranked,
        facts={
            "Steps": f"{checkpoint.step} on {checkpoint.world_size} ranks",
            "Loss": checkpoint.config.loss.name,
            "Shards": f"{shards.location} ({shards.fingerprint[:12]})",
            "Queries": f"{shown.result.valid_queries} valid, {shown.result.skipped_queries} skipped",
            "Cameras": "the query's camera left out"
            if cameras == "labels"
            else "none: only the query's own image left out",
            "Device": torch.cuda.get_device_name()
            if torch.cuda.is_available()
            else f"CPU, {platform.machine()}",
            "Versions": f"maskreid_dist {__version__}, torch {torch.__version__}, Python "
            f"{platform.python_version()}",
        },
    )
    ranked_list_figure(ranked[::EACH], path.with_suffix(".png"))


def _ranked_queries(
    shown: Ranked, shards: ShardSet, labels: Labels, heading: str, numbers: Sequence[int]
) -> list[RankedQuery]:
    query, gallery = shards.split("query"), shards.split("gallery")
    lists = rank_list(
        shown.query,
        *labels.query,
        shown.gallery,
        *labels.gallery,
        queries=numbers,
        top=TOP,
    )
    pictures = []
    for number, found in zip(numbers, lists, strict=True):
        raw = query.read(number)
        image, mask = decode_pair(raw)
        places = zip(found.gallery_index, found.distance, found.correct, strict=True)
        pictures.append(
            RankedQuery(
                heading=heading,
                image=image,
                masked=cut_out(image, mask),
                pid=raw.pid,
                camid=raw.camid,
                key=raw.key,
                average_precision=float(shown.result.average_precision[number]),
                ranked=tuple(_ranked_image(gallery, int(g), float(d), bool(c)) for g, d, c in places),
            )
        )
    return pictures


def _ranked_image(gallery: Split, number: int, distance: float, correct: bool) -> RankedImage:
    raw = gallery.read(number)
    return RankedImage(decode_pair(raw)[0], distance, correct, raw.pid, raw.camid, raw.key)
