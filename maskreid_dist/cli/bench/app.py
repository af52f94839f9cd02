"""The commands of `maskreid bench`."""

import typer

from maskreid_dist.cli.bench.convert import bench_convert
from maskreid_dist.cli.bench.loader import bench_loader
from maskreid_dist.cli.bench.losses import bench_exactness, bench_loss
from maskreid_dist.cli.bench.masks import bench_masks
from maskreid_dist.cli.bench.mixing import bench_mixing
from maskreid_dist.cli.bench.plan import bench_plan
from maskreid_dist.cli.bench.reranking import bench_reranking
from maskreid_dist.cli.bench.retrieval import bench_retrieval
from maskreid_dist.cli.bench.step import bench_step

bench_app = typer.Typer(
    no_args_is_help=True,
    help="Measure the loss step, the loader, the converters, batches, the ranking and the masks.",
)
# These two have their options in maskreid_kernels.bench, --help too.
PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True}
bench_app.command("loss", context_settings=PASSED_ON, add_help_option=False)(bench_loss)
bench_app.command("exactness", context_settings=PASSED_ON, add_help_option=False)(bench_exactness)
bench_app.command("plan")(bench_plan)
bench_app.command("convert")(bench_convert)
bench_app.command("loader")(bench_loader)
bench_app.command("mixing")(bench_mixing)
bench_app.command("retrieval")(bench_retrieval)
bench_app.command("masks")(bench_masks)
bench_app.command("reranking")(bench_reranking)
bench_app.command("step")(bench_step)
