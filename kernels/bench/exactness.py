"""`maskreid bench exactness` from a checkout: python kernels/bench/exactness.py --help."""

import typer

from maskreid_dist.commands.bench import bench_exactness

if __name__ == "__main__":
    typer.run(bench_exactness)
