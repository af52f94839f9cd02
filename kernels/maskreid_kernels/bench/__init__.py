"""Benchmarks of the losses: `python -m maskreid_kernels.bench loss | exactness | ahead-of-time | gpu` (see
__main__)."""
