"""The worked examples of CONTRIBUTING.md for losses: what a new loss touches, and that it then works
everywhere."""

from __future__ import annotations

from pathlib import Path

from worked_examples import ROOT, example, follow, run

PACKAGE = Path("kernels/maskreid_kernels")
CHECK = """
import inspect
import sys
from pathlib import Path

import torch
import torch.distributed as dist

import maskreid_kernels as kernels
from gloo import run_ranks

name, key, default, *backends = sys.argv[1:]
assert Path.cwd() in Path(kernels.__file__).parents
assert kernels.constants(name)[key] == float(default)
loss = kernels.LOSSES[name]
x = torch.randn(20, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
y = torch.arange(20) // 4

def value_and_gradient(function, own=slice(None), **options):
    rows = x[own].clone().requires_grad_()
    value = function(rows, y[own], **{key: 4.0}, **options)
    value.sum().backward()
    return value.detach(), rows.grad

def over_ranks(rank, world):
    own = slice(0, 8) if rank == 0 else slice(8, 20)
    for backend in ["reference", *(one for one in backends if one != "triton")]:  # interpreted, it takes long
        value, gradient = value_and_gradient(loss, own, backend=backend, group=dist.group.WORLD)
        torch.testing.assert_close(value, expected[0])
        torch.testing.assert_close(gradient / world, expected[1][own])

expected = value_and_gradient(loss, backend="reference")
if __name__ == "__main__":
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    found = [value_and_gradient(loss, backend=backend) for backend in (*backends, "auto")]
    for value, gradient in [*found, value_and_gradient(compiled)]:
        torch.testing.assert_close(value, expected[0])
        torch.testing.assert_close(gradient, expected[1])
    for reduction in ("sum", "none"):
        plain = value_and_gradient(loss, backend="reference", reduction=reduction, ignore_index=3)
        value, gradient = value_and_gradient(loss, backend="chunked", reduction=reduction, ignore_index=3)
        torch.testing.assert_close(value, plain[0])
        torch.testing.assert_close(gradient, plain[1])
    run_ranks(over_ranks, 2, Path.cwd())
    if "reference" in inspect.signature(loss).parameters:
        reference = (x.flip(0)[:13], y.flip(0)[:13])
        expected = value_and_gradient(loss, backend="reference", reference=reference)
        for own, right in zip(value_and_gradient(loss, reference=reference), expected):
            torch.testing.assert_close(own, right)
"""


def check(heading: str, tmp_path: Path, *arguments: object) -> set[Path]:
    """Follow an example and check its loss. Returns the files that it touched, below the package."""
    steps = example(heading)
    follow(steps, PACKAGE, tmp_path)
    (tmp_path / "check.py").write_text(CHECK)
    found = run(tmp_path, "kernels", "check.py", *arguments)
    assert found.returncode == 0, found.stderr
    return {path.relative_to(PACKAGE) for path in steps}


def test_a_new_log_sum_exp_loss_touches_two_files(tmp_path: Path) -> None:
    heading = "A new loss of the log-sum-exp family"
    touched = check(heading, tmp_path, "mean_positive", "scale", 1.0, "dense", "chunked", "triton")
    assert touched == {Path("logsumexp/mean_positive.py"), Path("__init__.py")}
    assert (ROOT / PACKAGE / "logsumexp").is_dir()


def test_another_loss_is_one_folder_and_one_line_of_the_table(tmp_path: Path) -> None:
    steps = example("Another loss")
    touched = check("Another loss", tmp_path, "compactness", "weight", 1.0, "chunked")
    assert {path.parent for path in touched} == {Path("compactness"), Path()}
    assert [path for path in touched if (ROOT / PACKAGE / path).exists()] == [Path("__init__.py")]
    table = [line for line in steps[PACKAGE / "__init__.py"].splitlines() if line]
    assert len(table) == 2 and table[0].startswith("from ")  # an import, and the line
