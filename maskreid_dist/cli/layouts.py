"""`maskreid convert LAYOUT` and `maskreid segment LAYOUT`, for every layout of a data set.

A layout's function below says how it is scanned; its parameters are the layout's own arguments and options.
The options that all share are the parameters of `convert_layout`, and of `segment_layout`.
"""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from maskreid_dist.cli.convert import convert_layout
from maskreid_dist.cli.failures import one_line_errors
from maskreid_dist.cli.segment import segment_layout
from maskreid_dist.errors import UserError
from maskreid_shards import (
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


def layout_command(name: str) -> Callable[[Scan], Scan]:
    """Mount a scanner as `maskreid convert NAME` and as `maskreid segment NAME`."""

    def mount(scan: Scan) -> Scan:
        convert_app.command(name)(_command(scan, convert_layout))
        segment_app.command(name)(_command(scan, segment_layout))
        return scan

    return mount


def _command(scan: Scan, run: Callable[..., None]) -> Callable[..., None]:
    """A command with the parameters of `scan` (SRC is the first, if there is one) and the keyword
    parameters of `run` (the first is OUT)."""
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
