"""`maskreid convert LAYOUT` and `maskreid segment LAYOUT`, for every layout of the table
`maskreid_shards.LAYOUTS`.

A scanner's parameters are its command's own: the first is SRC, the others are options. The options that all
share are the parameters of `convert_layout`, and of `segment_layout`.
"""

import inspect
import sys
from collections.abc import Callable
from dataclasses import replace
from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from maskreid_dist.cli.convert import convert_layout
from maskreid_dist.cli.failures import one_line_errors
from maskreid_dist.cli.segment import segment_layout
from maskreid_dist.errors import UserError
from maskreid_shards import LAYOUTS, Layout, merge_train

convert_app = typer.Typer(no_args_is_help=True, help="Convert a data set into WebDataset shards.")
segment_app = typer.Typer(no_args_is_help=True, help="Make person masks for a data set with a network.")

# What --help says of a scanner's parameters, of one layout or of all that have them.
HELP = {
    "src": "The data set's folder.",
    "cuhk03.src": "cuhk-03.mat, or its folder.",
    "lmdb.src": "The folder with data.mdb, or one with lmdb/ below it.",
    "lmdb.pattern": "Regular expression searched in the keys, with the named groups pid and perhaps camid.",
    "csv.src": "A CSV file: path,pid,camid,split[,mask].",
    "multi_query": "Add the split multi_query from gt_bbox.",
    "layumi.multi_query": "Add the split multi_query from multi-query.",
    "boxes": "Drawn boxes, detected ones, or both.",
    "cuhk03-np.boxes": "Drawn boxes or detected ones.",
    "test_set": "Which of the 20 test sets.",
    "train_identities": "Identities to draw for training.",
    "split_seed": "Draws the train identities.",
    "pattern": "Regular expression searched in the images' paths below SRC, with the named groups pid, and "
    "if you like camid, frame, split: '(?P<pid>\\d+)_c(?P<camid>\\d+)'.",
    "camera": "Regular expression with one group, the camera, such as '_c(\\d+)'.",
}
Run = Callable[..., None]


def layout_command(name: str, scan: Callable[..., Layout], run: Run) -> Callable[..., None]:
    """A command with the scanner's parameters, SRC first, and the keyword parameters of `run`, OUT first."""
    hints = get_type_hints(scan)
    own = [
        one.replace(annotation=_annotation(name, one, hints[one.name]), kind=Parameter.KEYWORD_ONLY)
        for one in inspect.signature(scan).parameters.values()
    ]

    @one_line_errors
    def command(**arguments: Any) -> None:
        mine = {one.name: arguments.pop(one.name) for one in own}
        src = mine.pop("src")
        home = src if src.is_dir() else src.parent
        run(lambda: replace(scan(src, **mine), home=home), src.resolve().name, **arguments)

    shared = _keyword_parameters(run)
    about = sys.modules[scan.__module__].__doc__ or scan.__doc__ or ""
    return _described(command, about, [own[0], shared[0], *own[1:], *shared[1:]])


def _annotation(layout: str, parameter: Parameter, hint: Any) -> Any:
    text = HELP.get(f"{layout}.{parameter.name}") or HELP.get(parameter.name)
    if parameter.default is Parameter.empty:
        return Annotated[hint, typer.Argument(help=text, show_default=False)]
    flags = [f"--{parameter.name.replace('_', '-')}"] if hint is bool else []  # without --no-...
    return Annotated[hint, typer.Option(*flags, help=text)]


def _keyword_parameters(function: Callable[..., None]) -> list[Parameter]:
    parameters = inspect.signature(function).parameters.values()
    return [one for one in parameters if one.kind is Parameter.KEYWORD_ONLY]


def _described(command: Run, about: str, parameters: list[Parameter]) -> Run:
    """The command as typer reads it: its help is the first paragraph of `about`."""
    command.__doc__ = " ".join(about.partition("\n\n")[0].split())
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # typer reads both
    command.__annotations__ = {one.name: one.annotation for one in parameters}
    return command


Parts = Annotated[
    list[str], typer.Argument(metavar="NAME=LAYOUT:SRC...", help="Data sets, such as viper=viper:VIPeR.")
]


def merge_command(run: Run) -> Run:
    """The command that scans several data sets, and has the keyword parameters of `run`, OUT first."""

    @one_line_errors
    def command(parts: list[str], **arguments: Any) -> None:
        run(lambda: merge(parts), "merge", **arguments)

    shared = _keyword_parameters(run)
    parts = Parameter("parts", Parameter.KEYWORD_ONLY, annotation=Parts)
    return _described(command, merge.__doc__ or "", [shared[0], parts, *shared[1:]])


def merge(parts: list[str]) -> Layout:
    """The train splits of several data sets as one, with identities and cameras of their own."""
    layouts: dict[str, Layout] = {}
    for part in parts:
        name, equals, place = part.partition("=")
        layout, colon, src = place.partition(":")
        if not (name and equals and layout and colon and src):
            raise UserError(f"{part!r}: write NAME=LAYOUT:SRC, such as viper=viper:VIPeR")
        if layout not in LAYOUTS:
            raise UserError(f"{part!r}: no layout {layout!r}; there are {', '.join(LAYOUTS)}")
        if name in layouts:
            raise UserError(f"{part!r}: the name {name!r} was given twice")
        layouts[name] = LAYOUTS[layout](Path(src))  # with its default options
    return merge_train(layouts)


for app, what_is_done in ((convert_app, convert_layout), (segment_app, segment_layout)):
    for layout_name, scanner in LAYOUTS.items():
        app.command(layout_name)(layout_command(layout_name, scanner, what_is_done))
    app.command("merge")(merge_command(what_is_done))
