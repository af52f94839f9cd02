"""The program `maskreid`. Each command validates, then calls the library; a
UserError is one line and status 2.

Commands import what they need when they run: torch takes two seconds, also in
every worker process of a conversion.
"""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from maskreid_dist import __version__
from maskreid_dist.cli.bench.app import bench_app
from maskreid_dist.cli.calibrate import calibrate
from maskreid_dist.cli.compare import compare
from maskreid_dist.cli.doctor import doctor
from maskreid_dist.cli.evaluate import evaluate
from maskreid_dist.cli.export import export
from maskreid_dist.cli.failures import one_line_errors
from maskreid_dist.cli.gallery import embed, enrol, forget, search
from maskreid_dist.cli.init import init
from maskreid_dist.cli.inspect import plan, stats, verify
from maskreid_dist.cli.layouts import convert_app, segment_app
from maskreid_dist.cli.masks import masks
from maskreid_dist.cli.merge import merge
from maskreid_dist.cli.options import AsJson
from maskreid_dist.cli.page import page
from maskreid_dist.cli.plan_run import plan_run
from maskreid_dist.cli.push import push
from maskreid_dist.cli.quiet import quiet_libraries
from maskreid_dist.cli.runs import runs, top
from maskreid_dist.cli.score import score
from maskreid_dist.cli.study import study
from maskreid_dist.cli.supervise import supervise
from maskreid_dist.errors import UserError
from maskreid_dist.terminal import say

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train and evaluate MaskReID, a mask-based deep ranking network for person re-identification.",
)


@app.callback()
def program(
    local_rank: Annotated[
        int, typer.Option("--local_rank", hidden=True, help="Passed by `deepspeed --module`.")
    ] = 0,
) -> None:
    pass


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
app.command()(page)
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


app.command()(evaluate)


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
            help="The folder shards/walkers or a URL of it. Default: the checkout's, or that of "
            "maskreid-dist[walkers].",
            show_default=False,
        ),
    ] = None,
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help="Train nothing: the small network that comes along.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train on the shards of the repository, rank their gallery, and write a report to look at."""
    from maskreid_dist.cli.demo import run_demo, show_pretrained

    if pretrained:
        if recipe or overrides:
            raise UserError("--pretrained trains nothing: leave out --recipe and --set")
        raise typer.Exit(show_pretrained("walkers", runs, shards, as_json))
    raise typer.Exit(run_demo(recipe, list(overrides or ()), runs, ranks, shards, as_json))


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
