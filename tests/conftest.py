"""For all tests: how Triton programs run, and no clock in Hypothesis."""

import os

import torch
from hypothesis import HealthCheck, settings

# Without a GPU, Triton programs run in its interpreter. Triton reads the variable when a kernel is decorated, so it must
# stand before the first import of one.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")
