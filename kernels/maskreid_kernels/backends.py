"""Choice of a loss's backend. An explicit choice is obeyed or refused, never replaced."""

from __future__ import annotations

import os

import torch

BACKENDS = ("reference", "chunked")
# On a GPU a smaller batch is launch latency, and nobody's performance. The Triton programs take the fewest
# launches (a third of the plain path's for batch-hard and ranking), so they come first from here on.
# Predicted, not yet measured.
TRITON_FROM_ROWS = 256


def choose_backend(
    backend: str,
    total_rows: int,
    small_up_to: int,
    *,
    device: torch.device,
    available: tuple[str, ...] = BACKENDS,
) -> str:
    """`backend` itself, or for "auto" the faster one.

    On a CPU: the plain form (dense where the loss has it, else reference) up to so many rows of the whole
    group, else chunked. On a GPU: the plain form below TRITON_FROM_ROWS, else triton where the loss has it.
    The rows counted are the group's, so that every rank chooses alike and takes part in the same collectives.
    Raises ValueError when the backend is unknown or not available.
    """
    if backend != "auto":
        check_backend(backend, available)
        if backend == "triton":
            check_device(device)
        return backend
    plain = "dense" if "dense" in available else "reference"
    if device.type == "cuda" and "triton" in available:
        return plain if total_rows < TRITON_FROM_ROWS else "triton"
    return plain if total_rows <= small_up_to else "chunked"


def check_backend(backend: str, available: tuple[str, ...] = BACKENDS) -> None:
    """Raise ValueError when the backend is unknown or not available."""
    if backend != "auto" and backend not in available:
        names = ", ".join(repr(name) for name in ("auto", *available))
        raise ValueError(f"backend {backend!r} is not available; available: {names}")


def check_takes_reference(backend: str, crossed: tuple[str, ...]) -> None:
    """Raise ValueError where a known backend has no form for candidates that are not the batch."""
    if backend != "auto" and backend not in crossed:
        raise ValueError(f'backend {backend!r} takes no reference=; use backend="chunked"')


def check_device(device: torch.device) -> None:
    """Raise ValueError where Triton programs cannot run on the device."""
    if device.type == "cpu" and not interpreted():
        raise ValueError(
            'backend "triton" needs rows on a GPU, they are on the CPU (or set TRITON_INTERPRET=1 before the '
            "first import)"
        )


def interpreted() -> bool:
    """Whether Triton programs run in its interpreter, on the CPU."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"
