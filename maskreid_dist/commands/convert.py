"""`maskreid convert`: data sets into shards; `maskreid segment`: masks for the images of one.

A layout's function below says how it is scanned; its parameters are the layout's own arguments and options. The
options that all share are the parameters of `_convert`, and of `_segment`.
"""

import functools
import inspect
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from maskreid_dist.commands import mask_flags as flags
from maskreid_dist.commands.failures import one_line_errors
from maskreid_dist.errors import UserError
from maskreid_shards import (
    SHARD_BYTES,
    Layout,
    merge_train,
    scan_csv,
    scan_cuhk01,
    scan_cuhk03,
    scan_cuhk03_np,
    scan_dgd,
    scan_dukemtmc,
    scan_folder,
    scan_market1501,
    scan_mars,
    scan_msmt17,
    scan_prid,
    scan_viper,
)

convert_app = typer.Typer(no_args_is_help=True, help="Convert a data set into WebDataset shards.")
segment_app = typer.Typer(
    no_args_is_help=True, help="Make person masks for a data set with a network of torchvision."
)

Scan = Callable[..., Layout]
Src = Annotated[Path, typer.Argument(help="The data set's folder.", show_default=False)]
SplitSeed = Annotated[int, typer.Option(min=0, help="Draws the train identities.")]
TrainIdentities = Annotated[int, typer.Option(min=1, help="Identities to draw for training.")]

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


def _convert(
    scan: Callable[[], Layout],
    name: str,
    *,
    out: Annotated[Path, typer.Argument(help="New folder for the shards.", show_default=False)],
    on_bad_mask: Annotated[
        Literal["fail", "full", "skip"] | None,
        typer.Option(
            help="A mask that is missing, unreadable, empty or coloured: stop, use the full image, or skip the pair. Default: fail."
        ),
    ] = None,
    recipe: Annotated[Path | None, typer.Option(help="Take data.on_bad_mask from this recipe.")] = None,
    masks: flags.Masks = None,
    mask_kind: flags.MaskKind = None,
    person_labels: flags.PersonLabels = None,
    invert_masks: flags.InvertMasks = False,
    segment: flags.Segment = None,
    segment_weights: flags.Weights = None,
    segment_device: flags.Device = "auto",
    segment_batch: flags.Batch = 16,
    segment_height: flags.Height = 512,
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
) -> None:
    """Convert what `scan` finds and print the report. `name` is the source's."""
    from maskreid_dist.conversion import run_conversion

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
    )
    mask_options = mask_flags.options(out)
    try:
        report = run_conversion(
            scan,
            out,
            dataset=dataset or name,
            on_bad_mask=on_bad_mask,
            mask_options=mask_options,
            make_masks=lambda layout: mask_flags.make(layout, mask_options),
            shard_bytes=shard_size,
            seed=seed,
            workers=workers or len(os.sched_getaffinity(0)),
            expect_published=expect_published,
        )
    except KeyboardInterrupt:
        print("maskreid: interrupted; finished shards are kept, the same command continues", file=sys.stderr)
        raise typer.Exit(130) from None
    print("\n".join(report.lines()))
    print(f"masks: `maskreid masks {out}` judges them")


def _policy_of(recipe: Path) -> Literal["fail", "full", "skip"]:
    from maskreid_dist.recipe import load_recipe  # imports torch

    return load_recipe(recipe).data.on_bad_mask


def _segment(
    scan: Callable[[], Layout],
    name: str,
    *,
    out: Annotated[
        Path, typer.Argument(help="Folder for the masks; existing ones are kept.", show_default=False)
    ],
    model: Annotated[flags.Model, typer.Option(help="Network of torchvision.")] = "deeplabv3_resnet50",
    segment_weights: Annotated[
        Path | None,
        typer.Option(
            "--weights", help="State dict. Default: torchvision's, from torch.hub's cache or the network."
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    batch: Annotated[int, typer.Option(min=1, help="Images a batch.")] = 16,
    height: Annotated[int, typer.Option(min=64, help="Height in pixels that crops are enlarged to.")] = 512,
) -> None:
    """Make the masks of what `scan` finds, and print the report."""
    from maskreid_dist.segmentation import segment

    try:
        report = segment(
            scan(),
            out,
            model=model,
            weights=segment_weights,
            device=device,
            batch_size=batch,
            input_height=height,
        )
    except KeyboardInterrupt:
        print("maskreid: interrupted; the masks made are kept, the same command continues", file=sys.stderr)
        raise typer.Exit(130) from None
    print("\n".join(report.lines()))


def layout_command(name: str) -> Callable[[Scan], Scan]:
    """Mount a scanner as `maskreid convert NAME` and as `maskreid segment NAME`."""

    def mount(scan: Scan) -> Scan:
        convert_app.command(name)(_command(scan, _convert))
        segment_app.command(name)(_command(scan, _segment))
        return scan

    return mount


def _command(scan: Scan, run: Callable[..., None]) -> Callable[..., None]:
    """A command with the parameters of `scan` (SRC is the first, if there is one) and the keyword parameters of `run` (the first is OUT)."""
    own = inspect.signature(scan).parameters
    shared = [p for p in inspect.signature(run).parameters.values() if p.kind is p.KEYWORD_ONLY]

    @functools.wraps(scan)
    @one_line_errors
    def command(**arguments: Any) -> None:
        mine = {key: arguments.pop(key) for key in own}
        run(lambda: scan(**mine), mine["src"].resolve().name if "src" in mine else scan.__name__, **arguments)

    mine = [p.replace(kind=p.KEYWORD_ONLY) for p in own.values()]
    before_out = 1 if "src" in own else 0
    parameters = [*mine[:before_out], shared[0], *mine[before_out:], *shared[1:]]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # typer reads both
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


@layout_command("market1501")
def market1501(
    src: Src,
    multi_query: Annotated[
        bool, typer.Option("--multi-query", help="Add the split multi_query from gt_bbox.")
    ] = False,
) -> Layout:
    """Market-1501: bounding_box_train, query, bounding_box_test and their _seg folders."""
    return scan_market1501(src, multi_query=multi_query)


@layout_command("dukemtmc")
def dukemtmc(src: Src) -> Layout:
    """DukeMTMC-reID: bounding_box_train, query, bounding_box_test. Withdrawn in 2019."""
    return scan_dukemtmc(src)


@layout_command("cuhk03")
def cuhk03(
    src: Annotated[Path, typer.Argument(help="cuhk-03.mat, or its folder.", show_default=False)],
    boxes: Annotated[
        Literal["labeled", "detected", "merged"], typer.Option(help="Drawn boxes, detected ones, or both.")
    ] = "labeled",
    test_set: Annotated[int, typer.Option(min=1, max=20, help="Which of the 20 test sets.")] = 1,
) -> Layout:
    """CUHK03, classic protocol (100 test identities), from the release's cuhk-03.mat. Needs h5py."""
    return scan_cuhk03(src, boxes=boxes, test_set=test_set)


@layout_command("cuhk03-np")
def cuhk03_np(
    src: Src,
    boxes: Annotated[
        Literal["labeled", "detected"], typer.Option(help="Drawn boxes or detected ones.")
    ] = "labeled",
) -> Layout:
    """CUHK03, new protocol (767 / 700): folders, or cuhk-03.mat and the protocol's config .mat."""
    return scan_cuhk03_np(src, boxes=boxes)


@layout_command("msmt17")
def msmt17(src: Src) -> Layout:
    """MSMT17 V1 or V2, with its lists. Validation images join train."""
    return scan_msmt17(src)


@layout_command("mars")
def mars(src: Src) -> Layout:
    """MARS: all frames of the tracklets. Needs scipy."""
    return scan_mars(src)


@layout_command("viper")
def viper(src: Src, train_identities: TrainIdentities = 316, split_seed: SplitSeed = 0) -> Layout:
    """VIPeR: cam_a and cam_b."""
    return scan_viper(src, train_identities=train_identities, split_seed=split_seed)


@layout_command("prid")
def prid(src: Src, train_identities: TrainIdentities = 100, split_seed: SplitSeed = 0) -> Layout:
    """PRID2011: single_shot/cam_a and cam_b."""
    return scan_prid(src, train_identities=train_identities, split_seed=split_seed)


@layout_command("cuhk01")
def cuhk01(src: Src, train_identities: TrainIdentities = 485, split_seed: SplitSeed = 0) -> Layout:
    """CUHK01: campus."""
    return scan_cuhk01(src, train_identities=train_identities, split_seed=split_seed)


@layout_command("dgd")
def dgd(src: Src) -> Layout:
    """Domain Guided Dropout's form: cam_0, cam_1, meta.json, split.json."""
    return scan_dgd(src)


@layout_command("csv")
def csv(
    src: Annotated[Path, typer.Argument(help="A CSV file: path,pid,camid,split[,mask].", show_default=False)],
) -> Layout:
    """Any data set, listed in a CSV file."""
    return scan_csv(src)


@layout_command("folder")
def folder(
    src: Src,
    camera: Annotated[
        str | None, typer.Option(help="Regular expression with one group, the camera, such as '_c(\\d+)'.")
    ] = None,
) -> Layout:
    """One folder per identity; below train, query, gallery if there are any of these."""
    return scan_folder(src, camera=camera)


# Scanned with their default options when merged.
MERGEABLE: dict[str, Scan] = {
    "market1501": scan_market1501,
    "dukemtmc": scan_dukemtmc,
    "cuhk03": scan_cuhk03,
    "cuhk03-np": scan_cuhk03_np,
    "msmt17": scan_msmt17,
    "mars": scan_mars,
    "viper": scan_viper,
    "prid": scan_prid,
    "cuhk01": scan_cuhk01,
    "dgd": scan_dgd,
    "csv": scan_csv,
    "folder": scan_folder,
}


@layout_command("merge")
def merge(
    parts: Annotated[
        list[str], typer.Argument(metavar="NAME=LAYOUT:SRC...", help="Data sets, such as viper=viper:VIPeR.")
    ],
) -> Layout:
    """The train splits of several data sets as one, with identities and cameras of their own."""
    layouts: dict[str, Layout] = {}
    for part in parts:
        name, equals, place = part.partition("=")
        layout, colon, src = place.partition(":")
        if not (name and equals and layout and colon and src):
            raise UserError(f"{part!r}: write NAME=LAYOUT:SRC, such as viper=viper:VIPeR")
        if layout not in MERGEABLE:
            raise UserError(f"{part!r}: no layout {layout!r}; there are {', '.join(MERGEABLE)}")
        if name in layouts:
            raise UserError(f"{part!r}: the name {name!r} was given twice")
        layouts[name] = MERGEABLE[layout](Path(src))
    return merge_train(layouts)
