"""The Triton program that counts the rows before a query's good images, against the definition in float64.
Interpreted without a GPU, else run on it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import kernel_checks
from kernel_checks import DEVICE, GPU, pick
from maskreid_kernels import triton_tiles
from maskreid_kernels.retrieval_counts import (
    Counts,
    Thresholds,
    count_below,
    counted_dtype,
    error_bound,
)

# Queries, gallery rows, columns, thresholds.
SHAPES = pick(
    [(1, 1, 1, 1), (33, 65, 70, 3), (300, 1000, 257, 7), (700, 3001, 2048, 5), (129, 4099, 256, 40)],
    [(33, 65, 70, 3), (129, 300, 256, 5)],
    [(1, 1, 1, 1), (2, 5, 3, 1), (33, 65, 70, 3), (40, 150, 33, 6)],
)
DTYPES = pick(
    [torch.bfloat16, torch.float16, torch.float32],
    [torch.bfloat16, torch.float32],
    [torch.float16, torch.float32],
)


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is read before it is written shows."""
    allocate = Tensor.new_empty

    def fill(*arguments: Any, **options: Any) -> Tensor:
        memory: Tensor = allocate(*arguments, **options)
        return memory.fill_(float("nan") if memory.dtype.is_floating_point else -(2**30))

    monkeypatch.setattr(Tensor, "new_empty", fill)


def case(
    queries: int,
    rows: int,
    columns: int,
    thresholds: int,
    dtype: torch.dtype,
    *,
    width: float = 1.0,
    seed: int = 0,
) -> dict[str, Any]:
    """Small integers, whose products every way of multiplying has exactly: many ties, thresholds on and
    between them.

    width: of the intervals; some are empty, some hold one another's ends. Some queries have fewer thresholds,
    one none.
    """
    generator = torch.Generator().manual_seed(seed)

    def integers(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=generator)

    most = (integers(-2 * columns, 2 * columns + 1, queries, thresholds) / 2).float()
    high_QR = most.sort(dim=1, descending=True).values
    low_QR = high_QR - width * torch.randint(0, 3, (queries, 1), generator=generator)
    number_Q = integers(0, thresholds + 1, queries)
    number_Q[0] = thresholds
    missing_QR = torch.arange(thresholds)[None] >= number_Q[:, None]
    low_QR[missing_QR] = high_QR[missing_QR] = float("-inf")
    made = {
        "query_QD": integers(-1, 2, queries, columns).to(dtype),
        "gallery_GD": integers(-1, 2, rows, columns).to(dtype),
        "query_labels_Q": integers(0, 4, queries).int(),
        "gallery_labels_G": integers(-1, 4, rows).int(),
        "slope_G": 1.0 - 3.0 * integers(0, 2, rows).float(),
        "offset_G": integers(-3, 4, rows).float() / 2,
    }
    on_device = {name: value.to(DEVICE) for name, value in made.items()}
    both = (x.T.contiguous().to(DEVICE) for x in (low_QR, high_QR))
    return {**on_device, "thresholds": Thresholds(*both)}


def in_order(open_3I: Tensor) -> list[list[int]]:
    triples: list[list[int]] = open_3I.cpu().T.tolist()
    return sorted(triples)


def check(inputs: dict[str, Any], capacity: int = 1 << 14) -> Counts:
    found = count_below(**inputs, capacity=capacity)
    if kernel_checks.VALUES:
        expected = count_below(**inputs, capacity=capacity, backend="reference")
        assert torch.equal(found.below_RQ, expected.below_RQ)
        assert (found.open_3I is None) == (expected.open_3I is None)
        if found.open_3I is not None and expected.open_3I is not None:
            assert in_order(found.open_3I) == in_order(expected.open_3I)
    return found


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_ragged_shapes(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    found = check(case(*shape, dtype))
    assert found.below_RQ.shape == (shape[3], shape[0]) and found.below_RQ.dtype == torch.int32


@pytest.mark.parametrize("processors", [1, 5])
def test_one_chunk_and_many(monkeypatch: pytest.MonkeyPatch, processors: int) -> None:
    """So few programs that each walks several tiles, and several that share a block of queries."""
    monkeypatch.setattr(triton_tiles, "processors", lambda device: processors)
    monkeypatch.setattr(triton_tiles, "SIDE_BY_SIDE", 3)
    check(case(*pick([(300, 5000, 64, 4)], [(300, 5000, 64, 4)], [(35, 400, 20, 4)])[0], torch.float32))


def test_wide_intervals_are_listed_once_and_beyond_the_capacity_not_at_all() -> None:
    inputs = case(20, 90, 10, 6, torch.float32, width=4.0)
    whole = check(inputs)
    if kernel_checks.VALUES:
        assert whole.open_3I is not None and whole.open_3I.shape[1] > 100
        pairs = [(q, g) for q, g, _ in in_order(whole.open_3I)]
        assert len(set(pairs)) == len(pairs)
        exactly, short = (check(inputs, capacity=whole.open_3I.shape[1] - less) for less in (0, 1))
        assert exactly.open_3I is not None and short.open_3I is None
        assert torch.equal(short.below_RQ, whole.below_RQ)


def test_one_label_and_no_thresholds() -> None:
    inputs = case(9, 70, 5, 3, torch.float32)
    same = inputs | {name: torch.zeros_like(inputs[name]) for name in ("query_labels_Q", "gallery_labels_G")}
    found = check(same)
    if kernel_checks.VALUES:
        assert not found.below_RQ.any() and found.open_3I is not None and not found.open_3I.numel()
    nothing = torch.empty((0, 9), device=DEVICE)
    assert count_below(
        **inputs | {"thresholds": Thresholds(nothing, nothing)}, capacity=5
    ).below_RQ.shape == (0, 9)


@pytest.mark.parametrize("empty", ["query_QD", "gallery_GD"])
def test_no_rows(empty: str) -> None:
    sizes = (0, 8) if empty == "query_QD" else (8, 0)
    inputs = case(8, 8, 4, 2, torch.float32)
    cut: dict[str, Any] = {
        name: x[: sizes["_G" in name or "gallery" in name]]
        for name, x in inputs.items()
        if isinstance(x, Tensor)
    }
    low, high = (x[:, : sizes[0]] for x in (inputs["thresholds"].low_RQ, inputs["thresholds"].high_RQ))
    found = count_below(**cut, thresholds=Thresholds(low, high), capacity=4)
    assert found.below_RQ.shape == (2, sizes[0]) and not found.below_RQ.any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("columns", pick([31, 256, 2048], [256], [31, 200]))
def test_measures_stay_within_the_bound(columns: int, dtype: torch.dtype) -> None:
    """Every pair's own exact measure, less and plus the bound, as thresholds: below the former none, and
    within all."""
    generator = torch.Generator().manual_seed(columns)
    query = (1 + torch.randn(8, columns, generator=generator)).to(dtype).to(DEVICE)
    gallery = torch.cat([query, (1 + torch.randn(24, columns, generator=generator)).to(dtype).to(DEVICE)])
    norms_G = gallery.double().norm(dim=1)
    slope = (-1 / norms_G).float()
    measure_QG = -(query.double() @ gallery.double().T) / norms_G
    for g in range(0, len(gallery), 5):
        margin = error_bound(columns, dtype) * query.double().norm(dim=1)
        low, high = ((measure_QG[:, g] + side * margin).float()[None] for side in (-1, 1))
        found = count_below(
            query,
            gallery[g : g + 1],
            torch.zeros(8, dtype=torch.int32, device=DEVICE),
            torch.ones(1, dtype=torch.int32, device=DEVICE),
            slope[g : g + 1],
            torch.zeros(1, device=DEVICE),
            Thresholds(low, high),
            capacity=64,
        )
        if kernel_checks.VALUES:
            assert not found.below_RQ.any()
            assert found.open_3I is not None and found.open_3I.shape[1] == 8


def test_the_bound_is_small_where_slabs_are_short() -> None:
    assert error_bound(2048, torch.bfloat16) < 2e-5 and error_bound(256, torch.float32) < 3e-5
    assert error_bound(256, torch.float64) == error_bound(256, torch.float32)
    assert (
        error_bound(64, torch.bfloat16)
        < error_bound(4096, torch.bfloat16)
        < 2 * error_bound(64, torch.bfloat16)
    )
    assert counted_dtype(torch.float64) == torch.float32 and counted_dtype(torch.float16) == torch.float16
    with pytest.raises(ValueError, match="columns"):
        error_bound(1 << 17, torch.float32)


def test_refusals() -> None:
    inputs = case(3, 4, 5, 1, torch.float32)
    with pytest.raises(ValueError, match="both bfloat16, float16 or float32"):
        count_below(**inputs | {"gallery_GD": inputs["gallery_GD"].double()}, capacity=4)
    with pytest.raises(ValueError, match=r'"reference", "triton"'):
        count_below(**inputs, capacity=4, backend="dense")
    if not GPU:
        halves = {name: inputs[name].bfloat16() for name in ("query_QD", "gallery_GD")}
        with pytest.raises(ValueError, match="bfloat16 wrongly"):
            count_below(**inputs | halves, capacity=4)
