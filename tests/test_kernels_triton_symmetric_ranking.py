"""The ranking loss's Triton pass over the upper triangle of S, its list of pairs, and the bands of its
backward: against float64 and the rectangular pass.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import kernel_checks
from kernel_checks import DEVICE, GPU, Step, pick
from maskreid_kernels import ranking_loss, symmetric_tiles
from maskreid_kernels.fused_rows import row_norms
from maskreid_kernels.precision import Precision
from maskreid_kernels.ranking import triton_backward, triton_forward, triton_pairs
from maskreid_kernels.ranking.programs import GROUP, PLACE_BITS, PLACES, UNITS
from maskreid_kernels.ranking.terms import RankingTerms
from maskreid_kernels.ranking.triton_forward import Marks, Partials
from maskreid_kernels.ranking.triton_pairs import Pairs, UpperPartials
from maskreid_kernels.ranks import RankLayout
from maskreid_kernels.symmetric_tiles import SWITCH
from maskreid_kernels.triton_tiles import SortedRows, sort_by_identity
from test_kernels_triton_symmetric import BATCHES, TILES, clustered

IEEE = Precision(torch.float32, "ieee")
MARGIN = 0.13  # no similarity of these batches lies at a threshold


@pytest.fixture(autouse=True)
def upper_triangle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "1")
    use_tile(monkeypatch, "wide")


def use_tile(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """In the interpreter tiny tiles of unequal sides; on a GPU its own."""
    if not GPU:
        for module in (triton_forward, triton_pairs):
            monkeypatch.setattr(module, "tile_shape", lambda columns, rows, **_: TILES[name])


def use_way(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """Through the backward: all by pairs; all by bands, because the list is too short; each anchor by how
    many it has.
    """
    few = {"pairs": 1 << 20, "bands": 1 << 20, "mixed": 20}[way]
    monkeypatch.setattr(triton_forward, "FEW_MARKS", few)
    if way == "bands":
        monkeypatch.setattr(triton_pairs, "PAIR_BYTES", 64)
        monkeypatch.setattr(triton_backward, "GRADIENT_BYTES", 240)  # several bands, several panels


def step(x: Tensor, y: Tensor, backend: str, **options: Any) -> Step:
    rows = x.to(DEVICE).detach().clone().requires_grad_()
    loss = ranking_loss(rows, y.to(DEVICE), margin=MARGIN, backend=backend, **options)
    loss.backward()
    assert rows.grad is not None
    return loss.detach(), rows.grad


HERE = BATCHES | {"crowded": clustered(33, 5, 7)}
CASES = [
    ("rows of few tiles", "high", "pairs"),
    ("crowded", "wide", "pairs"),
    ("crowded", "high", "mixed"),
    ("crowded", "wide", "bands"),
    ("hub", "high", "mixed"),
    ("twins", "wide", "bands"),
    ("one row", "wide", "pairs"),
    ("one identity", "wide", "pairs"),
    ("no positives", "wide", "pairs"),
]


@pytest.mark.parametrize("case,tile,way", pick(CASES, CASES[:4], CASES))
def test_against_float64(case: str, tile: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use_tile(monkeypatch, tile)
    use_way(monkeypatch, way)
    x, y = HERE[case]
    own = kernel_checks.same_bits(lambda: step(x, y, "triton", precision="ieee"))
    kernel_checks.near(own, lambda: step(x.double(), y, "reference"), value=3e-6, gradient=2e-5, least=1.0)


def test_the_ways_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bands below the diagonal are not made; where some anchors have many pairs, both ways are run."""
    finished: list[str] = []
    weights: list[int] = []
    finish, weigh = triton_backward._finish_, triton_backward._weights

    def finishing(*arguments: object) -> None:
        finished.append("bands" if isinstance(arguments[5], Tensor) else "pairs")
        finish(*arguments)  # type: ignore[arg-type]

    def weighing(*arguments: object) -> Tensor:
        made = weigh(*arguments)  # type: ignore[arg-type]
        weights.append(made.numel())
        return made

    monkeypatch.setattr(triton_backward, "_finish_", finishing)
    monkeypatch.setattr(triton_backward, "_weights", weighing)
    x, y = HERE["crowded"]
    if not kernel_checks.VALUES:
        return
    for way, ways in (("pairs", {"pairs"}), ("mixed", {"pairs", "bands"}), ("bands", {"bands"})):
        with monkeypatch.context() as patched:
            use_way(patched, way)
            finished.clear()
            weights.clear()
            step(x, y, "triton", precision="ieee")
            assert set(finished) == ways, way
    assert 0.5 * 33**2 < sum(weights) < 0.8 * 33**2 and finished == ["bands"]


def forward(
    x: Tensor, y: Tensor, switch: str, monkeypatch: pytest.MonkeyPatch, margin: float = MARGIN
) -> tuple[SortedRows, Tensor, Partials | UpperPartials]:
    """The rows as sorted, t by row, and what the pass leaves."""
    monkeypatch.setenv(SWITCH, switch)
    x = x.to(DEVICE)
    rows = sort_by_identity(y.to(DEVICE), RankLayout(None, 0, (len(x),)))
    terms, inverse_N = RankingTerms(margin, 2.0, "all", True), row_norms(x, inverse=True)
    upper = triton_pairs.upper_pass(rows, x.shape[1], terms, IEEE, inverse_N)
    assert (upper is None) == (switch == "0")
    _, _, t_N = triton_forward.least_positives(x, inverse_N, rows, terms, upper)
    return rows, t_N, triton_forward.push_away(x, inverse_N, rows, t_N, terms, IEEE, upper)


def of_pairs(pairs: Pairs, places: int) -> set[tuple[int, int, bool, bool]]:
    """(anchor, candidate, inside the anchor's margin, inside the candidate's), by place."""
    found = pairs.sorted(places)
    assert found is not None
    key, first = found
    digits = 2 + PLACE_BITS.value
    anchor = key >> digits
    assert first.tolist() == [int((anchor < a).sum()) for a in range(places + 1)]
    return {(k >> digits, (k >> 2) & PLACES.value, bool(k & 1), bool(k & 2)) for k in key.tolist()}


def of_marks(marks: Partials | Marks) -> set[tuple[int, int, bool, bool]]:
    group = int(GROUP.value)
    found = set()
    for m, chunks in enumerate(marks.entry.tolist()):
        for chunk, entries in enumerate(chunks):
            for entry in entries[: int(marks.count_CM[chunk, m])]:
                for lane in range(group):
                    own, other = bool(entry >> lane & 1), bool(entry >> (group + lane) & 1)
                    if own or other:
                        found.add((m, (entry >> 32) * group + lane, own, other))
    return found


@pytest.mark.parametrize("case,tile", [("crowded", "high"), ("hub", "wide"), ("twins", "wide")])
def test_pairs_and_sums_of_the_rectangular_pass(
    case: str, tile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_tile(monkeypatch, tile)
    use_way(monkeypatch, "pairs")
    x, y = HERE[case]
    rows, t_N, upper = forward(x, y, "1", monkeypatch)
    _, _, whole = forward(x, y, "0", monkeypatch)
    if not kernel_checks.VALUES:
        return
    assert isinstance(upper, UpperPartials) and isinstance(whole, Partials)
    pairs = of_pairs(upper.pairs, len(x))
    assert pairs == of_marks(whole) and len(pairs) > 20
    assert torch.equal(upper.active_N, whole.active_CM.sum(0, dtype=torch.int32))
    own_N = upper.sum_N[:-1].double() / UNITS.value * t_N[rows.order_N].double().exp()
    assert torch.allclose(own_N, whole.sum_CM.double().sum(0), rtol=1e-6, atol=0)


def test_another_walk_finds_the_same_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The list is in another order, sorted it is the same."""
    use_way(monkeypatch, "pairs")
    x, y = HERE["crowded"]
    lists = []
    for processors in (1, 3):
        monkeypatch.setattr(symmetric_tiles, "processors", lambda device, n=processors: n)
        monkeypatch.setattr(symmetric_tiles, "PROGRAMS", processors)
        _, _, upper = forward(x, y, "1", monkeypatch)
        assert isinstance(upper, UpperPartials)
        lists.append(upper.pairs)
    if kernel_checks.VALUES:
        found = int(lists[0].found_1)
        assert GPU or not torch.equal(lists[0].pair[:found], lists[1].pair[:found])
        one, other = (pairs.sorted(len(x)) for pairs in lists)
        assert one is not None and other is not None and torch.equal(one[0], other[0])


def test_the_rectangular_pass_remains(monkeypatch: pytest.MonkeyPatch) -> None:
    """For rows as given, a margin that does not bound the sums, float64, and where passes are off."""
    _, y = HERE["even"]
    rows = sort_by_identity(y.to(DEVICE), RankLayout(None, 0, (64,)))
    like = torch.empty(0, device=DEVICE)

    def taken(terms: RankingTerms, dtype: torch.dtype = torch.float32) -> bool:
        return triton_pairs.upper_pass(rows, 32, terms, Precision(dtype, "ieee"), like) is not None

    usual = RankingTerms(0.15, 2.0, "all", True)
    assert taken(usual)
    for other in (RankingTerms(17.0, 2.0, "all", True), RankingTerms(0.15, 2.0, "all", False)):
        assert not taken(other)
    assert not taken(usual, torch.float64)
    monkeypatch.setenv(SWITCH, "0")
    assert not taken(usual)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_row_that_is_not_finite_shows(bad: float) -> None:
    x, y = (tensor.clone() for tensor in HERE["rows of few tiles"])
    x[3, 2], y[3] = bad, 99  # alone with its identity: no anchor of its own
    value, _ = step(x, y, "triton", precision="ieee")
    if kernel_checks.VALUES:
        assert value.isnan()
