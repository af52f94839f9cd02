"""The model of a GPU: which term decides, that every figure has a prediction, and the files that hold
them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from maskreid_kernels.bench.aot import Compiled, Job
from maskreid_kernels.bench.predict import CARDS, memory_bytes, predict, programs_per_processor
from maskreid_kernels.bench.predicted_figures import predicted_figures
from maskreid_kernels.bench.predictions import read_predictions, write_predictions
from maskreid_kernels.bench.traffic import traffic

H100 = CARDS["H100"]
N, D = 65536, 2048


def program(name: str = "batch_hard.negatives", columns: int = 2048) -> Compiled:
    """128 x 128, a loop over D where the columns are many."""
    depth = 256 if columns == 256 else 64
    return Compiled(
        Job("sm_90", name.split(".")[0], columns, "bf16", 0),
        name,
        True,
        (128, 128, depth),
        registers=224,
        shared=96 << 10,
        warps=8,
        per_slab=() if columns == 256 else (("FFMA", 80),),
        per_tile=(("FFMA", 800),),
        per_marks=(("STG", 150),),
    )


def all_programs() -> list[Compiled]:
    names = [
        "batch_hard.negatives",
        "batch_hard.symmetric_negatives",
        "batch_hard.specialised_negatives",
        "ranking.forward",
        "ranking.symmetric_forward",
        "ranking.dense_weights",
        "retrieval.counts",
    ]
    names += [f"logsumexp.{name}{end}" for name in ("negatives", "pairs") for end in ("", " circle")]
    names += [f"logsumexp.symmetric_negatives{end}" for end in ("", " unbounded circle")]
    return [program(name, columns) for name in names for columns in (256, 2048)]


def test_bytes_from_the_l2_cache_bound_wide_rows() -> None:
    found = predict(program(), N, N, D, H100, chunks=16)
    assert found.products == pytest.approx(2 * N * N * D / H100.flops * 1e3)
    # (128 + 128) rows of 4 KB for each of 512 x 512 tiles, at 6.5 TB/s.
    assert found.l2 == pytest.approx(512 * 512 * 256 * 4096 / 6.5e12 * 1e3)
    assert found.total > found.l2 > found.products


def test_one_program_per_processor_overlaps_nothing() -> None:
    small = replace(program(), registers=96, shared=64 << 10)
    assert (programs_per_processor(program()), programs_per_processor(small)) == (1, 2)
    alone, shared = (predict(one, N, N, D, H100, chunks=16) for one in (program(), small))
    assert alone.total > alone.l2 + alone.rest and shared.total == pytest.approx(shared.l2)


def test_recorded_pairs_cost_their_branch() -> None:
    none, all_tiles = (predict(program(columns=256), N, N, 256, H100, marked_tiles=s) for s in (0, 1))
    clocks = 512 * 512 * 8 * 150 / 4
    more = 1e3 * clocks / H100.processors / H100.clock_hz
    assert all_tiles.total - none.total == pytest.approx(more) and none.rest < all_tiles.rest


def test_launch_order_decides_what_comes_from_memory() -> None:
    # 132 blocks of 128 rows of 4 KB are 69 MB: they come again with each of 512 tiles. 16 chunks side by
    # side: they stay.
    rows_first, chunks_first = (memory_bytes(program(), N, N, D, H100, chunks) for chunks in (1, 16))
    assert rows_first > 512 * N * 4096 and chunks_first < 70 * N * 4096
    narrow = [memory_bytes(program(columns=256), N, N, 256, H100, chunks) for chunks in (1, 16)]
    assert narrow == [2 * N * 512] * 2  # everything fits


def test_the_upper_triangle_is_half_of_the_tiles() -> None:
    for columns in (256, 2048):
        whole = predict(program(columns=columns), N, N, columns, H100, chunks=16)
        half = predict(program("batch_hard.symmetric_negatives", columns), N, N, columns, H100)
        # Of 512 x 512 tiles those on the diagonal are whole.
        assert half.products == pytest.approx(whole.products * (512 + 1) / 512 / 2)
        assert half.total < 0.6 * whole.total


def test_every_loss_and_size_is_predicted() -> None:
    found = predicted_figures(all_programs(), H100)
    assert all(value > 0 for value in found.values()) and len(found) > 200
    assert found["batch_hard, D = 2048, to the product"] == pytest.approx(
        found["batch_hard, D = 2048"] / found["product, D = 2048"]
    )


def test_traffic_of_plain_torch() -> None:
    def loss(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (x @ x.t()).relu().sum()

    found = traffic(loss, torch.float32)
    # Written by the product, read and written by relu, read by the sum; back: read twice and written once by
    # relu's gradient (its other input is the sum's, expanded), read by both products.
    assert found.bytes_per_pair == 4 * (1 + 2 + 1 + 3 + 2) and found.operators >= 7


def test_committed_predictions_are_read_by_the_names_of_now() -> None:
    known = set(predicted_figures(all_programs(), H100))
    for card in ("H100", "H200"):
        assert set(read_predictions("3.7.1", card)) == known


def test_predictions_of_other_versions_stay(tmp_path: Path) -> None:
    write_predictions(tmp_path, "3.6.0", {"H100": {"copy": 3.0, "old": 1.0}})
    write_predictions(tmp_path, "3.7.1", {"H100": {"copy": 3.123456}, "H200": {"copy": 4.3}})
    assert read_predictions("3.6.0", "NVIDIA H100 80GB HBM3", tmp_path) == {"copy": 3.0, "old": 1.0}
    assert read_predictions("3.7.1", "NVIDIA H100 80GB HBM3", tmp_path) == {"copy": 3.123}
    assert read_predictions("3.7.1", "NVIDIA H200", tmp_path) == {"copy": 4.3}
    assert read_predictions("3.7.1", "AMD EPYC", tmp_path) == read_predictions("9", "H100", tmp_path) == {}
    text = (tmp_path / "predictions.md").read_text()
    assert "| copy | 3 | 3.12 | 4.3 |" in text and "| old | 1 |  |  |" in text
