"""`maskreid bench loss` from a checkout: python kernels/bench/loss.py --help. Results are kept in results/."""

import typer

from maskreid_dist.commands.bench import bench_loss

if __name__ == "__main__":
    typer.run(bench_loss)
