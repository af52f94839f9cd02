"""Benchmarks of the loss step, beside the strongest forms that others have. `maskreid bench` runs them."""
