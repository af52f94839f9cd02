"""Checks and precision shared by every loss. Names: B = this rank's rows, D = columns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def find_problem(rows_BD: object, labels_B: object, *, rows_name: str, labels_name: str) -> str | None:
    """One line saying what is wrong with a loss's input and what to pass instead, or None."""
    for name, value in ((rows_name, rows_BD), (labels_name, labels_B)):
        if not isinstance(value, Tensor):
            return _not_a_tensor(name, value)
    assert isinstance(rows_BD, Tensor) and isinstance(labels_B, Tensor)
    if rows_BD.dim() != 2 or rows_BD.dtype not in FLOATS or rows_BD.shape[1] == 0:
        return (
            f"{rows_name}: expected a 2-d float tensor with at least one column, "
            f"got shape {tuple(rows_BD.shape)} of {rows_BD.dtype}"
        )
    if labels_B.dim() != 1 or labels_B.dtype not in INTEGERS:
        shape = tuple(labels_B.shape)
        advice = _labels_instead(labels_name, labels_B)
        return f"{labels_name}: expected a 1-d integer tensor, got shape {shape} of {labels_B.dtype}{advice}"
    if labels_B.shape[0] != rows_BD.shape[0]:
        counts = f"{labels_B.shape[0]} entries for {rows_BD.shape[0]} rows of {rows_name}"
        return f"{labels_name}: {counts}; pass one per row"
    if labels_B.device != rows_BD.device:
        devices = f"on {labels_B.device} while {rows_name} is on {rows_BD.device}"
        return f"{labels_name}: {devices}; pass both on one device"
    return None


def find_pair_problem(reference: object) -> str | None:
    """One line where `reference=` is no pair of tensors, or None."""
    if not isinstance(reference, tuple | list) or len(reference) != 2:
        kind = type(reference).__name__
        found = f"{kind} of {len(reference)}" if isinstance(reference, tuple | list) else kind
        return f"reference: expected a pair (rows, labels), got {found}; pass reference=(rows, labels)"
    for place, value in enumerate(reference):
        if not isinstance(value, Tensor):
            return _not_a_tensor(f"reference[{place}]", value)
    return None


def find_reference_problem(reference: object, rows_BD: Tensor, *, rows_name: str) -> str | None:
    """One line saying what is wrong with `reference=` beside rows that are fine, or None."""
    problem = find_pair_problem(reference)
    if problem is not None:
        return problem
    assert isinstance(reference, tuple | list)
    problem = find_problem(*reference, rows_name="reference[0]", labels_name="reference[1]")
    if problem is not None:
        return problem
    rows_RD: Tensor = reference[0]
    if rows_RD.shape[1] != rows_BD.shape[1]:
        widths = f"{rows_RD.shape[1]} columns while {rows_name} has {rows_BD.shape[1]}"
        return f"reference[0]: {widths}; pass rows of one width"
    if rows_RD.device != rows_BD.device:
        devices = f"on {rows_RD.device} while {rows_name} is on {rows_BD.device}"
        return f"reference[0]: {devices}; pass both on one device"
    return None


def _not_a_tensor(name: str, value: object) -> str:
    kind = type(value).__name__
    instead = f"torch.as_tensor({name})"
    if isinstance(value, list | tuple) and value and isinstance(value[0], Tensor):
        instead = f"torch.stack({name})"
    elif _holds_strings(value):
        instead = f"their numbers: torch.tensor([sorted(set({name})).index(one) for one in {name}])"
    return f"{name}: expected a torch.Tensor, got {kind}; pass {instead}"


def _holds_strings(value: object) -> bool:
    kind = getattr(getattr(value, "dtype", None), "kind", None)  # of a NumPy array
    return kind in ("U", "S", "O") or (
        isinstance(value, list | tuple) and bool(value) and isinstance(value[0], str)
    )


def _labels_instead(name: str, labels: Tensor) -> str:
    """What is likely meant by labels of a wrong shape or dtype."""
    if labels.dim() == 2 and labels.shape[1] == 1:
        return f"; pass {name}.squeeze(1){'' if labels.dtype in INTEGERS else '.long()'}"
    if labels.dim() == 2:
        return f"; if they are one-hot, pass {name}.argmax(1)"
    if labels.dim() == 1:
        return f"; pass {name}.long()"
    return f"; pass {name}[None] with one row" if labels.dim() == 0 else ""


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Precision a loss is computed in: float64 stays (gradient checks), everything else is float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def under_transforms() -> bool:
    """Whether torch.func (grad, vmap, hessian, ...) is at work, outside the compiler."""
    return torch._C._are_functorch_transforms_active() and not torch.compiler.is_compiling()


NOTHING = nullcontext()


def on_their_device(rows: Tensor, *, launches: bool) -> AbstractContextManager[None]:
    """Full precision, on the rows' GPU: autocast is off, and launches go to the stream of the device the rows
    are on.

    Triton launches on the current device, whatever its arguments are on. Where nothing has to change, on a
    CPU, the context managers below would be a tenth of a small batch's calls.
    """
    if rows.is_cpu and not launches and not torch.is_autocast_enabled("cpu"):
        return NOTHING
    return _on_their_device(rows)


@contextmanager
def _on_their_device(rows: Tensor) -> Iterator[None]:
    # The compiler, which traces the reference alone, cannot look into device_of.
    on_device = nullcontext() if torch.compiler.is_compiling() else torch.cuda.device_of(rows)
    with on_device, without_autocast(rows.device):
        yield


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Products inside are computed in their operands' dtype. Costs nothing where autocast is off already."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
