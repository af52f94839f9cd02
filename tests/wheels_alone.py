"""The four wheels in an empty environment, as a new user has them: a Python each.

    python tests/wheels_alone.py [--python NAME ...] [--torch REQUIREMENT] [--quick] [--whole] [--keep FOLDER]

For each interpreter (this one, then the others of python3.11, python3.12 and python3.13, on the path or among
pyenv's; one that is not here is named and passed over) a fresh virtual environment gets torch and
torchvision, then the wheels of dist/, at the versions of constraints.txt. Which build of torch, is what pip
finds: on Linux the CUDA build, 5 GB, unless pip is pointed at PyTorch's CPU wheels (PIP_INDEX_URL,
PIP_EXTRA_INDEX_URL) or `--torch torch==VERSION+cpu` names one.

In a folder outside of the checkout, with a training script of its own that must not run: import of the three
with code, versions, a loss in a plain loop, `maskreid doctor`, `maskreid init`, a demo of a few steps on the
fourth's data, and ranked lists of crops in a folder. `--quick`, as in CI: what the environment of this
program has of torch, torchvision, Triton and CUDA's libraries, and that Python can use, is linked and not
fetched, and the first Python alone runs the demo.

`--whole`, some 15 minutes a Python on two idle cores: what the README promises a new user, with its seconds:
the whole demo; crops in a folder, without masks, to ranked lists; a data set in Market-1501's layout to a
training by two ranks and its figures.

Exit status 1: something of that failed; 2: an environment could not be made.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from kernels_alone import ROOT, AloneError, Environment, mib

OTHERS = {"python3.11", "python3.12", "python3.13"} - {"python{}.{}".format(*sys.version_info)}
PYTHONS = (sys.executable, *sorted(OTHERS))
LARGE = re.compile("torch|torchvision|triton|nvidia-.*|cuda-.*")
LOOP = """
import importlib.metadata, pathlib, sys
import torch, maskreid_dist, maskreid_kernels, maskreid_shards
import maskreid_dist.cli.app
for package in (maskreid_dist, maskreid_kernels, maskreid_shards):
    assert "site-packages" in package.__file__, package.__file__
names = ("maskreid-dist", "maskreid-kernels", "maskreid-shards", "maskreid-walkers")
versions = {importlib.metadata.version(name) for name in names}
assert versions == {maskreid_dist.__version__}, versions
torch.manual_seed(0)
layer, labels = torch.nn.Linear(8, 16), torch.arange(16) // 4
inputs, steps = torch.randn(16, 8) + labels[:, None], []
optimizer = torch.optim.SGD(layer.parameters(), 0.1)
for _ in range(20):
    loss = maskreid_kernels.ranking_loss(layer(inputs), labels, margin=0.15, pull=2.0)
    optimizer.zero_grad(); loss.backward(); optimizer.step(); steps.append(float(loss))
assert steps[-1] < steps[0], steps
"""
SETTINGS = (
    *("data.height=36", "data.width=14", "data.resize_height=40", "data.resize_width=16"),
    *("model.width=0.125", "optimizer.steps=4"),
)
ROOMS = {"disk here", "/dev/shm"}  # of the machine, and not of the wheels
CROPS = """
import sys
from pathlib import Path
from maskreid_shards import open_shards
split = open_shards(sys.argv[1]).split("gallery")
for number in range(8):
    raw = split.read(number)
    Path("crops").mkdir(exist_ok=True)
    Path("crops", f"{raw.key}.jpg").write_bytes(raw.image)
"""
PICTURES = """
import sys
from pathlib import Path
from maskreid_shards import open_shards
shards = open_shards(sys.argv[1])
for split, folder in (("train", "bounding_box_train"), ("query", "query"), ("gallery", "bounding_box_test")):
    images, masks = Path("market", folder), Path("market", folder + "_seg")
    images.mkdir(parents=True), masks.mkdir()
    of_split = shards.split(split)
    for number, raw in enumerate(of_split.read_many(range(len(of_split)))):
        person = "-1" if raw.pid == -1 else f"{raw.pid:04d}"  # as Market-1501 writes junk
        name = f"{person}_c{raw.camid}s1_{number:06d}_00"
        (images / f"{name}.jpg").write_bytes(raw.image)
        (masks / f"{name}.png").write_bytes(raw.mask)
        if split == "gallery" and 0 < raw.pid <= 100:
            Path("own-crops").mkdir(exist_ok=True)
            Path("own-crops", f"person{raw.pid}_c{raw.camid}_{number}.jpg").write_bytes(raw.image)
"""
PATTERN = r"(?P<pid>\w+)_c(?P<camid>\d+)"


class Failed(Exception):
    """What a new user would have seen fail."""


def wheels() -> list[Path]:
    """Raises AloneError where they were not built."""
    found = sorted((ROOT / "dist").glob("maskreid_*.whl"))
    if len(found) != 4:
        raise AloneError(f"{len(found)} wheels in {ROOT / 'dist'}, not four; make wheels builds them")
    return found


def interpreter(name: str) -> tuple[str, str] | None:
    """Its path and version, of the first that runs. None where there is no such interpreter, or only a
    stand-in for one."""
    pyenv, last = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")), Path(name).name
    versions = (pyenv / "versions").glob(f"{last.removeprefix('python')}*/bin/{last}")
    for path in (Path(name), *sorted(versions)):
        try:
            ran = subprocess.run([path, "--version"], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            continue
        return str(path), ran.stdout.split()[-1]
    return None


def link_torch(environment: Environment, version: str) -> None:
    """Hard links of the large distributions of this program's environment that Python `version` can use."""
    usable = "py2-none", "py3-none", f"cp{''.join(version.split('.')[:2])}-"
    for one in importlib.metadata.distributions():
        tags = re.findall(r"^Tag: (.*)$", one.read_text("WHEEL") or "", re.MULTILINE)
        if not LARGE.fullmatch(one.metadata["Name"]) or not tags[0].startswith(usable):
            continue
        for file in one.files or ():
            if ".." not in file.parts:  # a program, with another Python in its first line
                place = environment.site / file
                place.parent.mkdir(parents=True, exist_ok=True)
                os.link(str(file.locate()), place)


class User:
    """The commands of a new user, with their output and seconds."""

    def __init__(self, environment: Environment, folder: Path) -> None:
        self.bin, self.folder = environment.bin, folder
        self.shards = environment.site / "maskreid_walkers"
        (folder / "launch").mkdir(parents=True)
        (folder / "launch" / "train.py").write_text("raise SystemExit('the script of the folder was run')")

    def does(self, name: str, *command: object, ok: Sequence[int] = (0,)) -> str:
        own = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        started = time.monotonic()
        words = [str(self.bin / str(command[0])), *map(str, command[1:])]
        ran = subprocess.run(words, cwd=self.folder, env=own, capture_output=True, text=True)
        if ran.returncode not in ok:
            raise Failed(f"{name}: status {ran.returncode}\n{ran.stdout}{ran.stderr}")
        print(f"  {name}: {time.monotonic() - started:.0f} s", flush=True)
        return ran.stdout

    def is_promised(self) -> None:
        """The README's promises, with its commands."""
        figures = json.loads(self.does("(a) maskreid demo", "maskreid", "demo", "--json"))
        print(f"  {figures}")
        self.does("(pictures in folders)", "python", "-c", PICTURES, self.shards)
        crops = len(list((self.folder / "own-crops").iterdir()))
        made = ("own-crops", "own-shards", "--segment", "pose", "--on-bad-mask", "full", "--pattern", PATTERN)
        self.does(f"(b) maskreid convert folder, {crops} crops", "maskreid", "convert", "folder", *made)
        ranked = ("pretrained:walkers", "own-shards", "--split", "train", "--report", "own.html")
        self.does("(b) maskreid evaluate, ranked lists", "maskreid", "evaluate", *ranked)
        if not (self.folder / "own.html").stat().st_size:
            raise Failed("maskreid evaluate: no report")
        market = ("market1501", "market", "market-shards", "--on-bad-mask", "full")
        self.does("(c) maskreid convert market1501", "maskreid", "convert", *market)
        self.does("(c) maskreid init", "maskreid", "init", "market-shards", "market.toml")
        two = ("--num_gpus", 2, "--module", "maskreid_dist.cli.train", "market.toml")
        self.does("(c) deepspeed, two ranks, 20 steps", "deepspeed", *two, "--set", "optimizer.steps=20")
        self.does("(c) maskreid evaluate", "maskreid", "evaluate", "runs/market", "market-shards")

    def tries(self, demo: bool) -> None:
        self.does("imports, versions, a loss in a loop", "python", "-c", LOOP)
        said = json.loads(self.does("maskreid doctor", "maskreid", "doctor", "--json", ok=(0, 1)))
        bad = [one for one in said["findings"] if one["level"] == "problem" and one["subject"] not in ROOMS]
        if bad:
            raise Failed(f"maskreid doctor: {bad}")
        if demo:
            settings = [word for setting in SETTINGS for word in ("--set", setting)]
            self.does("maskreid demo, 4 steps", "maskreid", "demo", *settings)
            if not (self.folder / "runs" / "demo" / "report.html").stat().st_size:
                raise Failed("maskreid demo: no report")
        self.does("maskreid init", "maskreid", "init", self.shards, "first.toml")
        self.does("(crops in a folder)", "python", "-c", CROPS, self.shards)
        crops = sorted((self.folder / "crops").iterdir())
        network = "pretrained:walkers"
        for person in (0, 1):
            words = (network, "own", *crops[4 * person :][:4], "--pid", person)
            self.does("maskreid enrol, 4 crops", "maskreid", "enrol", *words)
        words = ("search", network, "own", crops[0], "--json")
        said = json.loads(self.does("maskreid search", "maskreid", *words))
        if not said[0]["matches"][0]["key"].endswith(crops[0].stem):
            raise Failed(f"maskreid search: {said}")


def tried(
    here: tuple[str, str], torch: str, torchvision: str, folder: Path, *, links: bool, demo: bool, whole: bool
) -> bool:
    """Whether all went well with this interpreter."""
    path, version = here
    started = time.monotonic()
    environment = Environment(folder / "environment", torch, path)
    if links:
        link_torch(environment, version)
    environment.install(torch, torchvision)
    environment.install(*wheels())
    names = environment.installed()
    print(
        f"Python {version}, torch {names['torch']}, DeepSpeed {names['deepspeed']}: {len(names)} "
        f"distributions, {mib(environment.size())}, {time.monotonic() - started:.0f} s to install",
        flush=True,
    )
    environment.python("-m", "pip", "check", "--disable-pip-version-check")
    try:
        user = User(environment, folder / "elsewhere")
        user.tries(demo)
        if whole:
            user.is_promised()
    except Failed as failure:
        print(f"Python {version}: {failure}", file=sys.stderr)
        return False
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    pins = (ROOT / "constraints.txt").read_text()
    pinned = {name: re.search(rf"^{name}==.*$", pins, re.MULTILINE) for name in ("torch", "torchvision")}
    parser = argparse.ArgumentParser(prog="make wheels-alone", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--python", action="append", help="an interpreter; repeatable (3.11 to 3.13)")
    parser.add_argument("--torch", help="another requirement than that of constraints.txt")
    parser.add_argument("--quick", action="store_true", help="link torch from here; the demo once")
    parser.add_argument("--whole", action="store_true", help="also all that the README promises")
    parser.add_argument("--keep", type=Path, help="make the environments in this new folder, and leave them")
    options = parser.parse_args(arguments)
    torch, torchvision = (found[0] for found in pinned.values() if found)
    if options.torch:
        torch, torchvision = options.torch, "torchvision"
    try:
        wheels()
        with tempfile.TemporaryDirectory() as temporary:
            place = options.keep.resolve() if options.keep else Path(temporary)
            results: list[bool] = []
            for name in options.python or PYTHONS:
                if here := interpreter(name):
                    demo = not (options.whole or (options.quick and results))
                    folder = place / Path(name).name
                    how = {"links": options.quick, "demo": demo, "whole": options.whole}
                    result = tried(here, torch, torchvision, folder, **how)
                    results.append(result)
                else:
                    print(f"{name}: not here, passed over", flush=True)
            if not results:
                raise AloneError("none of these interpreters is here")
    except (AloneError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
