"""The program `maskreid`. Each command validates, then calls the library; a
UserError is one line and status 2.

Commands import what they need when they run: torch takes two seconds, also in
every worker process of a conversion.
"""

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from maskreid_dist import __version__
from maskreid_dist.cli.bench import bench_app
from maskreid_dist.cli.calibrate import calibrate
from maskreid_dist.cli.compare import compare
from maskreid_dist.cli.doctor import doctor
from maskreid_dist.cli.export import export
from maskreid_dist.cli.failures import one_line_errors
from maskreid_dist.cli.gallery import embed, enrol, forget, score, search
from maskreid_dist.cli.init import init
from maskreid_dist.cli.inspect import plan, stats, verify
from maskreid_dist.cli.layouts import convert_app, segment_app
from maskreid_dist.cli.masks import masks
from maskreid_dist.cli.merge import merge
from maskreid_dist.cli.plan_run import plan_run
from maskreid_dist.cli.push import push
from maskreid_dist.cli.quiet import quiet_libraries
from maskreid_dist.cli.runs import runs, top
from maskreid_dist.cli.study import study
from maskreid_dist.cli.supervise import supervise
from maskreid_dist.errors import UserError
from maskreid_dist.terminal import Terminal, say

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train and evaluate MaskReID, a mask-based deep ranking network for person re-identification.",
)
app.add_typer(convert_app, name="convert")
app.add_typer(segment_app, name="segment")
app.command()(masks)
app.command()(merge)
app.add_typer(bench_app, name="bench")
app.command()(verify)
app.command()(plan)
app.command()(stats)
for command in (embed, search, enrol, forget, score, calibrate, compare, init, doctor):
    app.command()(command)
app.command("plan-run")(plan_run)
app.command()(runs)
app.command()(export)
app.command()(push)
app.command()(top)
app.command()(supervise)
app.command()(study)

Recipe = Annotated[
    Path, typer.Argument(help="TOML recipe, such as launch/recipes/walkers_demo.toml.", show_default=False)
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key, e.g. optimizer.lr=0.01; repeatable."),
]
Runs = Annotated[Path, typer.Option(help="Directory of run directories.")]


@app.command()
@one_line_errors
def train(
    recipe: Recipe,
    overrides: Overrides = None,
    runs: Runs = Path("runs"),
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the newest checkpoint that verifies.")
    ] = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="Trace a few steps of rank 0, into the run directory.")
    ] = False,
    local_rank: Annotated[
        int, typer.Option("--local_rank", hidden=True, help="Passed by the deepspeed launcher.")
    ] = 0,
) -> None:
    """Train a recipe: in this process, or as one rank under `deepspeed` or `torchrun`."""
    quiet_libraries()
    from maskreid_dist.training.loop import train as train_recipe

    status = train_recipe(recipe, overrides or (), runs, resume, profile)
    sys.stdout.flush()
    raise typer.Exit(status)


@app.command()
@one_line_errors
def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="A run directory, or one of its checkpoints.")],
    shards: Annotated[
        str,
        typer.Argument(
            help="Shards with the splits query and gallery, a folder or a URL.", show_default=False
        ),
    ],
    ap: Annotated[
        Literal["hits", "trapezoid"],
        typer.Option(help="Definition of AP that orders the queries of the report."),
    ] = "hits",
    report: Annotated[Path | None, typer.Option(help="Write an HTML report with ranked lists here.")] = None,
    output: Annotated[Path | None, typer.Option(help="Write the figures as JSON here.")] = None,
    best: Annotated[
        bool, typer.Option("--best", help="Of a run directory: its best checkpoint, not its newest.")
    ] = False,
    cache: Annotated[Path | None, typer.Option(help="Keep the shards of a URL in this folder.")] = None,
    cameras: Annotated[
        Literal["labels", "none"],
        typer.Option(
            help="none: the data has no camera ids; only the query's own image, by key, is left out."
        ),
    ] = "labels",
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
    rerank: Annotated[
        bool, typer.Option("--rerank", help="Also with k-reciprocal re-ranking (Zhong et al. 2017).")
    ] = False,
    k1: Annotated[int, typer.Option("--rerank-k1", help="Neighbours of its sets.")] = 20,
    k2: Annotated[int, typer.Option("--rerank-k2", help="Neighbours of its mean; 1: no mean.")] = 6,
    weight: Annotated[
        float, typer.Option("--rerank-weight", help="Of the distance beside the sets', 0 to 1.")
    ] = 0.3,
    power: Annotated[
        Literal["squared", "fourth"],
        typer.Option("--rerank-power", help="Distances squared (the paper) or d^4 (the Python ports)."),
    ] = "squared",
    expand: Annotated[
        int,
        typer.Option(
            "--expand-queries", min=0, help="Also with each query plus its K nearest images; 0: not."
        ),
    ] = 0,
) -> None:
    """Rank a gallery with a trained network: CMC, mAP (both definitions), mINP."""
    from maskreid_dist.evaluation.calibration_file import load_for
    from maskreid_dist.evaluation.evaluate import (
        Extras,
        evaluate_checkpoint,
        load_network,
        percentages,
        print_extras,
        print_table,
        ranked_doubts,
        refined,
        write_json,
    )
    from maskreid_dist.evaluation.growth import embed_distractors, grown, parse_sizes
    from maskreid_dist.evaluation.run_report import write_run_report
    from maskreid_dist.files import check_writable
    from maskreid_dist.model.checkpoint import best_checkpoint
    from maskreid_dist.retrieval import ReRanking, RetrievalResult
    from maskreid_shards import open_shards

    if best:
        checkpoint = best_checkpoint(checkpoint)
    for path in (report, output):
        if path:
            check_writable(path)
    try:
        options = ReRanking(k1, k2, weight, power) if rerank else None
    except ValueError as error:
        raise UserError(str(error)) from None
    if cameras == "none" and (multiple_query or camera_pairs):
        raise UserError("--multiple-query and --camera-pairs need camera ids: leave out --cameras none")
    if sizes and not distractors:
        raise UserError("--sizes are those of galleries with --distractors SHARDS")
    wanted_sizes = parse_sizes(sizes) if sizes else None
    console = Terminal()
    shard_set = open_shards(shards, cache=cache)
    others = open_shards(distractors, cache=cache) if distractors else None
    found, ranked = evaluate_checkpoint(checkpoint, shard_set, console, ap, cameras)
    rows = refined(ranked, shard_set, ap, cameras, options, expand)
    growth: dict[int, RetrievalResult] = {}
    if others is not None:
        more_rows = embed_distractors(load_network(found), others, found.config, console)
        growth = grown(ranked, shard_set, more_rows, wanted_sizes, ap, cameras)
    print_table(console, [ranked, *rows.values()])
    result = ranked.result
    elsewhere = "no match in another camera" if cameras == "labels" else "no other image of the person"
    console.print(f"{result.valid_queries} valid queries, {result.skipped_queries} skipped ({elsewhere})")
    if cameras == "none":
        console.print("without cameras: only the query's own image was left out of its list, by its key")
    if calibration := load_for(found.path, found.weights_sha256):
        for line in ranked_doubts(calibration, ranked, shard_set):
            console.print(f"warning: {line}", highlight=False, markup=False)
    for size, grew in growth.items():
        figures = f"mAP {100 * grew.mAP:.2f} (AP by {grew.ap}), Rank-1 {100 * grew.rank(1):.2f}"
        console.print(f"gallery of {size} images: {figures}", highlight=False)
    extras = Extras(multiple_query, single_shot, camera_pairs, intervals, verification)
    print_extras(console, ranked, shard_set, extras, ap, cameras)
    if output:
        more: dict[str, object] = {key: percentages(row.result) for key, row in rows.items()}
        if growth:
            more["gallery_size"] = {size: percentages(grew) for size, grew in growth.items()}
        write_json(output, {"unit": "percent", "cameras": cameras, **percentages(result), **more})
        say(f"figures: {output.absolute()}")
    if report:
        write_run_report(report, found, shard_set, [ranked, *rows.values()], ranked, cameras)
        say(f"report: {report.absolute()}")


@app.command()
@one_line_errors
def demo(
    recipe: Annotated[
        Path | None, typer.Option(help="Recipe to train. Default: the demo's.", show_default=False)
    ] = None,
    overrides: Overrides = None,
    runs: Runs = Path("runs"),
    ranks: Annotated[int, typer.Option(min=1, help="DeepSpeed ranks on this machine.")] = 2,
    shards: Annotated[
        str | None,
        typer.Option(
            help="The repository's folder shards/walkers, or a URL of it; needed outside of a checkout.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Train on the shards of the repository, rank their gallery, and write a report to look at."""
    from maskreid_dist.cli.demo import run_demo

    raise typer.Exit(run_demo(recipe, list(overrides or ()), runs, ranks, shards))


@app.command()
@one_line_errors
def recipe(recipe: Recipe, overrides: Overrides = None) -> None:
    """Validate a recipe and print the whole configuration as JSON."""
    from maskreid_dist.recipe import load_recipe

    say(json.dumps(load_recipe(recipe, overrides or ()).model_dump(mode="json"), indent=2))


@app.command()
def version() -> None:
    """Print the version."""
    say(__version__)


def main() -> None:
    app()


def train_main() -> None:
    """`launch/train.py` and `maskreid_dist.cli.train`: the train command alone."""
    single = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    single.command()(train)
    single()
