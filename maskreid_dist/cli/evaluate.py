"""`maskreid evaluate`: the figures of a trained network, and its report."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from maskreid_dist.cli.failures import one_line_errors
from maskreid_dist.cli.options import (
    AsJson,
    Cache,
    CameraIds,
    DistancesOn,
    FiguresFile,
    RankedShards,
    ReRank,
    ReRankIndex,
    ReRankK1,
    ReRankK2,
    ReRankPower,
    ReRankWeight,
    RunOrCheckpoint,
    re_ranking,
)
from maskreid_dist.cli.ranks import ranking_on, share_work
from maskreid_dist.errors import UserError
from maskreid_dist.terminal import Terminal, say_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from maskreid_dist.evaluation.evaluate import Ranked
    from maskreid_dist.evaluation.extras import Extras, Figures
    from maskreid_dist.evaluation.ranks import Ranks
    from maskreid_dist.model.checkpoint import Checkpoint
    from maskreid_dist.retrieval import ReRanking, RetrievalResult
    from maskreid_shards import ShardSet


@one_line_errors
def evaluate(
    checkpoint: RunOrCheckpoint,
    shards: RankedShards,
    ap: Annotated[
        Literal["hits", "trapezoid"],
        typer.Option(help="Definition of AP that orders the queries of the report."),
    ] = "hits",
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
    intervals: Annotated[
        bool, typer.Option("--intervals", help="95 % bootstrap intervals over queries.")
    ] = False,
    multiple_query: Annotated[
        bool, typer.Option("--multiple-query", help="Also with the queries of a person and camera averaged.")
    ] = False,
    single_shot: Annotated[
        int, typer.Option(min=0, help="Also CMC with one gallery image a person: draws to average; 0: not.")
    ] = 0,
    camera_pairs: Annotated[
        bool, typer.Option("--camera-pairs", help="Also every pair of cameras by itself.")
    ] = False,
    verification: Annotated[
        bool,
        typer.Option("--verification", help="Also true match rates over pairs."),
    ] = False,
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
    expand: Annotated[
        int,
        typer.Option(
            "--expand-queries", min=0, help="Also with each query plus its K nearest images; 0: not."
        ),
    ] = 0,
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
) -> None:
    """Rank a gallery with a trained network: CMC, mAP (both definitions), mINP."""

    def work(ranks: "Ranks") -> None:
        from maskreid_dist.evaluation.extras import Extras
        from maskreid_dist.model.checkpoint import best_checkpoint

        ranks = ranking_on(ranks, distances_on)
        run = best_checkpoint(checkpoint) if best else checkpoint
        _check_places((report, output) if ranks.is_first else ())
        options = re_ranking(k1, k2, weight, power, index) if rerank else None
        if cameras == "none" and (multiple_query or camera_pairs):
            raise UserError("--multiple-query and --camera-pairs need camera ids: leave out --cameras none")
        if split and (rerank or expand):
            # A query's own image would be its nearest neighbour, twice.
            raise UserError(
                "--rerank and --expand-queries need a gallery apart from the queries: not --split"
            )
        extras = Extras(multiple_query, single_shot, camera_pairs, intervals, verification)
        grown = _grown(distractors, sizes)
        damages = _damages(mask_damage or ())
        how = ap, cameras, extras, options, expand, grown, damages, mirror
        asked = Asked(run, shards, split, cache, *how)
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
    ap: Literal["hits", "trapezoid"]
    cameras: Literal["labels", "none"]
    extras: "Extras"
    rerank: "ReRanking | None"
    expand: int
    grown: Grown | None
    damages: "Sequence[str]"
    mirror: bool


@dataclass(frozen=True)
class Evaluated:
    """refined: what is asked for besides, by name: the same features ranked otherwise, features of worse
    masks; growth: by size of the gallery; extras: of other protocols."""

    checkpoint: "Checkpoint"
    shards: "ShardSet"
    ranked: "Ranked"
    refined: "dict[str, Ranked]"
    growth: "dict[int, RetrievalResult]"
    extras: "Figures"


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
    from maskreid_dist.evaluation.evaluate import write_json

    console = Terminal(quiet=as_json or not ranks.is_first)
    found = _evaluated(asked, ranks, console)
    if found is None:
        return
    figures = _figures(found, asked)
    if as_json:
        say_json(figures)
    else:
        _print(found, asked, console)
    if output:
        write_json(output, figures)
        console.print(f"figures: {output.absolute()}", soft_wrap=True, highlight=False)
    if report:
        _write_report(report, found, asked.cameras)
        console.print(f"report: {report.absolute()}", soft_wrap=True, highlight=False)


def _evaluated(asked: Asked, ranks: "Ranks", console: Terminal) -> Evaluated | None:
    """The long work; None on other ranks than the first."""
    from maskreid_dist.evaluation.evaluate import (
        check_queries,
        checkpoint_of,
        load_network,
        name_of,
        rank_damaged,
        rank_mirrored,
        rank_network,
    )
    from maskreid_dist.evaluation.extras import extra_figures
    from maskreid_dist.evaluation.growth import embed_distractors, grown
    from maskreid_dist.evaluation.refined import refined

    shards, others = _opened(asked)
    check_queries(shards, asked.cameras)
    found = checkpoint_of(asked.run, console)
    _agree(ranks, found, shards, others, asked)
    network = load_network(found)
    how = asked.ap, asked.cameras
    ranked = rank_network(name_of(found), network, found.config, shards, console, *how, ranks)
    other_views = rank_damaged(network, asked.damages, found.config, shards, console, *how, ranks)
    if asked.mirror:
        other_views |= rank_mirrored(network, found.config, shards, console, *how, ranks)
    more = None
    if others is not None:
        more = embed_distractors(network, others, found.config, console, ranks)
    rows = refined(ranked, shards, *how, asked.rerank, asked.expand, ranks) | other_views
    if not ranks.is_first:
        return None
    growth: dict[int, RetrievalResult] = {}
    if asked.grown and more is not None:
        growth = grown(ranked, shards, more, asked.grown.sizes, *how)
    return Evaluated(found, shards, ranked, rows, growth, extra_figures(ranked, shards, asked.extras, *how))


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
    options = {"--ap": asked.ap, "--cameras": asked.cameras, "the checkpoint": saved}
    options |= {"--mask-damage": " ".join(asked.damages), "--mirror": str(asked.mirror)}
    options |= {"--rerank": str(asked.rerank), "--expand-queries": str(asked.expand)}
    ranks.agree(facts_of_evaluation(checkpoint.config, ranks.device, opened, options))


def _print(found: Evaluated, asked: Asked, console: Terminal) -> None:
    from maskreid_dist.evaluation.calibration_file import load_for
    from maskreid_dist.evaluation.evaluate import print_table, ranked_doubts
    from maskreid_dist.evaluation.extras import extra_lines

    ranked, result = found.ranked, found.ranked.result
    print_table(console, [ranked, *found.refined.values()])
    elsewhere = "no match in another camera" if asked.cameras == "labels" else "no other image of the person"
    console.print(f"{result.valid_queries} valid queries, {result.skipped_queries} skipped ({elsewhere})")
    if asked.split:
        console.print(f"each image of {asked.split} was a query among the others", highlight=False)
        if found.checkpoint.shards_fingerprint == found.shards.split("query").fingerprint:
            console.print("warning: the network was trained on these images; others tell what it is worth")
    if asked.cameras == "none":
        console.print("without cameras: only the query's own image was left out of its list, by its key")
    if calibration := load_for(found.checkpoint.path, found.checkpoint.weights_sha256):
        for line in ranked_doubts(calibration, ranked, found.shards, asked.cameras):
            console.print(f"warning: {line}", highlight=False, markup=False)
    for size, grew in found.growth.items():
        figures = f"mAP {100 * grew.mAP:.2f} (AP by {grew.ap}), Rank-1 {100 * grew.rank(1):.2f}"
        console.print(f"gallery of {size} images: {figures}", highlight=False)
    for line in extra_lines(found.extras, asked.ap):
        console.print(line, highlight=False)


def _figures(found: Evaluated, asked: Asked) -> dict[str, object]:
    from maskreid_dist.evaluation.evaluate import percentages

    more: dict[str, object] = {key: percentages(row.result) for key, row in found.refined.items()}
    if found.growth:
        more["gallery_size"] = {size: percentages(grew) for size, grew in found.growth.items()}
    valid, skipped = found.ranked.result.valid_queries, found.ranked.result.skipped_queries
    queries = {"valid_queries": int(valid), "skipped_queries": int(skipped)}
    protocol = {"unit": "percent", "cameras": asked.cameras}
    if asked.split:
        protocol["each_against_the_others_of"] = asked.split
    own = {**protocol, **percentages(found.ranked.result), **queries}
    return {**own, **more, **found.extras}


def _write_report(path: Path, found: Evaluated, cameras: Literal["labels", "none"]) -> None:
    from maskreid_dist.evaluation.run_report import write_run_report

    rows = [found.ranked, *found.refined.values()]
    write_run_report(path, found.checkpoint, found.shards, rows, found.ranked, cameras)
