"""maskreid_kernels in an environment of its own: what it adds, how long it takes to import, and its whole
test suite.

    python tests/kernels_alone.py [--torch torch==VERSION] [--keep FOLDER] [--no-suite]

A fresh virtual environment gets a CPU build of torch, triton, then `pip install ./kernels`, and for the tests
pytest, Hypothesis and NumPy (Triton's interpreter is written in it; the package does not need it), all at the
versions of constraints.txt. Nothing of the checkout but the tests is on Python's path. Exit status 1: a test
failed or something is installed that should not be; 2: the environment could not be made.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
IMPORTS = 9
TIMED = """
import json, sys, time
start = time.process_time()
import torch
of_torch, known = time.process_time(), len(sys.modules)
import maskreid_kernels
end = time.process_time()
print(json.dumps([of_torch - start, end - of_torch, len(sys.modules) - known]))
"""


class AloneError(Exception):
    """The environment could not be made."""


class Environment:
    """A virtual environment in `folder`, and what is asked of it."""

    def __init__(self, folder: Path, torch: str, python: str | Path = sys.executable) -> None:
        self.bin = folder / "bin"
        self.torch = torch
        # torch may be another build or version than the pinned one.
        pins = (ROOT / "constraints.txt").read_text().splitlines()
        self.constraints = folder / "constraints.txt"
        run(python, "-m", "venv", folder)
        self.constraints.write_text("\n".join(pin for pin in pins if not pin.startswith("torch==")))
        site = self.python("-c", "import sysconfig; print(sysconfig.get_path('purelib'))")
        self.site = Path(site.strip())

    def python(self, *arguments: str | Path) -> str:
        return run(self.bin / "python", *arguments)

    def install(self, *what: str | Path, report: bool = False) -> str:
        words = ["--quiet", "--disable-pip-version-check"]
        words += ["--dry-run", "--report", "-"] if report else []
        return self.python("-m", "pip", "install", *words, "--constraint", self.constraints, *what)

    def install_torch(self) -> None:
        """Raise AloneError where it would be a CUDA build."""
        coming = json.loads(self.install(self.torch, report=True))["install"]
        names = [one["metadata"]["name"] for one in coming]
        if any(name.startswith(("nvidia-", "cuda-")) for name in names):
            raise AloneError(
                f"{self.torch} is a CUDA build of 5 GB here; point pip at PyTorch's CPU wheels "
                "(PIP_EXTRA_INDEX_URL), or name one with --torch"
            )
        self.install(self.torch)

    def installed(self) -> dict[str, str]:
        """Version by name, without pip and its like."""
        found = json.loads(self.python("-m", "pip", "list", "--format=json", "--disable-pip-version-check"))
        return {one["name"]: one["version"] for one in found if one["name"] not in ("pip", "setuptools")}

    def size(self) -> int:
        """Bytes of the files in site-packages."""
        return sum(path.lstat().st_size for path in self.site.rglob("*") if not path.is_dir())


def run(*command: str | Path) -> str:
    """What the command prints. AloneError with its last line where it fails."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    ran = subprocess.run([*map(str, command)], cwd="/", env=environment, capture_output=True, text=True)
    if ran.returncode:
        last = (ran.stderr.strip() or ran.stdout.strip() or "no output").splitlines()[-1]
        raise AloneError(f"{' '.join(map(str, command[:4]))}: {last}")
    return ran.stdout


def main(arguments: Sequence[str] | None = None) -> int:
    pinned = re.search(r"^torch==.*$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned
    parser = argparse.ArgumentParser(
        prog="make kernels-alone", description=" ".join(__doc__.partition("\n\n")[0].split())
    )
    parser.add_argument("--torch", default=pinned[0], help=f"requirement ({pinned[0]})")
    parser.add_argument(
        "--keep", type=Path, help="make the environment in this new folder and leave it there"
    )
    parser.add_argument("--no-suite", action="store_true", help="leave the test suite out")
    options = parser.parse_args(arguments)
    try:
        if options.keep:
            options.keep.mkdir(parents=True)
            return examine(Environment(options.keep.resolve(), options.torch), not options.no_suite)
        with tempfile.TemporaryDirectory() as folder:
            return examine(Environment(Path(folder), options.torch), not options.no_suite)
    except (AloneError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def examine(environment: Environment, suite: bool) -> int:
    """Print the figures; 1 where something is wrong."""
    environment.install_torch()
    of_torch = environment.size()
    environment.install("triton")
    before, known = environment.size(), environment.installed()
    environment.install(ROOT / "kernels")
    after, new = environment.size(), environment.installed()
    added = sorted(set(new) - set(known))
    print(f"python {'.'.join(map(str, sys.version_info[:3]))}, torch {new['torch']}, triton {new['triton']}")
    print(f"torch and what it needs: {mib(of_torch)}; triton: {mib(before - of_torch)}")
    print(f"pip install ./kernels beside them: {mib(after - before)}, distributions: {', '.join(added)}")
    print(f"NumPy: {'installed' if 'numpy' in new else 'not installed'}")
    imports(environment)
    lines = re.findall(r"```python\n(.*?)```", (ROOT / "kernels" / "README.md").read_text(), re.DOTALL)
    environment.python("-c", "\n".join(lines))
    print(f"the README's {len(lines)} blocks of Python run", flush=True)
    wrong = added != ["maskreid-kernels"]
    return int(wrong or (suite and not passes(environment)))


def mib(size: int) -> str:
    return f"{size / 2**20:.2f} MiB"


def imports(environment: Environment) -> None:
    found = [json.loads(environment.python("-c", TIMED)) for _ in range(IMPORTS + 1)][
        1:
    ]  # the first fills caches
    torch, own, modules = (statistics.median(column) for column in zip(*found, strict=True))
    print(
        f"import maskreid_kernels after torch: {1e3 * own:.0f} ms of the processor's time and {modules:.0f} "
        f"modules (torch: {1e3 * torch:.0f} ms), median of {IMPORTS}"
    )


def passes(environment: Environment) -> bool:
    """Whether the kernels' tests pass with pytest, Hypothesis and NumPy beside the package."""
    environment.install("pytest", "hypothesis", "numpy")
    print("installed:", ", ".join(f"{name} {version}" for name, version in environment.installed().items()))
    print(
        environment.python("-c", "import maskreid_kernels; print(maskreid_kernels.__file__)"),
        end="",
        flush=True,
    )
    tests = sorted((ROOT / "tests").glob("test_kernels_*.py"))
    words = ["-q", "-rs", "-o", "pythonpath=", "-p", "no:cacheprovider", "--durations=5"]
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return not subprocess.run(
        [environment.bin / "pytest", *words, *tests], cwd=ROOT, env=variables
    ).returncode


if __name__ == "__main__":
    sys.exit(main())
