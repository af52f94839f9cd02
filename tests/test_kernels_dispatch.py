"""The dispatcher and the table: one way for every loss, arrows one way."""

from __future__ import annotations

import ast
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import maskreid_kernels as kernels
from maskreid_kernels.compiled import REGISTERED
from maskreid_kernels.options import Call

PACKAGE = Path(kernels.__file__).parent


@pytest.mark.parametrize("name", kernels.LOSSES)
def test_every_loss_takes_the_same_options_with_the_same_defaults(name: str) -> None:
    parameters = inspect.signature(kernels.LOSSES[name]).parameters
    shared = {key: one.default for key, one in parameters.items() if key in Call._fields}
    expected = dict(Call()._asdict())
    if name == "softmax":
        del expected["precision"]  # it has no triton backend
        del expected["reference"]  # its candidates are the identities
    assert shared == expected
    assert name in REGISTERED and kernels.LOSSES[name].__name__ == f"{name}_loss"


def test_the_compilers_operator_knows_no_loss() -> None:
    tree = ast.parse((PACKAGE / "compiled.py").read_text())
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level}
    assert imported == {"guards", "options", "packed", "precision"}
    named = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert not any(name.startswith("maskreid") for name in named)


def test_the_package_starts_without_the_compiler_and_triton() -> None:
    """Else it takes longer to import than torch itself."""
    code = (
        "import sys, torch\nbefore = set(sys.modules)\nimport maskreid_kernels\n"
        "print(*(name for name in sys.modules.keys() - before if not name.startswith('maskreid_kernels')))"
    )
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    beside = {name.partition(".")[0] for name in run.stdout.split()}
    assert beside.isdisjoint({"triton", "sympy", "numpy"}) and "torch._dynamo" not in run.stdout.split()


@pytest.mark.parametrize("name", kernels.LOSSES)
def test_what_is_wrong_is_one_line(name: str) -> None:
    x, y = torch.zeros(4, 2), torch.tensor([0, 0, 1, 1])
    for options, words in [
        ({"backend": "fast"}, "backend 'fast' is not available; available: 'auto', 'reference'"),
        ({"reduction": "average"}, "reduction 'average': known are 'mean', 'sum', 'none'"),
        ({"ignore_index": "none"}, "ignore_index: expected an integer or None"),
    ]:
        with pytest.raises(ValueError) as raised:  # compared below
            kernels.LOSSES[name](x, y, **options)
        assert words in str(raised.value) and "\n" not in str(raised.value)
