"""The README of the kernels: its code runs, and each line "coming from" another library says what it says.

The libraries' side runs where they are installed (make test-adapters).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import maskreid_kernels
from gloo import run_ranks
from libraries import LIBRARIES, Embedder, library

README = Path(__file__).parent.parent / "kernels" / "README.md"


def lines() -> list[tuple[str, str, str]]:
    """(library, code there, code here) of the table."""
    section = README.read_text().split("## Coming from another library")[1].split("\n## ")[0]
    found, name = [], ""
    for row in re.findall(r"^\| (.*) \|$", section, re.MULTILINE):
        there, here = (cell.strip() for cell in row.split("|")[:2])
        if there.startswith("**"):
            name = there.strip("*")
        elif there.startswith("`"):
            found.append((name, there.strip("`"), here.strip("`")))
    return found


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(24, 6, generator=generator, dtype=torch.float64)
    x[1::2] = x[::2] + 0.4 * x[1::2]
    return x, torch.arange(24) // 4


def value_and_gradient(code: str, names: dict[str, Any], rows: slice = slice(None)) -> tuple[Tensor, Tensor]:
    """Of an expression in x and y, or in features that hold x."""
    x, y = (one[rows] for one in batch())
    x.requires_grad_()
    bank, bank_labels = batch()[0].flip(1), torch.arange(24) % 6
    values = {
        "x": x,
        "y": y,
        "features": {"x": x},
        "model": Embedder(),
        "bank": bank,
        "bank_labels": bank_labels,
    }
    value = eval(code, {**names, **values})
    (gradient,) = torch.autograd.grad(value, x)
    return value.detach(), gradient


HERE = {name: getattr(maskreid_kernels, name) for name in maskreid_kernels.__all__}
OF_ONE_PROCESS = [line for line in lines() if "WORLD" not in line[2]]
OVER_RANKS = [line for line in lines() if "WORLD" in line[2]]


def test_the_table_has_every_library() -> None:
    assert {name for name, _, _ in lines()} == set(LIBRARIES)
    assert len(OF_ONE_PROCESS) == 10 and len(OVER_RANKS) == 1


@pytest.mark.parametrize(("name", "there", "here"), OF_ONE_PROCESS, ids=[line[1] for line in OF_ONE_PROCESS])
def test_a_line_of_the_table(name: str, there: str, here: str) -> None:
    own = value_and_gradient(here, HERE)
    assert own[1].any()
    expected = value_and_gradient(there, library(name))
    torch.testing.assert_close(own, expected)


def over_ranks(rank: int, world: int, name: str, there: str, here: str) -> None:
    rows = slice(12 * rank, 12 * rank + 12)
    own = value_and_gradient(here, {**HERE, "WORLD": dist.group.WORLD}, rows)
    expected = value_and_gradient(there, library(name), rows)
    torch.testing.assert_close(own, (expected[0] / world, expected[1]))


@pytest.mark.parametrize(("name", "there", "here"), OVER_RANKS)
def test_a_line_over_ranks(name: str, there: str, here: str, tmp_path: Path) -> None:
    library(name)
    run_ranks(over_ranks, 2, tmp_path, name, there, here)


def test_the_code_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)
    assert names["embeddings"].grad.abs().sum() > 0


def test_the_examples_of_candidates_that_are_not_the_batch_run_alone() -> None:
    examples = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    examples = [code for code in examples if "reference=" in code]
    assert len(examples) == 2
    for code in examples:
        exec(code, {})
