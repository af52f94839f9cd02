"""`maskreid calibrate`: from which similarity on two images show one person."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from maskreid_dist.cli.failures import one_line_errors
from maskreid_dist.cli.options import AsJson, Cache
from maskreid_dist.errors import UserError
from maskreid_dist.terminal import Terminal, say, say_json

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TypeAlias

    import numpy as np
    from numpy.typing import NDArray

    from maskreid_dist.evaluation.calibration import Calibration
    from maskreid_dist.evaluation.calibration_check import SplitCheck
    from maskreid_dist.gallery import Extractor
    from maskreid_shards import Split

    # Features (N, D), pids and camids (N,).
    Labelled: TypeAlias = tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]


@one_line_errors
def calibrate(
    run: Annotated[
        Path, typer.Argument(help="A run directory or one of its checkpoints.", show_default=False)
    ],
    shards: Annotated[
        str,
        typer.Argument(
            help="Shards of persons that were not trained on, a folder or a URL.", show_default=False
        ),
    ],
    rate: Annotated[
        float,
        typer.Option("--false-match-rate", help="Wanted share of pairs of different persons that match."),
    ] = 0.001,
    splits: Annotated[
        list[str] | None, typer.Option("--split", help="Splits to take; repeatable. Default: query, gallery.")
    ] = None,
    cache: Cache = None,
    splits_to_check: Annotated[
        int,
        typer.Option(
            "--check-splits",
            min=0,
            help="Also fit on half of the persons and measure on the others, so many times; 0: not.",
        ),
    ] = 0,
    as_json: AsJson = False,
) -> None:
    """Find the similarity from which on two images show one person, at a wanted rate of false matches.

    Kept beside the checkpoint: `maskreid search` then prints probabilities, `maskreid evaluate` warns of
    cameras outside of it.
    """
    from dataclasses import asdict

    from maskreid_dist.evaluation.calibration import calibrate as fit
    from maskreid_dist.evaluation.calibration_check import check_lines
    from maskreid_dist.evaluation.calibration_file import calibration_path, save
    from maskreid_dist.files import check_writable
    from maskreid_dist.gallery import Extractor
    from maskreid_dist.model.checkpoint import find_checkpoint
    from maskreid_dist.model.pretrained import is_pretrained
    from maskreid_shards import open_shards

    if is_pretrained(run):  # beside it is the package
        raise UserError(
            f"{run}: a calibration is kept beside its checkpoint; copy the network into a folder of yours "
            f"first: maskreid push {run} me/mine --dry-run --output runs/mine/checkpoints/step_00000000"
        )
    checkpoint, _ = find_checkpoint(run)
    path = calibration_path(checkpoint.path)
    check_writable(path)
    opened = open_shards(shards, cache=cache)
    chosen = [opened.split(name) for name in splits or ("query", "gallery")]
    extractor = Extractor.of(checkpoint.path)
    images = _embedded(extractor, chosen)
    source = f"{opened.location} ({', '.join(split.name for split in chosen)})"
    found = fit(*images, rate, weights_sha256=extractor.model.weights_sha256, source=source)
    save(path, found)
    if not as_json:
        _print(found)
        say(f"calibration: {path.absolute()}")
    checks = _checks(images, rate, splits_to_check, source) if splits_to_check else []
    if as_json:
        say_json({**asdict(found), **({"checks": [asdict(one) for one in checks]} if checks else {})})
        return
    for line in check_lines(checks, rate) if checks else ():
        say(line)


def _embedded(extractor: "Extractor", splits: "Sequence[Split]") -> "Labelled":
    import numpy as np

    from maskreid_dist.evaluation.embed import embed_split
    from maskreid_dist.progress import progress_bar

    features = []
    for split in splits:
        with progress_bar(f"embedding {split.name}") as progress:
            features.append(
                embed_split(extractor.network, split, extractor.config, extractor.device, progress)
            )
    pids, camids = ([getattr(split, name) for split in splits] for name in ("pids", "camids"))
    return np.concatenate(features), np.concatenate(pids), np.concatenate(camids)


def _checks(images: "Labelled", rate: float, splits: int, source: str) -> "list[SplitCheck]":
    from maskreid_dist.evaluation.calibration_check import check_splits
    from maskreid_dist.progress import progress_bar

    with progress_bar("halves of the persons") as progress:
        return check_splits(*images, rate, splits, source=source, progress=progress)


def _print(found: "Calibration") -> None:
    from maskreid_dist.evaluation.calibration import LEVEL

    console = Terminal()
    console.print(_table(found))
    console.print(
        f"{found.persons} persons, {found.images} images; intervals: {100 * LEVEL:g} %, for as many other "
        "persons",
        highlight=False,
    )
    if found.too_few:
        pairs = ", ".join(f"{a} and {b}" for a, b in found.too_few)
        console.print(f"too few pairs for a threshold of their own: cameras {pairs}", highlight=False)


def _table(found: "Calibration") -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("cameras", "threshold", "false matches, %", "interval", "true matches, %", "interval"):
        table.add_column(name, justify="left" if name == "cameras" else "right")
    for one in (found.overall, *found.camera_pairs):
        intervals = one.false_match_interval, one.true_match_interval
        false, true = (f"{100 * low:.3g} to {100 * high:.3g}" for low, high in intervals)
        table.add_row(
            "all" if one.cameras is None else f"{one.cameras[0]} and {one.cameras[1]}",
            f"{one.threshold:.4f}",
            f"{100 * one.false_match_rate:.3g}",
            false,
            f"{100 * one.true_match_rate:.3g}",
            true,
        )
    return table
