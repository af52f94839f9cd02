"""The Triton passes over the upper triangle of S: the walk, and each loss against the rectangular passes and
float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

import kernel_checks
import maskreid_kernels as mk
from kernel_checks import DEVICE, GPU, Step, pick
from maskreid_kernels import symmetric_tiles, triton_tiles
from maskreid_kernels.batch_hard import triton as batch_hard_triton
from maskreid_kernels.batch_hard.terms import BatchHardTerms
from maskreid_kernels.fused_rows import row_norms
from maskreid_kernels.logsumexp import triton as logsumexp_triton
from maskreid_kernels.logsumexp import triton_bands
from maskreid_kernels.logsumexp.exponent import Exponent
from maskreid_kernels.precision import Precision
from maskreid_kernels.ranks import RankLayout
from maskreid_kernels.symmetric_tiles import SWITCH, block_pair, symmetric, triangle, triangle_of
from maskreid_kernels.triton_tiles import TileShape, add_product_, sort_by_identity

TILES = {
    "wide": TileShape(16, 32, 32, 4, 1, one_slab=False),
    "high": TileShape(32, 16, 32, 4, 1, one_slab=False),
}
Loss = Callable[..., Tensor]
LOSSES: dict[str, Loss] = {
    "batch_hard": lambda x, y, **options: mk.batch_hard_loss(x, y, margin="soft", **options),
    "batch_hard_cosine": lambda x, y, **options: mk.batch_hard_loss(x, y, distance="cosine", **options),
    "n_pair": lambda x, y, **options: mk.n_pair_loss(x, y, scale=10.0, normalize=True, **options),
    "n_pair_raw": lambda x, y, **options: mk.n_pair_loss(x, y, scale=0.5, normalize=False, **options),
    "circle": mk.circle_loss,
}


@pytest.fixture(autouse=True)
def symmetric_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "1")


@pytest.fixture(params=TILES)
def tile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> TileShape:
    """In the interpreter tiny tiles of unequal sides, so that some fifty rows are several blocks; on a GPU
    its own.
    """
    chosen = TILES[request.param]
    if not GPU:
        for module in (symmetric_tiles, logsumexp_triton, triton_bands):
            monkeypatch.setattr(module, "tile_shape", lambda columns, rows, **_: chosen)
    return chosen


def clustered(rows: int, columns: int, identities: int) -> tuple[Tensor, Tensor]:
    """float32 rows around a centre per identity, labels in random order."""
    generator = torch.Generator().manual_seed(rows + columns)
    y = torch.randint(identities, (rows,), generator=generator)
    centre = torch.randn(identities, columns, generator=generator)
    return centre[y] + 0.7 * torch.randn(rows, columns, generator=generator), y


def hub(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """A row that is every other's nearest negative."""
    x, y = clustered(rows, columns, rows // 4)
    x[0], y[:2] = 0, 99
    return x, y


def twins(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Every row twice, under two identities."""
    x, y = clustered(rows // 2, columns, rows // 8)
    return x.repeat(2, 1), torch.cat([y, y + 100])


BATCHES: dict[str, tuple[Tensor, Tensor]] = {
    "ragged": clustered(70, 40, 12),
    "even": clustered(64, 32, 9),
    "rows of few tiles": clustered(37, 40, 7),
    "large identities": clustered(50, 5, 2),
    "one row": clustered(1, 5, 1),
    "one identity": clustered(40, 5, 1),
    "no positives": (clustered(40, 5, 1)[0], torch.arange(40)),
    "hub": hub(60, 5),
    "twins": twins(64, 5),
}


@triton.jit(do_not_specialize=["blocks"])
def pairs_program(out_ptr, blocks):  # type: ignore[no-untyped-def]  # and compiles no annotations
    row_block, column_block = block_pair(tl.program_id(0), blocks)
    tl.store(out_ptr + 2 * tl.program_id(0), row_block)
    tl.store(out_ptr + 2 * tl.program_id(0) + 1, column_block)


@pytest.mark.parametrize("blocks", [1, 2, 7, 8, 9, 17])
def test_every_pair_of_blocks_once(blocks: int) -> None:
    programs = blocks * (blocks + 1) // 2
    out = torch.zeros(programs, 2, dtype=torch.int32, device=DEVICE)
    pairs_program[(programs,)](out, blocks)
    if kernel_checks.VALUES:
        wanted = [[row, column] for column in range(blocks) for row in range(column + 1)]
        assert sorted(out.tolist(), key=lambda pair: pair[::-1]) == wanted


@pytest.mark.parametrize("places", [1, 31, 32, 33, 1000, 4096, 65536, 1 << 20])
@pytest.mark.parametrize("processors", [1, 132])
def test_blocks_cover_all_rows_and_keep_processors_busy(places: int, processors: int) -> None:
    tile = TileShape(128, 256, 64, 8, 3, one_slab=False)
    walk = triangle(places, tile, processors)
    covered = walk.side * 256 * walk.blocks
    assert covered - walk.side * 256 < places <= covered
    tiles = -(-places // 256)
    assert walk.side == 1 or walk.programs >= processors
    assert walk.programs <= tiles * (tiles + 1) // 2


def test_off_unless_switched_on(monkeypatch: pytest.MonkeyPatch) -> None:
    _, y = BATCHES["even"]
    whole = sort_by_identity(y.to(DEVICE), RankLayout(None, 0, (64,)))
    part = sort_by_identity(y.to(DEVICE), RankLayout(None, 1, (40, 24)))
    tile = TILES["wide"]
    assert triangle_of(whole, tile) is not None
    assert triangle_of(part, tile) is None  # over ranks
    monkeypatch.setattr(symmetric_tiles, "MAX_ROWS", 63)
    assert triangle_of(whole, tile) is None
    for switch in ("0", ""):
        monkeypatch.setenv(SWITCH, switch)
        assert not symmetric(torch.device(DEVICE))
    monkeypatch.setattr(symmetric_tiles, "VERIFIED", {"Some GPU": "2026-11-26 abc"})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    assert symmetric(torch.device("cuda"))
    monkeypatch.setenv(SWITCH, "0")
    assert not symmetric(torch.device("cuda"))


def step(name: str, x: Tensor, y: Tensor, **options: str) -> Step:
    rows = x.to(DEVICE).detach().clone().requires_grad_()
    loss = LOSSES[name](rows, y.to(DEVICE), **options)
    loss.backward()
    assert rows.grad is not None
    return loss.detach(), rows.grad


# Tiles of both forms where rows end inside one; a batch of a special kind once for each program.
SPECIAL = ("one row", "one identity", "no positives")
CASES = {
    "batch_hard": tuple(BATCHES),
    "batch_hard_cosine": ("ragged", "twins"),
    "n_pair": ("ragged", "rows of few tiles", *SPECIAL),
    "n_pair_raw": ("ragged", *SPECIAL),
    "circle": ("ragged", "rows of few tiles", *SPECIAL),
}
# Where programs are only compiled: a batch for each form of them.
COMPILED = {"batch_hard": ("ragged", "even", "one row"), "n_pair": ("ragged", "one row")}
ALL_CASES = [(name, case) for name, cases in CASES.items() for case in cases]
FORMS = [(name, case) for name in CASES for case in COMPILED.get(name, ("ragged",))]


@pytest.mark.parametrize(
    "name,case,tile",
    [
        (name, case, tile)
        for name, case in pick(on_gpu=ALL_CASES, in_ci=FORMS, interpreted=ALL_CASES)
        for tile in (TILES if case == "ragged" else ["wide"])
    ],
    indirect=["tile"],
)
def test_losses_against_float64(name: str, case: str, tile: TileShape) -> None:
    x, y = BATCHES[case]

    def own() -> Step:
        return step(name, x, y, backend="triton", precision="ieee")

    found = kernel_checks.same_bits(own)
    kernel_checks.near(
        found, lambda: step(name, x.double(), y, backend="reference"), value=3e-6, gradient=2e-5, least=1.0
    )


@pytest.mark.parametrize(
    "case,tile", [("ragged", "high"), ("hub", "wide"), ("twins", "wide")], indirect=["tile"]
)
def test_picks_of_the_rectangular_pass(case: str, tile: TileShape, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = BATCHES[case]
    x, rows = x.to(DEVICE), sort_by_identity(y.to(DEVICE), RankLayout(None, 0, (len(x),)))
    monkeypatch.setattr(triton_tiles, "SIDE_BY_SIDE", 1)
    ieee, square_N = Precision(torch.float32, "ieee"), row_norms(x, inverse=False)
    terms = BatchHardTerms(0.3, "euclidean", False)

    def numbers(switch: str) -> Tensor:
        monkeypatch.setenv(SWITCH, switch)
        nearest = batch_hard_triton.nearest_negatives(x, square_N, rows, ieee, packed=False)
        assert (nearest.place_CM is None) == (switch == "1")
        return batch_hard_triton.anchor_numbers(x, square_N, rows, nearest, terms)

    symmetric_B6, rectangular_B6 = numbers("1"), numbers("0")
    if kernel_checks.VALUES:
        assert torch.equal(symmetric_B6, rectangular_B6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bounded", [True, False])
def test_sums_of_the_negatives(bounded: bool, dtype: torch.dtype, tile: TileShape) -> None:
    """Anchor by anchor, every block's part counted once; large exponents where tops are kept."""
    x, y = BATCHES["ragged"]
    x = torch.nn.functional.normalize(x, dim=1).to(DEVICE, dtype)
    y = y.to(DEVICE)
    rows = sort_by_identity(y, RankLayout(None, 0, (len(x),)))
    exponent = Exponent(10.0 if bounded else 300.0)
    top_CM, sum_CM = logsumexp_triton.negative_partials(
        x, rows, exponent, Precision(dtype, "ieee"), bounded=bounded
    )
    assert (top_CM is None) == bounded
    if not kernel_checks.VALUES:
        return
    assert GPU or len(sum_CM) > 1
    parts_CM = sum_CM.double().log2() + (0 if top_CM is None else top_CM.double())
    found_M = torch.logsumexp(parts_CM * math.log(2), 0)
    S_NN = (x.double() @ x.double().t() * exponent.scale).masked_fill(y[:, None] == y, -torch.inf)
    expected_M = S_NN.logsumexp(1)[rows.order_N]
    assert torch.allclose(found_M, expected_M, rtol=0, atol=1e-3 if dtype == torch.float32 else 1e-9)


@pytest.mark.parametrize(
    "name,tile", [("n_pair", "high"), ("n_pair_raw", "wide"), ("circle", "wide")], indirect=["tile"]
)
def test_backward_in_bands_of_the_upper_triangle(
    name: str, tile: TileShape, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several bands and panels: those right of the diagonal serve both sides, the others are not made."""
    x, y = BATCHES["ragged"]
    monkeypatch.setattr(logsumexp_triton, "WORKSPACE_BYTES", 16_000)
    monkeypatch.setattr(triton_bands, "PANEL_COLUMNS", 16)
    made: list[int] = []

    def counted(out: Tensor, weight: Tensor, rows: Tensor) -> None:
        if weight.is_contiguous():
            made.append(weight.numel())
        add_product_(out, weight, rows)

    monkeypatch.setattr(triton_bands, "add_product_", counted)
    own = step(name, x, y, backend="triton", precision="ieee")
    assert sum(made) < 0.75 * len(x) ** 2
    kernel_checks.near(
        own, lambda: step(name, x.double(), y, backend="reference"), value=3e-6, gradient=2e-5, least=1.0
    )


def test_passes_with_partial_results_stop_where_these_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = sort_by_identity(BATCHES["even"][1].to(DEVICE), RankLayout(None, 0, (64,)))
    walk = triangle_of(rows, TILES["wide"], 8)
    assert walk is not None
    monkeypatch.setattr(symmetric_tiles, "PARTIAL_BYTES", walk.blocks * 64 * 8 - 1)
    assert triangle_of(rows, TILES["wide"], 8) is None and triangle_of(rows, TILES["wide"]) == walk


def test_packed_minimum_finds_a_nearest_negative(tile: TileShape) -> None:
    """What the bf16 preset runs, here on float32 rows: the pick's distance is the least, to the bits that
    packing keeps.
    """
    x, y = (tensor.to(DEVICE) for tensor in BATCHES["twins"])
    rows = sort_by_identity(y, RankLayout(None, 0, (len(x),)))
    ieee, square_N = Precision(torch.float32, "ieee"), row_norms(x, inverse=False)
    nearest = batch_hard_triton.nearest_negatives(x, square_N, rows, ieee, packed=True)
    if not kernel_checks.VALUES:
        return
    anchor_M, pick_M = rows.order_N, rows.order_N[nearest.best_CM[0] & 0xFFFFFFFF]
    square_NN = torch.cdist(x.double(), x.double()).square()
    negative_NN = y[:, None] != y
    assert negative_NN[anchor_M, pick_M].all()
    least_M = square_NN.masked_fill(~negative_NN, torch.inf).min(1).values[anchor_M]
    assert (square_NN[anchor_M, pick_M] <= least_M * (1 + 2**-15) + 1e-4).all()


@pytest.mark.parametrize("bad,tile", [(math.nan, "wide"), (math.inf, "high")], indirect=["tile"])
def test_a_row_that_is_not_finite_shows(bad: float, tile: TileShape) -> None:
    x, y = (tensor.clone() for tensor in BATCHES["rows of few tiles"])
    x[3, 2], y[3] = bad, 99  # alone with its identity: no anchor of its own
    value, _ = step("batch_hard", x, y, backend="triton", precision="ieee")
    if kernel_checks.VALUES:
        assert value.isnan()
