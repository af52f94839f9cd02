"""Checks and precision shared by every loss. Names: B = this rank's rows, D = columns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

from .ranks import DTYPE_CODES

INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def find_problem(rows_BD: Tensor, labels_B: Tensor, *, rows_name: str, labels_name: str) -> str | None:
    """One line saying what is wrong with a loss's input, or None."""
    if rows_BD.dim() != 2 or rows_BD.dtype not in DTYPE_CODES or rows_BD.shape[1] == 0:
        return (
            f"{rows_name}: expected a 2-d float tensor with at least one column, "
            f"got shape {tuple(rows_BD.shape)} of {rows_BD.dtype}"
        )
    if labels_B.dim() != 1 or labels_B.dtype not in INTEGERS:
        shape = tuple(labels_B.shape)
        return f"{labels_name}: expected a 1-d integer tensor, got shape {shape} of {labels_B.dtype}"
    if labels_B.shape[0] != rows_BD.shape[0]:
        counts = f"{labels_B.shape[0]} entries for {rows_BD.shape[0]} rows of {rows_name}"
        return f"{labels_name}: {counts}; pass one per row"
    if labels_B.device != rows_BD.device:
        devices = f"on {labels_B.device} while {rows_name} is on {rows_BD.device}"
        return f"{labels_name}: {devices}; pass both on one device"
    return None


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Precision a loss is computed in: float64 stays (gradient checks), everything else is float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@contextmanager
def on_their_device(rows: Tensor) -> Iterator[None]:
    """Full precision, on the rows' GPU: autocast is off, and launches go to the stream of the device the rows are on.

    Triton launches on the current device, whatever its arguments are on.
    """
    with torch.cuda.device_of(rows), without_autocast(rows.device):
        yield


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Products inside are computed in their operands' dtype. Costs nothing where autocast is off already."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
