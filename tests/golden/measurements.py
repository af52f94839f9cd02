"""What is measured of a checkout: values by name. Only its programs and the files they write are used, so
that names inside the packages may change between two commits."""

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

from PIL import Image
from safetensors.numpy import load_file

RECIPE = "launch/recipes/walkers_demo.toml"
STEPS = 20
SETTINGS = {
    "batch.identities": 4,
    "batch.images": 2,
    "data.height": 48,
    "data.width": 24,
    "data.resize_height": 52,
    "data.resize_width": 28,
    # The demo's recipe had these before it had what it has now: older commits compare.
    "data.brightness": 0.0,
    "data.contrast": 0.0,
    "loss.negatives": "all",
    "loss.label_smoothing": 0.0,
    "model.width": 0.25,
    "model.dropout": 0.2,
    "optimizer.steps": STEPS,
    "optimizer.warmup_steps": 4,
    "run.log_every": 1,
    "run.checkpoint_every": STEPS,
}
PAIRS_OF_A_SHARD = 150  # of each carried shard: the conversion takes seconds


class MeasurementError(Exception):
    """One line that says which program of which checkout failed."""


def training(checkout: Path, work: Path, processes: int) -> dict[str, str]:
    """Loss of every step and the weights after the last, of the demo's recipe made small."""
    # One process decodes in a worker, two decode in the ranks themselves: both ways of a batch are seen.
    settings = {**SETTINGS, "name": f"ranks_{processes}", "data.workers": 1 if processes == 1 else 0}
    arguments = [RECIPE, "--runs", str(work / "runs")]
    for key, value in settings.items():
        arguments += ["--set", f"{key}={value}"]
    if processes == 1:
        run(checkout, "-m", "maskreid_dist", "train", *arguments)
    else:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        run(checkout, *launcher, "launch/train.py", *arguments)
    folder = work / "runs" / f"ranks_{processes}"
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    values = {f"loss at step {record['step']}": repr(record["loss"]) for record in records}
    (weights,) = folder.glob("checkpoints/*/weights.safetensors")
    for name, array in sorted(load_file(weights).items()):
        values[f"weights {name}"] = hashlib.sha256(array.tobytes()).hexdigest()
    return values


def losses(checkout: Path, work: Path, processes: int) -> dict[str, str]:
    """Value and gradient of every public loss, by losses.py in `processes` processes."""
    script = str(Path(__file__).parent / "losses.py")
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    output = work / f"losses_{processes}"
    output.mkdir()
    run(checkout, *launcher, script, str(checkout), str(output))
    values: dict[str, str] = {}
    for rank in range(processes):
        values |= json.loads((output / f"{rank}.json").read_text())
    return values


def conversion(checkout: Path, work: Path, market: Path) -> dict[str, str]:
    """The sha256 of every file that a conversion writes, with one and with two workers."""
    values = {}
    for workers in (1, 2):
        output = work / f"shards_{workers}"
        options = ["--on-bad-mask", "full", "--shard-size", "200kB", "--workers", str(workers)]
        run(checkout, "-m", "maskreid_dist", "convert", "market1501", str(market), str(output), *options)
        for path in sorted(path for path in output.rglob("*") if path.is_file()):
            name = f"{path.relative_to(output)}, {workers} worker{'s' * (workers > 1)}"
            values[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return values


MEASUREMENTS: dict[str, Callable[[Path, Path, Path], dict[str, str]]] = {
    "training, one process": lambda checkout, work, market: training(checkout, work, 1),
    "training, two ranks": lambda checkout, work, market: training(checkout, work, 2),
    "losses, one process": lambda checkout, work, market: losses(checkout, work, 1),
    "losses, two ranks": lambda checkout, work, market: losses(checkout, work, 2),
    "conversion": conversion,
}


def market_folder(shards: Path, folder: Path) -> Path:
    """Pairs of the carried shards as the Market-1501 folder that they came from; every third mask is given
    colours, so that the conversion writes masks anew too."""
    for shard in sorted(shards.glob("*/*.tar")):
        with tarfile.open(shard) as tar:
            members = tar.getmembers()[: 3 * PAIRS_OF_A_SHARD]
            contents = [tar.extractfile(member).read() for member in members]  # type: ignore[union-attr]
        for number, (image, mask, facts) in enumerate(zip(*[iter(contents)] * 3, strict=True)):
            source = folder / json.loads(facts)["source"]
            masks = source.parent.with_name(f"{source.parent.name}_seg")
            source.parent.mkdir(parents=True, exist_ok=True)
            masks.mkdir(exist_ok=True)
            source.write_bytes(image)
            (masks / f"{source.stem}.png").write_bytes(coloured(mask) if number % 3 == 0 else mask)
    return folder


def coloured(mask: bytes) -> bytes:
    """The same mask with three channels."""
    file = io.BytesIO()
    Image.open(io.BytesIO(mask)).convert("RGB").save(file, "PNG")
    return file.getvalue()


def run(checkout: Path, *arguments: str) -> None:
    """Run Python in a checkout, its packages first on the path. Raises MeasurementError."""
    roots = os.pathsep.join(str(checkout / folder) for folder in (".", "kernels", "shards"))
    # Not an installed copy; one thread, so that sums have one order; no GPU, so that Triton is interpreted.
    environment = {**os.environ, "PYTHONPATH": roots, "PYTHONDONTWRITEBYTECODE": "1"}
    environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "1"}
    found = subprocess.run(
        [sys.executable, *arguments], cwd=checkout, env=environment, capture_output=True, text=True
    )
    if found.returncode:
        end = "\n".join((found.stdout + found.stderr).splitlines()[-12:])
        raise MeasurementError(f"{checkout}: {' '.join(arguments[:4])} ... failed:\n{end}")
