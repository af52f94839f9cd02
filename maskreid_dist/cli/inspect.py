"""`maskreid verify`, `stats` and `plan`: what is in a shard folder, and what training would draw from it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import typer

from maskreid_dist.cli.failures import one_line_errors
from maskreid_dist.cli.options import AsJson
from maskreid_dist.progress import progress_bar
from maskreid_dist.terminal import say, say_json
from maskreid_shards import Plan, Split

Shards = Annotated[
    str, typer.Argument(help="What `maskreid convert` made: a folder or a URL.", show_default=False)
]


@one_line_errors
def verify(
    shards: Shards,
    as_json: AsJson = False,
    workers: Annotated[int, typer.Option(min=1, help="Processes that share the shards; of a URL, one.")] = 1,
    quick: Annotated[
        bool, typer.Option("--quick", help="Manifest, indexes and the shards' sizes; no shard is read.")
    ] = False,
) -> None:
    """Check every byte of a shard folder: exit status 0 when all is well, 1 with
    problems, 2 when it could not run."""
    from maskreid_shards import verify as verify_shards
    from maskreid_shards import verify_url
    from maskreid_shards.shown import without_secrets

    with progress_bar("verifying") as progress:
        if "://" in shards:
            problems = verify_url(shards, quick=quick, progress=progress)
        else:
            problems = verify_shards(shards, workers=workers, quick=quick, progress=progress)
    if as_json:
        names = ("shard", "key", "offset", "kind", "message")
        say_json({"problems": [{name: getattr(p, name) for name in names} for p in problems]})
    else:
        for problem in problems:
            say(problem.message)
        say(f"{without_secrets(str(shards))}: {f'{len(problems)} problems' if problems else 'all is well'}")
    raise typer.Exit(1 if problems else 0)


@one_line_errors
def plan(
    shards: Shards,
    identities: Annotated[int, typer.Option(min=1, help="P, over all ranks.")] = 16,
    images: Annotated[int, typer.Option(min=1, help="K.")] = 4,
    world: Annotated[int, typer.Option(min=1, help="Ranks.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Of the recipe.")] = 0,
    epoch: Annotated[int, typer.Option(min=0, help="Counts from 0.")] = 0,
    steps: Annotated[int | None, typer.Option(min=1, help="Only the first of the epoch.")] = None,
    split: Annotated[str, typer.Option(help="Name of the split.")] = "train",
    few_images: Annotated[
        Literal["repeat", "all", "skip"], typer.Option(help="Identities with fewer than K images.")
    ] = "repeat",
    passes: Annotated[int, typer.Option(min=1, help="Passes over the identities in an epoch.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Print the batches of an epoch that training draws: with --json a line for each step and rank."""
    from maskreid_dist.config import BatchConfig
    from maskreid_dist.data.batches import make_plan
    from maskreid_shards import open_shards

    opened = open_shards(shards).split(split)
    batch = BatchConfig(identities=identities, images=images, few_images=few_images, passes=passes)
    found = make_plan(opened, batch, seed, world)
    lines = plan_lines(opened, found, epoch, steps, world)
    if not as_json:
        say("\n".join(found.summary().lines()))
        lines = (_readable(line) for line in plan_lines(opened, found, epoch, steps or 3, world))
    for line in lines:
        say(line)


def plan_lines(split: Split, plan: Plan, epoch: int, steps: int | None, world_size: int) -> Iterator[str]:
    """A JSON line per step and rank, in that order: `{"step", "rank", "keys",
    "pids"}`, what the rank draws in the step.

    steps: how many, from the start of the epoch; all of them for None.
    """
    for step in range(plan.steps_per_epoch if steps is None else min(steps, plan.steps_per_epoch)):
        for rank in range(world_size):
            draws = plan.rank_draws(epoch, step, rank, world_size)
            keys = [key.decode("ascii") for key in split.keys[draws.samples].tolist()]
            yield json.dumps({"step": step, "rank": rank, "keys": keys, "pids": draws.pids.tolist()})


def _readable(line: str) -> str:
    about = json.loads(line)
    pids = list(dict.fromkeys(about["pids"]))
    shown = ", ".join(map(str, pids[:8])) + (", ..." if len(pids) > 8 else "")
    return f"step {about['step']}, rank {about['rank']}: {len(about['keys'])} images of identities {shown}"


@one_line_errors
def stats(
    shards: Shards,
    identities: Annotated[int, typer.Option(min=1, help="P of the batches to judge.")] = 16,
    images: Annotated[int, typer.Option(min=1, help="K.")] = 4,
    split: Annotated[str, typer.Option(help="The split that P x K is about.")] = "train",
    output: Annotated[Path | None, typer.Option(help="Write a picture (PNG) here.")] = None,
    as_json: AsJson = False,
) -> None:
    """Count identities, images and cameras, and say what P x K does to identities with few images."""
    from dataclasses import asdict

    from maskreid_dist.files import check_writable
    from maskreid_dist.report.statistics import statistics_figure
    from maskreid_shards import open_shards
    from maskreid_shards.statistics import few_images_effects, split_statistics

    if output:
        check_writable(output)
    opened = open_shards(shards)
    effects = few_images_effects(opened.split(split), identities=identities, images=images)
    splits = {name: split_statistics(opened.split(name)) for name in opened.splits}
    if output:
        statistics_figure(splits, output)
    if as_json:
        policies = [asdict(effect) for effect in effects]
        batch = {"split": split, "identities": identities, "images": images, "few_images": policies}
        say_json({"splits": {name: asdict(s) for name, s in splits.items()}, "batch": batch})
        return
    for name, found in splits.items():
        others = f" (of them {found.junk} junk, {found.distractors} distractors)"
        say(
            f"{name}: {found.samples} images{others if found.junk or found.distractors else ''}, "
            f"{found.identities} identities"
        )
        quantiles = ", ".join(f"{what} {value:g}" for what, value in found.images_per_identity.items())
        say(f"{name}: images per identity: {quantiles}")
        cameras = ", ".join(f"{camid}: {count}" for camid, count in found.images_per_camera.items())
        say(f"{name}: images per camera: {cameras}")
    few = effects[0].few_image_identities
    say(
        f"{split}, {identities} identities x {images} images: {few} identities have fewer than {images} "
        "images"
    )
    for effect in effects:
        say(
            f"  {effect.few_images}: "
            + (
                effect.problem
                or f"{effect.taking_part} identities take part, {effect.steps_per_epoch} steps an epoch, "
                f"{effect.dropped_identities} without a place, {100 * effect.never_drawn:.1f} % of the "
                "images not drawn in a pass"
            )
        )
    if output:
        say(f"picture: {output}")
