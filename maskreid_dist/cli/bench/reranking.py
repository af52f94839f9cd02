"""`maskreid bench reranking`."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.table import Table

from maskreid_dist.cli.bench.finish import finish
from maskreid_dist.cli.failures import one_line_errors
from maskreid_dist.cli.options import AsJson
from maskreid_dist.errors import UserError
from maskreid_dist.terminal import Terminal


@one_line_errors
def bench_reranking(
    sizes: Annotated[
        list[str] | None,
        typer.Option("--size", help="market1501 (default) or msmt17; repeatable."),
    ] = None,
    share: Annotated[
        float, typer.Option(min=0.001, max=1, help="Of every size; promises are for 1.", show_default=True)
    ] = 1.0,
    nearly_equal: Annotated[
        bool,
        typer.Option("--nearly-equal", help="Rows one ulp apart too, as of a collapsed network; on a CPU."),
    ] = False,
    device: Annotated[
        Literal["auto", "cpu", "cuda"], typer.Option(help="auto: a GPU where there is one.")
    ] = "auto",
    output: Annotated[Path | None, typer.Option(help="Folder for the CSV.")] = None,
    as_json: AsJson = False,
) -> None:
    """Time and peak memory of k-reciprocal re-ranking, beside the bare product of all images with all."""
    import torch

    from maskreid_dist.bench import reranking
    from maskreid_kernels.bench.figures import Machine, write_rows

    wanted = sizes or ["market1501"]
    if unknown := [name for name in wanted if name not in reranking.SIZES]:
        raise UserError(f"--size {unknown[0]}: choose of {', '.join(reranking.SIZES)}")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no GPU here")
    place = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
    if nearly_equal and place != "cpu":
        raise UserError("--nearly-equal is measured on a CPU: add --device cpu")
    console = Terminal(quiet=as_json)
    machine = Machine.here(place)
    with console.status("measuring"):
        kinds = (False, True) if nearly_equal else (False,)
        costs = [
            reranking.measure(reranking.SIZES[name], share, place, ulp) for name in wanted for ulp in kinds
        ]
    table = Table(box=None)
    for name in ("size", "rows", "images", "seconds", "of CPU", "MB", "product, s", "mAP", "re-ranked"):
        table.add_column(name, justify="left" if name == "size" else "right")
    rows = []
    for cost in costs:
        images = round((cost.size.queries + cost.size.gallery) * share)
        figures = {
            "seconds": cost.clock_s,
            "cpu_s": cost.cpu_s,
            "peak_mb": cost.peak_mb,
            "product_s": cost.product_s,
            "map_before": 100 * cost.before,
            "map_after": 100 * cost.after,
        }
        checked = vars(cost.check) if cost.check else {}
        rows.append({"size": cost.size.name, "rows": cost.rows, "images": images, **figures, **checked})
        decimals = 1 if cost.check is None else 2
        cells = (f"{figure:.{decimals}f}" for figure in figures.values())
        table.add_row(cost.size.name, cost.rows, str(images), *cells)
    console.print(machine.line(), highlight=False)
    console.print(table)
    for cost in costs:
        if cost.check:
            there, host = 100 * cost.check.device, 100 * cost.check.host
            text = f"{cost.size.name}, {cost.check.queries} queries: mAP {there:.4f} on the GPU, {host:.4f}"
            console.print(f"{text} on the host", highlight=False)
    if output:
        path = output / f"{machine.date}-reranking.csv"
        about = {"date": machine.date, "commit": machine.commit, "processor": machine.device}
        write_rows(path, [{**about, **row} for row in rows])
        console.print(f"written: {path}")
    finish(as_json, console, rows, reranking.promises(costs), machine)
