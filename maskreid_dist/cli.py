"""The program `maskreid`. Each command validates, then calls the library; a UserError is one line and status 2."""

import functools
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal, ParamSpec, TypeVar

import typer
from rich.console import Console

from maskreid_dist import __version__
from maskreid_dist.errors import UserError
from maskreid_dist.recipe import load_recipe
from maskreid_dist.retrieval import RetrievalError
from maskreid_shards import ShardError

P = ParamSpec("P")
R = TypeVar("R")

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train and evaluate MaskReID, a mask-based deep ranking network for person re-identification.",
)
convert_app = typer.Typer(no_args_is_help=True, help="Convert a data set into WebDataset shards.")
app.add_typer(convert_app, name="convert")

Recipe = Annotated[
    Path, typer.Argument(help="TOML recipe, such as launch/recipes/walkers_demo.toml.", show_default=False)
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key, e.g. optimizer.lr=0.01; repeatable."),
]
Runs = Annotated[Path, typer.Option(help="Directory of run directories.")]


def one_line_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Turn the user's errors into one line on standard error and exit status 2.

    All ranks raise alike (what only one of them meets is voted on), and rank 0 prints.
    """

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except (UserError, ShardError, RetrievalError) as error:
            if os.environ.get("RANK", "0") == "0":
                print(f"maskreid: error: {error}", file=sys.stderr, flush=True)
            raise typer.Exit(2) from None
        except OSError as error:
            if error.filename is None:  # not about a file: a defect, with its traceback
                raise
            print(f"maskreid: error: {error.filename}: {error.strerror}", file=sys.stderr, flush=True)
            raise typer.Exit(2) from None

    return wrapped


@convert_app.command("market1501")
@one_line_errors
def convert_market1501(
    src: Annotated[
        Path,
        typer.Argument(
            help="Folder with bounding_box_train, query, bounding_box_test and their _seg folders."
        ),
    ],
    out: Annotated[Path, typer.Argument(help="New folder for the shards.")],
    on_bad_mask: Annotated[
        Literal["fail", "full", "skip"] | None,
        typer.Option(
            help="A mask that is missing, empty, RGB or of another size: stop, use the full image, or skip the pair. Default: fail."
        ),
    ] = None,
    recipe: Annotated[Path | None, typer.Option(help="Take data.on_bad_mask from this recipe.")] = None,
    shard_mb: Annotated[float, typer.Option(min=0.01, help="Size at which a shard is closed, in MB.")] = 64.0,
    seed: Annotated[int, typer.Option(min=0, help="Deals the identities to shards.")] = 0,
) -> None:
    """Convert a Market-1501 folder with masks."""
    from maskreid_dist.conversion import run_market1501

    policy = on_bad_mask or (load_recipe(recipe).data.on_bad_mask if recipe else "fail")
    report = run_market1501(src, out, policy, round(shard_mb * 1_000_000), seed)
    print("\n".join(report.lines()))


@app.command()
@one_line_errors
def train(
    recipe: Recipe,
    overrides: Overrides = None,
    runs: Runs = Path("runs"),
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the newest checkpoint that verifies.")
    ] = False,
    local_rank: Annotated[
        int, typer.Option("--local_rank", hidden=True, help="Passed by the deepspeed launcher.")
    ] = 0,
) -> None:
    """Train a recipe: in this process, or as one rank under `deepspeed` or `torchrun`."""
    config = load_recipe(recipe, overrides or ())
    quiet_libraries()
    from maskreid_dist.train import train as train_recipe

    status = train_recipe(config, runs, resume)
    sys.stdout.flush()
    raise typer.Exit(status)


@app.command()
@one_line_errors
def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="A run directory, or one of its checkpoints.")],
    shards: Annotated[Path, typer.Argument(help="Shards with the splits query and gallery.")],
    ap: Annotated[
        Literal["hits", "trapezoid"],
        typer.Option(help="Definition of AP that orders the queries of the report."),
    ] = "hits",
    report: Annotated[Path | None, typer.Option(help="Write an HTML report with ranked lists here.")] = None,
    output: Annotated[Path | None, typer.Option(help="Write the figures as JSON here.")] = None,
) -> None:
    """Rank a gallery with a trained network: CMC, mAP (both definitions), mINP."""
    for path in (report, output):  # what cannot be written is said before the long work
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
    from maskreid_dist.evaluation import evaluate_checkpoint, percentages, print_table, write_json
    from maskreid_dist.run_report import write_run_report

    console = Console()
    found, shard_set, ranked = evaluate_checkpoint(checkpoint, shards, console, ap)
    print_table(console, [ranked])
    result = ranked.result
    console.print(
        f"{result.valid_queries} valid queries, {result.skipped_queries} skipped (no match in another camera)"
    )
    if output:
        write_json(output, {"unit": "percent", **percentages(result)})
        print(f"figures: {output}")
    if report:
        write_run_report(report, found, shard_set, [ranked], ranked)
        print(f"report: {report}")


@app.command()
@one_line_errors
def demo(
    recipe: Annotated[Path, typer.Option(help="Recipe to train.")] = Path("launch/recipes/walkers_demo.toml"),
    overrides: Overrides = None,
    runs: Runs = Path("runs"),
    ranks: Annotated[int, typer.Option(min=1, help="DeepSpeed ranks on this machine.")] = 2,
) -> None:
    """Train on the shards of the repository, rank their gallery, and write a report to look at."""
    from maskreid_dist.demo import run_demo

    raise typer.Exit(run_demo(recipe, list(overrides or ()), runs, ranks))


@app.command()
@one_line_errors
def recipe(recipe: Recipe, overrides: Overrides = None) -> None:
    """Validate a recipe and print the whole configuration as JSON."""
    print(json.dumps(load_recipe(recipe, overrides or ()).model_dump(mode="json"), indent=2))


@app.command()
def version() -> None:
    """Print the version."""
    print(__version__)


def quiet_libraries() -> None:
    """DeepSpeed logs every default at start-up; errors and warnings of ours remain."""
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # or DeepSpeed warns that it found no GPU
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="deepspeed|torch")


def main() -> None:
    app()


def train_main() -> None:
    """`launch/train.py`: the train command alone."""
    single = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    single.command()(train)
    single()
