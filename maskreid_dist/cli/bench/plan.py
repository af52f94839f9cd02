"""`maskreid bench plan`."""

from typing import Annotated

import typer

from maskreid_dist.cli.bench.finish import finish
from maskreid_dist.cli.failures import one_line_errors
from maskreid_dist.cli.options import AsJson
from maskreid_dist.terminal import Terminal


@one_line_errors
def bench_plan(
    identities: Annotated[int, typer.Option(min=1000, help="Made up, with a Zipf tail.")] = 1_000_000,
    as_json: AsJson = False,
) -> None:
    """Time and memory of the plan; exit status 1 when a million identities take more than 1 s or 64 MB."""
    from maskreid_kernels.bench.figures import Promise
    from maskreid_shards.bench.plan import measure_plan

    console = Terminal(quiet=as_json)
    cost = measure_plan(identities)
    console.print(
        f"{cost.identities} identities, P x K = 64 x 4; promises are for a million", highlight=False
    )
    console.print(f"a later step: {cost.next_step_ms:.2f} ms", highlight=False)
    promises = (
        Promise("first step of an epoch, ms", cost.first_step_ms, 1000, False),
        Promise("memory of that step, MB", cost.peak_mb, 64, False),
    )
    finish(as_json, console, [vars(cost)], promises)
