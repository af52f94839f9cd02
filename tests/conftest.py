"""Before any kernel is imported: without a GPU, Triton programs run in its interpreter.

Triton reads the variable when a kernel is decorated, so it must stand before the first import of one.
"""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
