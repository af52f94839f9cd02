"""Correctness, before any figure: the kernels' tests on this machine, and that repeats give equal bits."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F

from ... import ranking_loss
from .results import Figure
from .setting import Setting

ROOT = Path(__file__).parents[4]
# By name: the other tests need packages that a GPU machine may lack, and prove nothing there.
TESTS = (
    "triton_batch_hard",
    "triton_ranking",
    "triton_logsumexp",
    "triton_symmetric",
    "triton_symmetric_ranking",
    "triton_retrieval_counts",
    "gpu_presets",
)
REPEATS = 300
# Each holds a context on the GPU; without a cache that was brought along they also compile.
FEWEST, MOST = 2, 12


def test_files() -> list[Path]:
    """Those of TESTS in this checkout."""
    return [ROOT / "tests" / f"test_kernels_{name}.py" for name in TESTS]


def workers(processors: int) -> int:
    """How many tests run at once: two processors are left to the driver."""
    return min(max(processors - 2, FEWEST), MOST)


def tests(setting: Setting) -> Iterator[Figure]:
    """The kernels' tests that a GPU decides; where dry, that they are found. The whole output goes to
    tests.log."""
    files = test_files()
    missing = [path.name for path in files if not path.exists()]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(ROOT)]
    command += ["--collect-only"] if setting.dry else []
    if importlib.util.find_spec("xdist") and not setting.dry:
        command += ["-n", str(workers(len(os.sched_getaffinity(0))))]
    log = setting.output / "tests.log"
    with log.open("w") as file:
        status = subprocess.run(
            [*command, *(str(path) for path in files if path.exists())],
            cwd=ROOT,
            stdout=file,
            stderr=subprocess.STDOUT,
        ).returncode
    last = (log.read_text().strip().splitlines() or [""])[-1]
    note = last + (f"; not there: {', '.join(missing)}" if missing else "")
    yield Figure("exit status of the tests", float(status), "", note=note).promised(0.0)


def repeats(setting: Setting) -> Iterator[Figure]:
    """The ranking loss of one identity of many rows, again and again: a race between warps would show as
    other bits."""
    rows, columns = setting.rows(1000), setting.columns(64)
    many = rows // 5
    generator = torch.Generator(setting.device).manual_seed(0)
    x = torch.randn(rows, columns, generator=generator, device=setting.device)
    x = F.normalize(x, dim=1).to(setting.dtype).requires_grad_()
    y = torch.arange(rows, device=setting.device) // 4 + 1
    y[: many // 2], y[-(many - many // 2) // 2 :] = 0, 0
    first, different = None, 0
    for _ in range(setting.times(REPEATS)):
        x.grad = None
        loss = ranking_loss(x, y, margin=0.3, backend="triton")
        loss.backward()
        assert x.grad is not None
        found = (loss.detach(), x.grad)
        first = first or found
        different += not all(torch.equal(a, b) for a, b in zip(found, first, strict=True))
    assert first is not None
    note = f"of {setting.times(REPEATS)}; gradient's norm {float(first[1].float().norm()):.3g}"
    yield Figure("repeats with other bits", float(different), "", note=note).promised(0.0)
