"""`maskreid convert`: data sets into shards.

A layout's function below says how it is scanned; its parameters are the layout's own arguments and options. The
options that all share are the parameters of `_convert`.
"""

import functools
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from maskreid_dist.commands.failures import one_line_errors
from maskreid_dist.recipe import load_recipe
from maskreid_shards import Layout, MaskOptions
from maskreid_shards.layouts.dukemtmc import scan_dukemtmc
from maskreid_shards.layouts.market1501 import scan_market1501

convert_app = typer.Typer(no_args_is_help=True, help="Convert a data set into WebDataset shards.")

Scan = Callable[..., Layout]
Src = Annotated[Path, typer.Argument(help="The data set's folder.", show_default=False)]


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
    dataset: Annotated[
        str | None, typer.Option(help="Name written into every sample. Default: the source's name.")
    ] = None,
    shard_mb: Annotated[float, typer.Option(min=0.01, help="Size at which a shard is closed, in MB.")] = 64.0,
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

    try:
        report = run_conversion(
            scan,
            out,
            dataset=dataset or name,
            on_bad_mask=on_bad_mask or (load_recipe(recipe).data.on_bad_mask if recipe else "fail"),
            mask_options=MaskOptions(),
            shard_bytes=round(shard_mb * 1_000_000),
            seed=seed,
            workers=workers or len(os.sched_getaffinity(0)),
            expect_published=expect_published,
        )
    except KeyboardInterrupt:
        print("maskreid: interrupted; finished shards are kept, the same command continues", file=sys.stderr)
        raise typer.Exit(130) from None
    print("\n".join(report.lines()))


def layout_command(name: str) -> Callable[[Scan], Scan]:
    """Mount a scanner as `maskreid convert NAME`: its parameters (the first is SRC), then those of `_convert`."""

    def mount(scan: Scan) -> Scan:
        own = inspect.signature(scan).parameters
        shared = [p for p in inspect.signature(_convert).parameters.values() if p.kind is p.KEYWORD_ONLY]

        @functools.wraps(scan)
        @one_line_errors
        def command(**arguments: Any) -> None:
            mine = {key: arguments.pop(key) for key in own}
            _convert(lambda: scan(**mine), mine["src"].resolve().name, **arguments)

        first, *others = (p.replace(kind=p.KEYWORD_ONLY) for p in own.values())
        parameters = [first, shared[0], *others, *shared[1:]]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # typer reads both
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        convert_app.command(name)(command)
        return scan

    return mount


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
