"""`maskreid evaluate`: the figures of a trained network, and its report."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from maskreid_dist.cli.failures import one_line_errors
from maskreid_dist.cli.figures import Found, Protocol, publish
from maskreid_dist.cli.options import (
    Ap,
    AsJson,
    Cache,
    CameraIds,
    CameraPairs,
    DistancesOn,
    ExpandAlpha,
    ExpandQueries,
    FiguresFile,
    Intervals,
    MultipleQuery,
    RankedShards,
    ReRank,
    ReRankIndex,
    ReRankK1,
    ReRankK2,
    ReRankPower,
    ReRankWeight,
    RunOrCheckpoint,
    SingleShot,
    SingleShotSeed,
    Verification,
    expansion,
    re_ranking,
    refuse_pretrained,
)
from maskreid_dist.cli.ranks import ranking_on, share_work
from maskreid_dist.errors import UserError
from maskreid_dist.terminal import Terminal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from maskreid_dist.evaluation.evaluate import Ranked
    from maskreid_dist.evaluation.labels import Labels
    from maskreid_dist.evaluation.ranks import Ranks
    from maskreid_dist.model.checkpoint import Checkpoint
    from maskreid_dist.retrieval import RetrievalResult
    from maskreid_shards import ShardSet


@one_line_errors
def evaluate(
    checkpoint: RunOrCheckpoint,
    shards: RankedShards,
    ap: Ap = "hits",
    report: Annotated[Path | None, typer.Option(help="Write an HTML report with ranked lists here.")] = None,
    output: FiguresFile = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="Of shards without query and gallery: each image of this split is a query among its others."
        ),
    ] = None,
    best: Annotated[
        bool, typer.Option("--best", help="Of a run directory: its best checkpoint, not its newest.")
    ] = False,
    cache: Cache = None,
    cameras: CameraIds = "labels",
    intervals: Intervals = False,
    multiple_query: MultipleQuery = False,
    single_shot: SingleShot = 0,
    single_shot_seed: SingleShotSeed = 0,
    camera_pairs: CameraPairs = False,
    verification: Verification = False,
    distractors: Annotated[
        str | None, typer.Option(help="Also with galleries that grow by the images of these shards.")
    ] = None,
    sizes: Annotated[
        str | None, typer.Option(help="Of those galleries: 20k,100k,1M. Default: the largest.")
    ] = None,
    rerank: ReRank = False,
    k1: ReRankK1 = 20,
    k2: ReRankK2 = 6,
    weight: ReRankWeight = 0.3,
    power: ReRankPower = "squared",
    index: ReRankIndex = "exact",
    expand: ExpandQueries = 0,
    alpha: ExpandAlpha = 3.0,
    mask_damage: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND=N",
            help="Also with worse masks: erode=N, dilate=N, shift=N pixels, drop=N or swap=N of the images; "
            "repeatable.",
        ),
    ] = None,
    mirror: Annotated[
        bool,
        typer.Option(
            "--mirror",
            help="Also with each image's mirror image averaged in; without, where model.with_mirror is set.",
        ),
    ] = False,
    distances_on: DistancesOn = "cpu",
    as_json: AsJson = False,
    pretrained: Annotated[
        str | None, typer.Option(hidden=True, is_eager=True, callback=refuse_pretrained)
    ] = None,
) -> None:
    """Rank a gallery with a trained network: CMC, mAP (both definitions), mINP."""

    def work(ranks: "Ranks") -> None:
        from maskreid_dist.evaluation.extras import Extras
        from maskreid_dist.model.checkpoint import best_checkpoint

        ranks = ranking_on(ranks, distances_on)
        run = best_checkpoint(checkpoint) if best else checkpoint
        _check_places((report, output) if ranks.is_first else ())
        protocol = Protocol(
            ap,
            cameras,
            Extras(intervals, multiple_query, single_shot, single_shot_seed, camera_pairs, verification),
            re_ranking(k1, k2, weight, power, index) if rerank else None,
            expansion(expand, alpha),
        )
        protocol.check(alone="--split" if split else "")
        grown, damages = _grown(distractors, sizes), _damages(mask_damage or ())
        asked = Asked(run, shards, split, cache, protocol, grown, damages, mirror)
        _evaluate(asked, ranks, report, output, as_json)

    share_work(work)


@dataclass(frozen=True)
class Grown:
    """Galleries of these sizes, None: the largest, that are filled up from the shards `distractors`."""

    distractors: str
    sizes: list[int] | None


@dataclass(frozen=True)
class Asked:
    """What is to be evaluated, and how. split: whose images are the queries and the gallery."""

    run: Path
    shards: str
    split: str | None
    cache: Path | None
    protocol: Protocol
    grown: Grown | None
    damages: "Sequence[str]"
    mirror: bool


def _check_places(paths: "Sequence[Path | None]") -> None:
    from maskreid_dist.files import check_writable

    for path in paths:
        if path:
            check_writable(path)


def _damages(texts: "Sequence[str]") -> "Sequence[str]":
    from maskreid_dist.config import mask_damage

    for text in texts:
        try:
            mask_damage(text)
        except ValueError as error:
            raise UserError(f"--mask-damage {text}: {error}") from None
    return texts


def _grown(distractors: str | None, sizes: str | None) -> Grown | None:
    from maskreid_dist.evaluation.growth import parse_sizes

    if sizes and not distractors:
        raise UserError("--sizes are those of galleries with --distractors SHARDS")
    wanted = parse_sizes(sizes) if sizes else None
    return Grown(distractors, wanted) if distractors else None


def _evaluate(asked: Asked, ranks: "Ranks", report: Path | None, output: Path | None, as_json: bool) -> None:
    """All ranks embed, rank and re-rank; larger galleries, other protocols and the report are rank 0's."""
    from maskreid_dist.evaluation.evaluate import (
        checkpoint_of,
        load_network,
        name_of,
        rank_damaged,
        rank_mirrored,
        rank_network,
    )
    from maskreid_dist.evaluation.extras import extra_figures
    from maskreid_dist.evaluation.growth import embed_distractors, grown
    from maskreid_dist.evaluation.labels import check_labels, split_labels
    from maskreid_dist.evaluation.refined import refined

    console = Terminal(quiet=as_json or not ranks.is_first)
    protocol = asked.protocol
    how = protocol.ap, protocol.cameras
    shards, others = _opened(asked)
    labels = split_labels(shards, protocol.cameras)
    check_labels(labels)
    checkpoint = checkpoint_of(asked.run, console)
    _agree(ranks, checkpoint, shards, others, asked)
    network, config = load_network(checkpoint), checkpoint.config
    ranked = rank_network(name_of(checkpoint), network, config, shards, console, *how, ranks)
    other_views = rank_damaged(network, asked.damages, config, shards, console, *how, ranks)
    if asked.mirror:
        other_views |= rank_mirrored(network, config, shards, console, *how, ranks)
    more = None
    if others is not None:
        more = embed_distractors(network, others, config, console, ranks)
    rows = refined(ranked, labels, protocol.ap, protocol.rerank, protocol.expand, ranks) | other_views
    if not ranks.is_first:
        return
    growth: dict[int, RetrievalResult] = {}
    if asked.grown and more is not None:
        growth = grown(ranked, labels, more, asked.grown.sizes, protocol.ap)
    found = Found(
        ranked,
        rows,
        extra_figures(ranked, labels, protocol.extras, protocol.ap, protocol.rerank),
        growth,
        asked.split or "",
        [] if as_json else _warnings(ranked, checkpoint, shards, labels),
        shards.names.camera,
    )
    publish(found, protocol, console, as_json, output)
    if report:
        _write_report(report, found, checkpoint, shards, protocol)
        console.print(f"report: {report.absolute()}", soft_wrap=True, highlight=False)


def _opened(asked: Asked) -> "tuple[ShardSet, ShardSet | None]":
    """The shards, and those of the distractors."""
    from maskreid_shards import open_shards

    shards = open_shards(asked.shards, cache=asked.cache)
    if asked.split:
        shards = shards.against_itself(asked.split)
    elif missing := [name for name in ("query", "gallery") if name not in shards.splits]:
        raise UserError(
            f"{shards.location}: no split {' and no '.join(missing)}; --split {shards.splits[0]} takes each "
            "of its images as a query among the others"
        )
    return shards, open_shards(asked.grown.distractors, cache=asked.cache) if asked.grown else None


def _agree(
    ranks: "Ranks", checkpoint: "Checkpoint", shards: "ShardSet", others: "ShardSet | None", asked: Asked
) -> None:
    """Raise UserError on every rank where ranks would not do the same. All ranks take part."""
    if ranks.size == 1:
        return
    from maskreid_dist.training.facts import facts_of_evaluation

    opened = {"shards": shards, **({"distractors": others} if others else {})}
    saved = f"step {checkpoint.step}, weights {checkpoint.weights_sha256[:12]}"
    options = {"the checkpoint": saved, "--mask-damage": " ".join(asked.damages)}
    options |= {"--mirror": str(asked.mirror)} | asked.protocol.options
    ranks.agree(facts_of_evaluation(checkpoint.config, ranks.device, opened, options))


def _warnings(ranked: "Ranked", checkpoint: "Checkpoint", shards: "ShardSet", labels: "Labels") -> list[str]:
    from maskreid_dist.evaluation.calibration_file import load_for
    from maskreid_dist.evaluation.evaluate import ranked_doubts

    lines = []
    if labels.alone and checkpoint.shards_fingerprint == shards.split("query").fingerprint:
        lines.append("the network was trained on these images; others tell what it is worth")
    if calibration := load_for(checkpoint.path, checkpoint.weights_sha256):
        lines += ranked_doubts(calibration, ranked, labels)
    return lines


def _write_report(
    path: Path, found: Found, checkpoint: "Checkpoint", shards: "ShardSet", protocol: Protocol
) -> None:
    from maskreid_dist.evaluation.run_report import other_protocols, write_run_report

    rows = [found.ranked, *found.refined.values()]
    others = other_protocols(found.ranked, found.growth, found.extras)
    write_run_report(path, checkpoint, shards, rows, found.ranked, protocol.cameras, others)
