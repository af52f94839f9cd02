"""Choice of a loss's backend. An explicit choice is obeyed or refused, never replaced."""

from __future__ import annotations

BACKENDS = ("reference", "chunked")


def choose_backend(backend: str, total_rows: int, reference_up_to: int) -> str:
    """`backend` itself, or for "auto" the faster one: reference up to so many rows of the whole group, else
    chunked.

    The rows counted are the group's, so that every rank chooses alike and takes part in the same collectives.
    Raises ValueError when the backend is unknown or not available.
    """
    check_backend(backend)
    if backend != "auto":
        return backend
    return "reference" if total_rows <= reference_up_to else "chunked"


def check_backend(backend: str) -> None:
    """Raise ValueError when the backend is unknown or not available."""
    if backend != "auto" and backend not in BACKENDS:
        available = ", ".join(repr(name) for name in ("auto", *BACKENDS))
        raise ValueError(f"backend {backend!r} is not available; available: {available}")
