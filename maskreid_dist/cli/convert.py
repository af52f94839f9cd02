"""What every `maskreid convert LAYOUT` does with what the layout's scanner found;
its options are the parameters."""

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import typer

from maskreid_dist.cli import mask_flags as flags
from maskreid_dist.cli.options import AsJson
from maskreid_dist.errors import UserError
from maskreid_dist.files import check_writable
from maskreid_dist.progress import progress_bar
from maskreid_dist.terminal import say, say_json
from maskreid_shards import (
    SHARD_BYTES,
    ConversionReport,
    Layout,
    PartReport,
    convert,
    convert_part,
    finish_parts,
)
from maskreid_shards.convert import check_fresh
from maskreid_shards.job import JobOptions
from maskreid_shards.parts import images_of_part

UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
LEAST_SHARD_BYTES = 10_000


def parse_bytes(text: str | int) -> int:
    """A size such as 64MB, 1GiB or 500000. Raises typer.BadParameter, also for what forgot its unit."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) *([kmg]?i?b?)", str(text).lower())
    if found is None or found[2] not in UNITS:
        raise typer.BadParameter(f"{text}: write a size such as 64MB, 1GiB, or a number of bytes")
    size = round(float(found[1]) * UNITS[found[2]])
    if size < LEAST_SHARD_BYTES:
        raise typer.BadParameter(
            f"{text}: {size} bytes is less than {LEAST_SHARD_BYTES}; write a unit, such as 64MB"
        )
    return size


def parse_part(text: str) -> tuple[int, int]:
    """A part such as 3/8. Raises UserError."""
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise UserError(f"--part {text}: write I/N, where I counts from 1 to N, such as 3/8")
    return int(found[1]), int(found[2])


def convert_layout(
    scan: Callable[[], Layout],
    name: str,
    *,
    out: Annotated[Path, typer.Argument(help="New folder for the shards.", show_default=False)],
    on_bad_mask: Annotated[
        Literal["fail", "full", "skip"] | None,
        typer.Option(
            help="A mask that is missing, unreadable, empty, coloured, turned or a label map: stop, use the "
            "full image, or skip the pair. Default: fail."
        ),
    ] = None,
    on_bad_image: flags.OnBadImage = "fail",
    on_orientation: flags.OnOrientation = "fail",
    follow_links: flags.FollowLinks = False,
    recipe: Annotated[Path | None, typer.Option(help="Take data.on_bad_mask from this recipe.")] = None,
    masks: flags.Masks = None,
    mask_kind: flags.MaskKind = None,
    person_labels: flags.PersonLabels = None,
    invert_masks: flags.InvertMasks = False,
    segment: flags.Segment = None,
    segment_weights: flags.Weights = None,
    segment_device: flags.Device = "auto",
    segment_batch: flags.Batch = 16,
    segment_height: flags.Height = None,
    landmarks: flags.LandmarksToo = False,
    dataset: Annotated[
        str | None, typer.Option(help="Name written into every sample. Default: the source's name.")
    ] = None,
    shard_size: Annotated[
        int,
        typer.Option(
            parser=parse_bytes,
            metavar="SIZE",
            help="About how large a shard is: 64MB, 1GiB, bytes.",
            show_default="64MB",
        ),
    ] = SHARD_BYTES,
    seed: Annotated[int, typer.Option(min=0, help="Deals the identities to shards.")] = 0,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes. Default: one for each core.", show_default=False)
    ] = None,
    expect_published: Annotated[
        bool, typer.Option("--expect-published", help="Stop unless all counts are the published ones.")
    ] = False,
    part: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Write the I-th of N parts of the shards, on any machine that sees the data set and OUT's "
            "folder.",
        ),
    ] = None,
    finish: Annotated[
        bool, typer.Option("--finish", help="Make OUT of the finished parts; no image is read again.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Convert what `scan` finds and print the report. `name` is the source's."""

    if on_bad_mask is None:
        on_bad_mask = _policy_of(recipe) if recipe else "fail"
    mask_flags = flags.MaskFlags(
        masks,
        mask_kind,
        tuple(person_labels or ()),
        invert_masks,
        segment,
        segment_weights,
        segment_device,
        segment_batch,
        segment_height,
        landmarks,
    )
    mask_options = mask_flags.options(out)
    share = parse_part(part) if part else None
    if part and finish:
        raise UserError("--part and --finish: write all parts first, then --finish")
    options: JobOptions = {
        "dataset": dataset or name,
        "on_bad_mask": on_bad_mask,
        "mask_options": mask_options,
        "on_orientation": on_orientation,
        "on_bad_image": on_bad_image,
        "shard_bytes": shard_size,
        "seed": seed,
        "follow_links": follow_links,
    }
    processes = workers or len(os.sched_getaffinity(0))
    try:
        layout = scan()
        if expect_published:
            _check_published(layout)
        check_fresh(out)  # before masks are made: that may take hours
        check_writable(out, folder=True)
        if not finish:
            mine = _images_of_part(layout, share, options) if share and segment else layout
            for line in mask_flags.make(mine, mask_options, on_orientation, on_bad_image, follow_links):
                say(line, file=sys.stderr if as_json else None)
        report = _converted(layout, out, share, finish, processes, options)
    except KeyboardInterrupt:
        say("maskreid: interrupted; finished shards are kept, the same command continues", file=sys.stderr)
        raise typer.Exit(130) from None
    if as_json:
        say_json(report.content())
        return
    lines = report.lines()
    if isinstance(report, ConversionReport):
        end = len(lines) - len(report.warnings)  # which stay last
        lines.insert(end, f"masks: `maskreid masks {out}` judges them")
    say("\n".join(lines))


def _converted(
    layout: Layout, out: Path, part: tuple[int, int] | None, finish: bool, workers: int, options: JobOptions
) -> ConversionReport | PartReport:
    """The shards, or the part of them, that are written here."""
    with progress_bar("converting") as progress:
        if part:
            return convert_part(layout, out, part, workers=workers, progress=progress, **options)
        if finish:
            return finish_parts(layout, out, **options)
        return convert(layout, out, workers=workers, progress=progress, **options)


def _images_of_part(layout: Layout, part: tuple[int, int], options: JobOptions) -> Layout:
    dataset, shard_bytes, seed = options["dataset"], options["shard_bytes"], options["seed"]
    return images_of_part(layout, part, dataset=dataset, shard_bytes=shard_bytes, seed=seed)


def _policy_of(recipe: Path) -> Literal["fail", "full", "skip"]:
    from maskreid_dist.recipe import load_recipe  # imports pydantic, which workers do without

    return load_recipe(recipe).data.on_bad_mask


def _check_published(layout: Layout) -> None:
    """Raise UserError for counts that are not the published ones, or where those are not known."""
    if not layout.published:
        raise UserError(f"{layout.name}: the source's name does not say a data set with published counts")
    if layout.differences():
        raise UserError(f"{layout.name}: not as published: {'; '.join(layout.differences())}")
