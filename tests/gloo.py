"""Ranks as gloo processes, for tests: the benchmarks' own."""

from maskreid_kernels.bench.gloo import run_ranks

__all__ = ["run_ranks"]
