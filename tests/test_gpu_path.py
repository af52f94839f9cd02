"""tests/gpu_path.py fails a session where a GPU would refuse a launch, and says why; it passes what a GPU
would run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
ROOT = Path(__file__).parent.parent
TESTS = """
import pytest
import torch
import triton
import triton.language as tl


@triton.jit
def double(x_ptr, out_ptr, N, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + at, 2 * tl.load(x_ptr + at, mask=at < N), mask=at < N)


@triton.jit
def wrong(x_ptr, BLOCK: tl.constexpr):
    tl.store(x_ptr + tl.arange(0, BLOCK), tl.zeros((BLOCK, 2), tl.float32))


def test_runs():
    x = torch.ones(100, device="cuda")
    assert x.is_cuda and x.device.type == "cuda"
    assert torch.cuda.get_device_properties(x.device).multi_processor_count
    out = torch.empty_like(x)
    double[(1,)](x, out, 100, BLOCK=128)
    assert out[0] == 2  # a value: it means nothing


def test_grid():
    x = torch.ones(100, device="cuda")
    double[(1, 65536)](x, x, 100, BLOCK=128)


def test_compiler():
    with pytest.raises(Exception):
        wrong[(1,)](torch.ones(100, device="cuda"), BLOCK=128)


def test_cpu_tensor():
    with pytest.raises(ValueError, match="cpu tensor"):
        double[(1,)](torch.ones(100), torch.ones(100, device="cuda"), 100, BLOCK=128)
    with pytest.raises(RuntimeError, match="same device"):
        torch.ones(3, device="cuda") + torch.ones(3)


def test_other_gpu():
    x = torch.ones(100, device="cuda:1")
    with pytest.raises(ValueError, match="another GPU"):
        double[(1,)](x, x, 100, BLOCK=128)
    with torch.cuda.device_of(x):
        double[(1,)](x, x, 100, BLOCK=128)
"""


def run(folder: Path, *select: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_it.py").write_text(TESTS)
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    paths = [ROOT / "tests", ROOT / "kernels"]
    environment["PYTHONPATH"] = os.pathsep.join(str(path) for path in paths)
    environment["TRITON_CACHE_DIR"] = str(folder / "cache")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "gpu_path", "-p", "no:cacheprovider", "test_it.py"]
    return subprocess.run([*command, *select], cwd=folder, env=environment, capture_output=True, text=True)


def test_what_a_gpu_would_run_passes(tmp_path: Path) -> None:
    ran = run(tmp_path, "-k", "runs or cpu_tensor or other_gpu")
    assert ran.returncode == 0, ran.stdout
    assert "3 passed" in ran.stdout and "1 tests ended at an assertion about values" in ran.stdout
    assert "double: " in ran.stdout and "registers" in ran.stdout


def test_what_a_gpu_would_refuse_fails(tmp_path: Path) -> None:
    ran = run(tmp_path, "-k", "grid or compiler")
    assert "2 passed" in ran.stdout  # the tests themselves
    assert "FAILED grid out of range: double(1, 65536, 1)" in ran.stdout
    assert "FAILED does not compile: wrong" in ran.stdout
    assert ran.returncode == 1
