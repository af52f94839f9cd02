"""`maskreid bench mixing`."""

from typing import Annotated

import typer
from rich.table import Table

from maskreid_dist.cli.bench.finish import finish
from maskreid_dist.cli.carried import WALKERS, carried_shards
from maskreid_dist.cli.failures import one_line_errors
from maskreid_dist.cli.options import AsJson
from maskreid_dist.terminal import Terminal


@one_line_errors
def bench_mixing(
    shards: Annotated[str, typer.Argument(help="A folder or a URL.")] = WALKERS,
    identities: Annotated[int, typer.Option(min=2, help="P, over all ranks.")] = 16,
    images: Annotated[int, typer.Option(min=1, help="K.")] = 4,
    world: Annotated[int, typer.Option(min=1, help="Ranks.")] = 1,
    workers: Annotated[int, typer.Option(min=0, help="Data workers of a rank.")] = 2,
    pools: Annotated[
        list[int] | None, typer.Option("--pool", min=1, help="Repeatable. Default: 32, 64, 256.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the recipe.")] = 0,
    epochs: Annotated[int, typer.Option(min=2, help="How many are planned.")] = 10,
    as_json: AsJson = False,
) -> None:
    """How mixed batches are, with data.access indexed and stream: steps of an epoch; shards that a batch is
    of; of the pairs of identities in a batch, how many are of one shard; how many of them meet in the next
    epoch again. No sample is read."""
    from maskreid_shards import Plan, StreamPlan, open_shards
    from maskreid_shards.bench.mixing import mixing

    split = open_shards(carried_shards(shards)).split("train")
    of_sample = split.index["shard"].astype("int64")
    plan = Plan.pk(split.table, identities=identities, images=images, seed=seed)
    plan.check_world(world)
    plans: dict[str, Plan | StreamPlan] = {"indexed": plan}
    for pool in pools or (32, 64, 256):
        readers = max(1, workers)
        streamed = StreamPlan.of(plan, of_sample, pool=pool, world=world, readers=readers)
        plans[f"stream, pool of {pool}"] = streamed
    table = Table(title=f"{shards}: {epochs} epochs, {world} ranks x {workers} workers", box=None)
    for heading in ("", "steps", "shards a batch", "of one shard, %", "met again, %"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    rows = []
    for name, each in plans.items():
        found = mixing(each, of_sample, world, epochs)
        rows.append({"access": name, "steps_per_epoch": each.steps_per_epoch, **vars(found)})
        shares = (f"{100 * found.one_shard:.1f}", f"{100 * found.again:.1f}")
        table.add_row(name, str(each.steps_per_epoch), f"{found.shards:.1f}", *shares)
    console = Terminal(quiet=as_json)
    console.print(table)
    finish(as_json, console, rows, [])
