"""The worked example of CONTRIBUTING.md: a new log-sum-exp loss is its module and its line in the table."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parent.parent
CHECK = """
import torch
import maskreid_kernels as kernels

assert kernels.constants("mean_positive") == {"scale": 1.0, "normalize": True}
loss = kernels.LOSSES["mean_positive"]
x = torch.randn(20, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
y = torch.arange(20) // 4

def value_and_gradient(function, **options):
    rows = x.clone().requires_grad_()
    value = function(rows, y, scale=4.0, **options)
    value.backward()
    return value.detach(), rows.grad

expected = value_and_gradient(loss, backend="reference")
compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
found = [value_and_gradient(loss, backend=name) for name in ("dense", "chunked", "triton", "auto")]
for value, gradient in [*found, value_and_gradient(compiled)]:
    torch.testing.assert_close(value, expected[0])
    torch.testing.assert_close(gradient, expected[1])

reference = (x.flip(0)[:13], y.flip(0)[:13])
expected = value_and_gradient(loss, backend="reference", reference=reference)
for own, right in zip(value_and_gradient(loss, reference=reference), expected):
    torch.testing.assert_close(own, right)
"""


def test_a_new_log_sum_exp_loss_touches_two_files(tmp_path: Path) -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    module, lines = (
        textwrap.dedent(block) for block in re.findall(r"^ +```python\n(.*?)^ +```", text, re.S | re.M)
    )
    package = tmp_path / "maskreid_kernels"
    ignored = shutil.ignore_patterns("bench", "__pycache__")
    shutil.copytree(ROOT / "kernels" / "maskreid_kernels", package, ignore=ignored)
    (package / "logsumexp" / "mean_positive.py").write_text(module)
    with (package / "__init__.py").open("a") as table:
        table.write(lines)
    run = subprocess.run(
        [sys.executable, "-c", CHECK],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path), "TRITON_INTERPRET": "1", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
