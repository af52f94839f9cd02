"""`maskreid plan-run`: what a recipe would take on so many ranks, without a cluster."""

from pathlib import Path
from typing import Annotated

import typer

from maskreid_dist.cli.failures import one_line_errors
from maskreid_dist.cli.options import AsJson
from maskreid_dist.terminal import say, say_json

GROUPS = {
    "batches": "batches",
    "traffic": "received by a rank in a step",
    "flops": "computed by a rank in a step",
    "memory": "memory of a rank",
    "checkpoint": "a checkpoint",
    "time": "predicted, of a step",
    "assumed": "assumed of each rank",
}
UNITS = {
    "_mb": (1e6, "B"),
    "_gb": (1e9, "B"),
    "_ms": (1e-3, "s"),
    "_tflop": (1e12, "FLOP"),
    "_gb_s": (1e9, "B/s"),
    "_mb_s": (1e6, "B/s"),
    "_pairs_s": (1, "pairs/s of a data worker"),
    "tflops": (1e12, "FLOP/s"),
}
PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1, ""), (1e-3, "m"), (1e-6, "µ"))


@one_line_errors
def plan_run(
    recipe: Annotated[
        Path, typer.Argument(help="TOML recipe; its shards must be readable.", show_default=False)
    ],
    world: Annotated[int, typer.Option(min=1, help="Ranks.")] = 1,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key; repeatable.")
    ] = None,
    tflops: Annotated[float, typer.Option(min=1e-6, help="That a rank reaches: not the peak.")] = 10.0,
    network_gb_s: Annotated[float, typer.Option(min=1e-6, help="Of a rank in a collective.")] = 10.0,
    read_mb_s: Annotated[float, typer.Option(min=1e-6, help="Of a rank from the shards.")] = 200.0,
    decode_pairs_s: Annotated[
        float, typer.Option(min=1e-6, help="Of a data worker, with augmentation.")
    ] = 1000.0,
    memory_gb: Annotated[float, typer.Option(min=0, help="Of a rank's GPU.")] = 80.0,
    as_json: AsJson = False,
) -> None:
    """Steps, bytes, FLOPs, memory and predicted time of a training; status 2 where it cannot work."""
    from maskreid_dist.data.batches import open_recipe_shards
    from maskreid_dist.planning.run_plan import Rates, run_plan
    from maskreid_dist.recipe import load_recipe

    config = load_recipe(recipe, overrides or ())
    rates = Rates(tflops, network_gb_s, read_mb_s, decode_pairs_s, memory_gb)
    plan = run_plan(config, open_recipe_shards(config.data).split("train"), world, rates)
    if as_json:
        say_json(plan)
        return
    say(f"{plan['recipe']} on {plan['world']} ranks")
    for group, title in GROUPS.items():
        say(f"\n{title}")
        for name, value in plan[group].items():
            say(_line(name, value))


def _line(name: str, value: str | float) -> str:
    """ "  gathered                        33.02 kB"."""
    end = max((end for end in UNITS if name.endswith(end)), key=len, default="")
    label = (name.removesuffix(end) or "computing").replace("_", " ")
    size, unit = UNITS.get(end, (1, ""))
    if isinstance(value, str) or not unit or unit.startswith("pairs"):
        shown = value if isinstance(value, str) else f"{value:,.4g}" if value < 10_000 else f"{value:,.0f}"
        return f"  {label:<28} {shown:>10} {unit}".rstrip()
    scale, prefix = next((pair for pair in PREFIXES if value * size >= pair[0]), (1, ""))
    return f"  {label:<28} {value * size / scale:>10.4g} {prefix}{unit}"
