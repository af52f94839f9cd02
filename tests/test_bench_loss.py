"""The benchmark itself: its batches, its peers, its meters, and that it measures nothing that is wrong."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from maskreid_dist.cli import app
from maskreid_kernels.bench import measure, providers, records, targets
from maskreid_kernels.bench.cases import Case, make_case
from maskreid_kernels.bench.exactness import measure_exactness
from maskreid_kernels.bench.over_ranks import time_over_ranks
from maskreid_kernels.bench.providers import partners
from maskreid_kernels.bench.records import Budget, Job, run_job

CPU = torch.device("cpu")
SHARE = {"ranking": 0.01}


@pytest.mark.parametrize("share", [0.5, 0.01, 0.001])
def test_share_of_violators_is_reached(share: float) -> None:
    data = make_case(Case("ranking", 600, 32, 4, share), CPU)
    S = data.x_ND @ data.x_ND.t()
    same = data.y_N[:, None] == data.y_N
    positive = same & ~torch.eye(600, dtype=torch.bool)
    least = S.masked_fill(~positive, torch.inf).amin(1, keepdim=True)
    found = float((S - least + data.margin > 0)[~same].double().mean())
    assert found == pytest.approx(share, rel=0.02)
    assert data.violators == pytest.approx(share, rel=0.02)
    assert torch.equal(torch.bincount(data.y_N), torch.full((150,), 4))


@pytest.mark.parametrize("kernel", records.KERNELS)
def test_every_provider_computes_the_same(kernel: str) -> None:
    case = Case(kernel, 96, 24, 4, SHARE.get(kernel))
    data = make_case(case, CPU)
    found = {p.name: p for p in providers.providers(case, data, compiled=False) if p.exact}
    assert {"maskreid auto", "maskreid chunked", "eager"} <= set(found)
    expected = measure.gradient(found["maskreid chunked"].loss, data.x_ND.double(), data.y_N)
    for provider in found.values():
        error = measure.relative_error(measure.gradient(provider.loss, data.x_ND, data.y_N), expected)
        assert error <= 1e-5, provider.name


def test_a_wrong_provider_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(x, y, *, margin):
        return (x * x).sum()

    monkeypatch.setattr("maskreid_kernels.bench.eager.ranking", wrong)
    job = Job(Case("ranking", 32, 8, 4, 0.1), memory=False)
    found = run_job(
        job, device="cpu", budget=Budget(1 << 30, 0.1, 1e12), compiled=False, say=lambda text: None
    )
    of_wrong = [r for r in found if r.provider == "eager"]
    assert [r.y50 for r in of_wrong] == [None] and "its gradient is off" in of_wrong[0].status
    assert any(r.provider == "maskreid auto" and r.metric == "time" and r.y50 for r in found)


def test_what_cannot_fit_is_a_record() -> None:
    job = Job(Case("batch_hard", 256, 8), memory=False)
    found = run_job(
        job, device="cpu", budget=Budget(1 << 18, 0.1, 1e12), compiled=False, say=lambda text: None
    )
    status = {r.provider: r.status for r in found if r.y50 is None}
    assert status["eager"].startswith("out of memory") and "maskreid auto" not in status


def test_meter_sees_an_allocation() -> None:
    meter = measure.resident_meter()
    block = torch.ones(16 << 20)
    del block
    assert 60 <= meter() / measure.MIB <= 80


def test_peak_memory_of_a_loss() -> None:
    rows, matrix = 1500, 1500 * 1500 * 4 / measure.MIB
    eager, ours = (
        measure.peak_memory(Case("ranking", rows, 16, 4, 0.01), name, "cpu", timeout_s=120)
        for name in ("eager", "maskreid chunked")
    )
    assert isinstance(eager, float) and isinstance(ours, float)
    assert eager > 2 * matrix > ours


def test_promises() -> None:
    found = run_job(
        Job(Case("n_pair", 64, 256), memory=False),
        device="cpu", budget=Budget(1 << 30, 0.1, 1e12), compiled=False, say=lambda text: None,
    )  # fmt: skip
    (promise,) = [p for p in targets.cpu_promises(found) if p.value is not None]
    assert promise.text.startswith("n_pair N = 64") and promise.line().startswith(("PASS", "MISS"))
    assert not replace(promise, value=0.5).kept and replace(promise, value=1.5).kept
    assert not replace(promise, value=None).kept


def test_over_ranks() -> None:
    times = time_over_ranks(Case("batch_hard", 64, 8, ranks=2), 0.2)
    assert set(times) == {"maskreid auto", "eager on gathered rows"} and all(
        t.y50 > 0 for t in times.values()
    )
    found = measure_exactness(2, 48, 8)
    assert max(e.gradient_error for e in found if e.provider == "maskreid") <= 1e-6
    assert min(e.gradient_error for e in found if e.provider == "each rank alone") > 0.01
    assert {e.provider for e in found if e.kernel == "batch_hard"} >= {"metric-learning, efficient=True"}


def test_command(tmp_path: Path) -> None:
    options = "--kernel ranking --rows 32 --rows 64 --columns 8 --images 4 --seconds 0.1 --no-memory --threads 1".split()
    result = CliRunner().invoke(app, ["bench", "loss", *options, "--output", str(tmp_path)])
    assert result.exit_code == 0, result.output
    (table,) = tmp_path.glob("*.csv")
    rows = list(csv.DictReader(table.open()))
    wanted = {
        "kernel",
        "provider",
        "mode",
        "metric",
        "N",
        "M",
        "D",
        "K",
        "y50",
        "y20",
        "y80",
        "device",
        "torch",
        "triton",
    }
    assert wanted <= set(rows[0]) and {row["metric"] for row in rows} == {"time", "error"}
    assert {path.suffix for path in tmp_path.iterdir()} == {".csv", ".md", ".png"}
    refused = CliRunner().invoke(app, ["bench", "loss", "--kernel", "triplets"])
    assert refused.exit_code == 2


def test_partners_are_of_the_same_identity_and_others() -> None:
    labels = torch.tensor([5, -1, 5, 7, -1, 5, 9])
    found = partners(labels)
    assert sorted(found.tolist()) == list(range(7)) and torch.equal(labels[found], labels)
    assert (found == torch.arange(7)).tolist() == [False, False, False, True, False, False, True]
