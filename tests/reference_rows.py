"""Cases of candidates that are not the batch (`reference=`): losses by their formulas, and batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import maskreid_kernels as kernels
from maskreid_kernels import blocks

BACKENDS = ("reference", "chunked")
PAIR_LOSSES = [name for name in kernels.LOSSES if name != "softmax"]
# Every branch of the losses: each with constants that leave no term out.
CASES: list[tuple[str, dict[str, Any]]] = [
    ("ranking", {"margin": 0.3, "pull": 1.5}),
    ("ranking", {"margin": 0.2, "negatives": "violating"}),
    ("ranking", {"margin": 0.2, "normalize": False}),
    ("batch_hard", {"margin": 0.7}),
    ("batch_hard", {"margin": "soft", "distance": "squared_euclidean", "normalize": True}),
    ("batch_hard", {"margin": 0.4, "distance": "cosine"}),
    ("n_pair", {"scale": 3.0}),
    ("n_pair", {"scale": 2.0, "normalize": False}),
    ("all_pairs", {"scale": 2.0, "margin": 0.1}),
    ("circle", {"gamma": 8.0}),
    ("supervised_contrastive", {"temperature": 0.3}),
]
Pair = tuple[Tensor, Tensor]


# The losses by their formulas, one anchor at a time (kernels/README.md, Maths).


def unit(x: Tensor) -> Tensor:
    return x / x.norm() if x.norm() > 0 else x


def ranking(s: list[Tensor], n: list[Tensor], c: dict[str, Any]) -> Tensor:
    least = min(s)
    gaps = [value - least + c["margin"] for value in n]
    if c["negatives"] == "violating":
        gaps = [gap for gap in gaps if gap > 0]
    push = torch.log(sum((gap.clamp(min=0).exp() for gap in gaps), torch.ones_like(least)))
    pulled: Tensor = c["pull"] / (2 * len(s)) * sum((value - 1) ** 2 for value in s)
    return push + pulled


def n_pair(s: list[Tensor], n: list[Tensor], c: dict[str, Any]) -> Tensor:
    values = [torch.log(1 + sum((c["scale"] * (b - a)).exp() for b in n)) for a in s]
    return sum(values[1:], values[0]) / len(s)


def all_pairs(s: list[Tensor], n: list[Tensor], c: dict[str, Any]) -> Tensor:
    return torch.log(1 + sum((c["scale"] * (b - a + c["margin"])).exp() for a in s for b in n))


def circle(s: list[Tensor], n: list[Tensor], c: dict[str, Any]) -> Tensor:
    m, gamma = c["margin"], c["gamma"]
    pushed = sum((gamma * (b.detach() + m).clamp(min=0) * (b - m)).exp() for b in n)
    pulled = sum((-gamma * (1 + m - a.detach()).clamp(min=0) * (a - 1 + m)).exp() for a in s)
    return torch.log(1 + pushed * pulled)


def supervised_contrastive(s: list[Tensor], n: list[Tensor], c: dict[str, Any]) -> Tensor:
    t = c["temperature"]
    mean: Tensor = sum(s[1:], s[0]) / (len(s) * t)
    return torch.log(sum((value / t).exp() for value in s + n)) - mean


OF_SIMILARITIES: dict[str, Callable[..., Tensor]] = {
    one.__name__: one for one in (ranking, n_pair, all_pairs, circle, supervised_contrastive)
}


def distance(a: Tensor, b: Tensor, kind: str) -> Tensor:
    if kind == "cosine":
        return 1 - a @ b
    square = ((a - b) ** 2).sum()
    if kind == "squared_euclidean":
        return square
    return square.sqrt() if square > 0 else square  # its gradient at 0 is 0


def batch_hard(a: Tensor, p: list[Tensor], n: list[Tensor], c: dict[str, Any]) -> Tensor:
    gap = max(distance(a, b, c["distance"]) for b in p) - min(distance(a, b, c["distance"]) for b in n)
    return torch.log(1 + gap.exp()) if c["margin"] == "soft" else (gap + c["margin"]).clamp(min=0)


def loop(name: str, x: Tensor, y: Tensor, reference: Pair, **options: Any) -> dict[int, Tensor]:
    """L(k) of every valid anchor."""
    c = {**kernels.constants(name), **options}
    rows, labels = reference
    if c["normalize"] or c.get("distance") == "cosine":
        x, rows = (torch.stack([unit(row) for row in one]) if len(one) else one for one in (x, rows))
    values = {}
    for k in range(len(x)):
        p = [rows[i] for i in range(len(rows)) if labels[i] == y[k]]
        n = [rows[i] for i in range(len(rows)) if labels[i] != y[k]]
        if not p or not n:
            continue
        if name == "batch_hard":
            values[k] = batch_hard(x[k], p, n, c)
        else:
            values[k] = OF_SIMILARITIES[name]([x[k] @ row for row in p], [x[k] @ row for row in n], c)
    return values


def rows_of(count: int, seed: int, columns: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, columns, generator=generator, dtype=torch.float64)


def labels_of(count: int, identities: int, seed: int) -> Tensor:
    return torch.randint(identities, (count,), generator=torch.Generator().manual_seed(seed)) * 3 - 4


def duplicates() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Similarities and distances that are equal to the bit; some references are anchors' rows."""
    generator = torch.Generator().manual_seed(2)
    rows = torch.randint(-2, 3, (6, 4), generator=generator).double() / 2
    return rows, torch.arange(6) // 2, rows.repeat(3, 1), torch.arange(18) % 6 // 2


SITUATIONS: dict[str, tuple[Tensor, Tensor, Tensor, Tensor]] = {
    "ragged": (rows_of(11, 0), labels_of(11, 4, 1), rows_of(19, 2), labels_of(19, 4, 3)),
    "few_references": (rows_of(13, 4), labels_of(13, 3, 5), rows_of(4, 6), torch.tensor([-4, -1, -1, 2])),
    "one_anchor": (
        rows_of(1, 7),
        torch.tensor([5]),
        rows_of(9, 8),
        torch.tensor([5, 1, 2, 5, 3, 1, 5, 2, 1]),
    ),
    "some_without_positives": (rows_of(6, 9), torch.arange(6), rows_of(5, 10), torch.tensor([0, 0, 2, 4, 9])),
    "no_positives": (rows_of(6, 11), torch.zeros(6).long(), rows_of(5, 12), torch.ones(5).long()),
    "one_identity": (rows_of(6, 13), torch.ones(6).long(), rows_of(5, 14), torch.ones(5).long()),
    "no_references": (rows_of(6, 15), torch.arange(6) % 2, rows_of(0, 0), torch.zeros(0).long()),
    "no_rows": (rows_of(0, 0), torch.zeros(0).long(), rows_of(5, 16), torch.arange(5) % 2),
    "duplicates": duplicates(),
}


def step(
    name: str, x: Tensor, y: Tensor, r: Tensor, z: Tensor, **options: Any
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    x, r = x.clone().requires_grad_(), r.clone().requires_grad_()
    value = kernels.LOSSES[name](x, y, reference=(r, z), **options)
    value.sum().backward()
    return value.detach(), x.grad, r.grad


def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "TILE_COLUMNS", 5)
    monkeypatch.setattr(blocks, "CACHE_BYTES", 1)
    monkeypatch.setattr(blocks, "FAST_ROWS", 3)
