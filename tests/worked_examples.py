"""The worked examples of CONTRIBUTING.md, followed to the letter in a copy of the package."""

import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parent.parent
STEP = re.compile(r"^\d+\. `(?P<path>\S+)`.*?^ +```python\n(?P<code>.*?)^ +```", re.S | re.M)


def example(heading: str) -> dict[Path, str]:
    """The code of each numbered step below a heading, by the file that the step names."""
    _, _, rest = (ROOT / "CONTRIBUTING.md").read_text().partition(f"\n## {heading}\n")
    steps = STEP.finditer(rest.partition("\n## ")[0])
    found = {Path(step["path"]): textwrap.dedent(step["code"]) for step in steps}
    assert found, f"CONTRIBUTING.md has no steps below {heading!r}"
    return found


def follow(steps: dict[Path, str], package: Path, folder: Path) -> None:
    """Copy a package (a path below the checkout) into `folder`, write new files, and append to those that are
    there."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / package, folder / package, ignore=ignored)
    for path, code in steps.items():
        (folder / path).parent.mkdir(exist_ok=True)
        with (folder / path).open("a") as file:
            file.write(code)


def run(folder: Path, root: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Python with the copy below `folder/root` first on its path."""
    paths = [str(folder / root), *(str(ROOT / one) for one in (".", "kernels", "shards", "tests"))]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "TRITON_INTERPRET": "1",
        "COLUMNS": "200",
    }
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
