"""Which backend and which passes a call would take, and why: `explain`.

The limits stand where they are used; the table here says on what evidence each rests.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from . import backends
from .batch_hard import BATCH_HARD
from .dispatch import Family
from .guards import compute_dtype
from .logsumexp.family import FAMILY as LOG_SUM_EXP
from .precision import PRECISIONS, choose_precision
from .ranking import FAMILY as RANKING
from .softmax import SOFTMAX

FAMILIES: dict[str, Family] = {
    "ranking": RANKING,
    "batch_hard": BATCH_HARD.family,
    **dict.fromkeys(("n_pair", "all_pairs", "circle", "supervised_contrastive"), LOG_SUM_EXP),
    "softmax": SOFTMAX.family,
}
EVIDENCE = {
    "cpu rows": "measured: bench/results/2026-11-26-cpu-promises-xeon.md, N = 64 to 512",
    "cuda rows": "predicted, not measured: bench/results/predictions.md, 256 to 8192 rows",
    "upper triangle": "predicted, not measured: bench/results/predictions.md, symmetric",
    "marks": "an estimate: bench/GPU.md, step marks",
}


@dataclass(frozen=True)
class Choice:
    """backend: its name. passes: what it does, forward first. reasons: a line for each decision."""

    backend: str
    passes: tuple[str, ...]
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join((self.backend, *self.passes, *(f"because {reason}" for reason in self.reasons)))


def explain(
    loss: str,
    rows: int,
    columns: int,
    *,
    world_size: int = 1,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    backend: str = "auto",
    precision: str = "auto",
    inside: float | None = None,
) -> Choice:
    """What a call of the loss of that name (`LOSSES`) would run.

    rows: of all `world_size` ranks together, [rows, columns] of `dtype` on `device`. inside: the share of the
    pairs inside the ranking loss's margin in either role, None if unknown. Nothing is computed and no GPU is
    needed. Raises ValueError where the call would.
    """
    if loss not in FAMILIES:
        raise ValueError(f"loss {loss!r}: use {', '.join(FAMILIES)}")
    family, device = FAMILIES[loss], torch.device(device)
    chosen = backends.choose_backend(
        backend, rows, family.plain_up_to, device=device, available=family.available
    )
    reasons = [_reason(chosen, backend, rows, family, device)]
    if chosen == "triton":
        passes = _triton(loss, rows, columns, world_size, device, dtype, precision, inside, reasons)
    elif chosen == "chunked" and loss != "softmax":
        share = "half of S, each block by rows and by columns" if world_size == 1 else "a share of half of S"
        passes = [f"forward: {share}", f"products of {columns} columns in {compute_dtype(dtype)}"]
    else:
        passes = ["whole matrices"]
    return Choice(chosen, tuple(passes), tuple(reasons))


def _reason(chosen: str, asked: str, rows: int, family: Family, device: torch.device) -> str:
    if asked != "auto":
        return f"backend={asked!r} asks for it"
    if device.type == "cuda" and "triton" in family.available:
        limit = backends.TRITON_FROM_ROWS
        return f"{rows} rows; triton from {limit} on ({EVIDENCE['cuda rows']})"
    return f"{rows} rows; whole matrices up to {family.plain_up_to} ({EVIDENCE['cpu rows']})"


def _triton(
    loss: str,
    rows: int,
    columns: int,
    world_size: int,
    device: torch.device,
    dtype: torch.dtype,
    precision: str,
    inside: float | None,
    reasons: list[str],
) -> list[str]:
    from .batch_hard.specialised import why_not_specialised
    from .ranking.triton_forward import SPARSE_UP_TO  # these import Triton
    from .symmetric_tiles import why_rectangular

    preset = choose_precision(precision, dtype)
    name = next((name for name, one in PRECISIONS.items() if one == preset), "float64")
    why = why_rectangular(-(-rows // world_size), rows, device)
    if dtype == torch.float64 and loss == "batch_hard":
        why = "its keys hold 32 bits of a distance"
    elif dtype == torch.float64 and loss == "ranking":
        why = "its sums hold 36 binary digits behind the point"
    reasons.append(why or f"passes over the upper triangle are on ({EVIDENCE['upper triangle']})")
    forward = f"forward: {'all of S' if why else 'the upper triangle of S'}, products in {name}"
    if loss == "batch_hard":
        columns = -(-columns // 16) * 16  # as they are stored
        own_rows = -(-rows // world_size)
        plain = why_not_specialised(own_rows, rows, columns, preset.rows, device)
        if plain is None:
            forward = f"forward: the upper triangle of S by specialised warps, products in {name}"
        reasons.append(plain or f"specialised warps are on ({EVIDENCE['upper triangle']})")
        return [forward, "backward: two pairs an anchor"]
    if loss != "ranking":
        return [forward, "backward: bands of weights and a product"]
    limit = f"{SPARSE_UP_TO:.2%}"
    if why is None:
        forward += " (rows of length 1 and a margin up to 16: else all of S)"
    if inside is None:
        return [forward, f"backward: marked pairs of anchors that have up to {limit} of all, else bands"]
    reasons.append(
        f"{inside:.2%} of the pairs are inside the margin; marks up to {limit} ({EVIDENCE['marks']})"
    )
    sparse = inside <= SPARSE_UP_TO
    return [forward, f"backward: {'marked pairs' if sparse else 'bands of weights and a product'}"]
