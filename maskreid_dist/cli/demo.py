"""`maskreid demo`: the whole path on the data set that the repository carries.

Its recipe comes with the package. The shards, pictures under a licence of their own, are the folder that the
recipe names, or where `carried_shards` finds them, or what --shards says.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from maskreid_dist import exit_status
from maskreid_dist.cli.carried import CHECKOUT, carried_shards
from maskreid_dist.cli.launcher import launch_training
from maskreid_dist.config import Config
from maskreid_dist.data.batches import open_recipe_shards, recipe_plan
from maskreid_dist.evaluation.evaluate import (
    check_queries,
    evaluate_checkpoint,
    percentages,
    print_table,
    rank_histograms,
    rank_network,
    views,
    write_json,
)
from maskreid_dist.evaluation.histogram import HISTOGRAM_BASELINES
from maskreid_dist.evaluation.run_report import write_run_report
from maskreid_dist.model import build_network
from maskreid_dist.model.checkpoint import find_checkpoint, finished_checkpoints
from maskreid_dist.model.pretrained import PREFIX, place_of
from maskreid_dist.recipe import load_recipe
from maskreid_dist.run_directory import CHECKPOINTS
from maskreid_dist.terminal import Terminal, say, say_json
from maskreid_shards import ShardSet

STANDARD_ERROR = 2
COPY = Path(__file__).with_name("demo.toml")  # of the recipe, for an installed package


def own_recipe() -> Path:
    """The demo's recipe of this package, whatever folder a user stands in."""
    recipe = CHECKOUT / "launch/recipes/walkers_demo.toml"
    return recipe if recipe.is_file() else COPY


def with_shards(recipe: Path, overrides: Sequence[str], shards: str | None) -> list[str]:
    """The overrides, and where the shards are if not where the recipe says. Raises UserError: nowhere."""
    if shards is not None:
        location = shards if "://" in shards else str(Path(shards).absolute())
        return [*overrides, f"data.shards={location}"]
    named = load_recipe(recipe, overrides).data.shards
    found = carried_shards(named)
    return list(overrides) if found == named else [*overrides, f"data.shards={found}"]


def run_demo(
    recipe: Path | None,
    overrides: Sequence[str],
    runs: Path,
    ranks: int,
    shards: str | None = None,
    as_json: bool = False,
) -> int:
    """Train (or continue), evaluate, print the table, write `metrics.json` and
    `report.html`; returns the exit status.

    recipe: None for the package's own. shards: a folder or a URL in place of the recipe's. as_json: standard
    output is one line of JSON; the training's lines go to standard error."""
    started = time.monotonic()
    recipe = recipe or own_recipe()
    overrides = with_shards(recipe, overrides, shards)
    config = load_recipe(recipe, overrides)
    opened = open_recipe_shards(config.data)
    run = (runs / config.name).absolute()
    console = Terminal(stderr=as_json)
    if torch.cuda.is_available():
        ranks = min(ranks, torch.cuda.device_count())
    # What would fail after minutes fails now.
    recipe_plan(opened.split("train"), config, ranks)
    check_queries(opened)
    if not _is_trained(run, config):
        status = launch_training(recipe, overrides, runs, run, ranks, STANDARD_ERROR if as_json else None)
        if status == exit_status.STOPPED:
            console.print("stopped and saved; the same command continues")
        if status == exit_status.START_AGAIN:
            console.print("the training ended before its last step; the same command continues")
        if status:
            return status
    _show(run, run, opened, as_json)
    console.print(f"this call took {(time.monotonic() - started) / 60:.1f} minutes")
    return 0


def show_pretrained(name: str, runs: Path, shards: str | None = None, as_json: bool = False) -> int:
    """The same of a network that comes with the package, without a training; returns the exit status."""
    source = Path(f"{PREFIX}{name}")
    place_of(source)  # is there
    overrides = with_shards(own_recipe(), (), shards)
    opened = open_recipe_shards(load_recipe(own_recipe(), overrides).data)
    check_queries(opened)
    _show((runs / f"pretrained_{name}").absolute(), source, opened, as_json)
    return 0


def _show(run: Path, source: Path, opened: ShardSet, as_json: bool) -> None:
    """Rank the gallery by the network `source` and by what needs no training: a table, or its figures as
    JSON, and in the folder `run` `metrics.json` and `report.html`."""
    console = Terminal(quiet=as_json)
    checkpoint, trained = evaluate_checkpoint(source, opened, console)
    config = checkpoint.config
    torch.manual_seed(config.seed)
    untrained = rank_network("untrained network", build_network(config, 0), config, opened, console)
    histograms = rank_histograms(opened, HISTOGRAM_BASELINES)
    rows = [
        untrained,
        *histograms,
        replace(trained, name=f"MaskReID, {checkpoint.step} steps{views(config)}"),
    ]
    print_table(console, rows)
    result = trained.result
    console.print(
        f"{result.valid_queries} queries, {result.skipped_queries} skipped; {len(opened.split('gallery'))} "
        "gallery images"
    )
    best = max(histograms, key=lambda row: row.result.mAP_hits)
    named = {"untrained": untrained, "histogram": best, "trained": trained}
    figures = {"unit": "percent"} | {name: percentages(row.result) for name, row in named.items()}
    write_json(run / "metrics.json", figures)
    write_run_report(run / "report.html", checkpoint, opened, rows, rows[-1])
    if as_json:
        queries = {"valid_queries": int(result.valid_queries), "skipped_queries": int(result.skipped_queries)}
        say_json({**figures, **queries, "steps": checkpoint.step, "report": run / "report.html"})
        return
    # Plain print: rich would wrap and restyle paths.
    say(f"figures: {run / 'metrics.json'}\nreport:  {run / 'report.html'}")


def _is_trained(run: Path, config: Config) -> bool:
    """Whether the run's newest checkpoint is its last; the training itself checks that it fits the recipe."""
    if not finished_checkpoints(run / CHECKPOINTS):
        return False
    checkpoint, _ = find_checkpoint(run)
    return checkpoint.config.model_dump() == config.model_dump() and checkpoint.step >= config.optimizer.steps
