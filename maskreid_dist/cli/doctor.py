"""`maskreid doctor`: what this machine has, and what is missing for which part."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import typer

from maskreid_dist.cli.carried import carried_shards
from maskreid_dist.cli.failures import one_line_errors
from maskreid_dist.cli.options import AsJson
from maskreid_dist.errors import UserError
from maskreid_dist.terminal import say, say_json

PACKAGES = ("torch", "torchvision", "triton", "deepspeed", "numpy", "pillow", "webdataset")
OURS = {
    "maskreid-dist": "maskreid_dist",
    "maskreid-kernels": "maskreid_kernels",
    "maskreid-shards": "maskreid_shards",
}
# What of the program needs a package that is not always there.
EXTRAS = {
    "mat (CUHK03, MARS)": ("h5py", "scipy"),
    "lmdb (LUPerson)": ("lmdb",),
    "remote (s3://, gs://)": ("fsspec",),
    "timm (other trunks)": ("timm",),
    "faiss (search by FAISS)": ("faiss",),
    "export (ONNX, the page)": ("onnx", "onnxruntime", "onnxscript"),
    "push (the Hub)": ("huggingface_hub",),
    "Weights & Biases": ("wandb",),
    "Trackio": ("trackio",),
    "MLflow": ("mlflow",),
}
LEAST_SHM = 1 << 30  # of /dev/shm, where data workers put their batches: containers often have 64 MiB
LEAST_DISK = 5 << 30


@dataclass(frozen=True)
class Finding:
    """level: ok, note (a part cannot be used) or problem (training will fail or be wrong)."""

    subject: str
    text: str
    level: str = "ok"


@one_line_errors
def doctor(
    as_json: AsJson = False,
) -> None:
    """Versions, GPUs, backends, disk and memory, and what is missing for which part: exit status 1 with a
    problem."""
    found = [*_versions(), *_builds(), *_copies(), *_devices(), *_room(), *_extras()]
    if as_json:
        say_json({"findings": [asdict(finding) for finding in found]})
    else:
        width = max(len(finding.subject) for finding in found)
        for finding in found:
            mark = {"ok": " ", "note": "-", "problem": "!"}[finding.level]
            say(f"{mark} {finding.subject:{width}}  {finding.text}")
    raise typer.Exit(1 if any(finding.level == "problem" for finding in found) else 0)


def _versions() -> list[Finding]:
    found = [Finding("Python", f"{platform.python_version()}, {platform.platform()}")]
    for name in (*OURS, *PACKAGES):
        version = _version(name)
        level = "ok" if version else "problem"
        found.append(Finding(name, version or "not installed", level))
    return found


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _builds() -> list[Finding]:
    """torch and torchvision of different builds: what uses both ends with a traceback."""
    try:
        import torchvision  # noqa: F401  # whether it can be
    except (ImportError, OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        text = (
            f"{reason}: not of this torch's build; install both from one index, such as PyTorch's CPU wheels"
        )
        return [Finding("torchvision", text, "problem")]
    return []


def _copies() -> list[Finding]:
    """Packages of ours that come from more than one place: one would run with the other's parts."""
    places: dict[str, list[str]] = {}
    for module in OURS.values():
        for entry in dict.fromkeys(Path(part or ".").resolve() for part in sys.path):
            if (entry / module / "__init__.py").is_file():
                places.setdefault(module, []).append(str(entry))
    found = [
        Finding(
            "several copies",
            f"{module} in {' and '.join(folders)}: the first is used; take the others off the path",
            "problem",
        )
        for module, folders in places.items()
        if len(folders) > 1
    ]
    versions = {name: _version(name) for name in OURS}
    if len({version for version in versions.values() if version}) > 1:
        text = ", ".join(f"{name} {version}" for name, version in versions.items())
        found.append(Finding("versions", f"{text}: install the three together", "problem"))
    return found


def _devices() -> list[Finding]:
    import torch
    import torch.distributed as dist

    found = [Finding("processors", f"{len(os.sched_getaffinity(0))} of {os.cpu_count()} may be used")]
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            about = torch.cuda.get_device_properties(number)
            memory = f"{about.total_memory / 2**30:.0f} GiB"
            found.append(Finding(f"GPU {number}", f"{about.name}, {memory}, sm_{about.major}{about.minor}"))
    else:
        built = (
            f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "a CPU build of torch"
        )
        found.append(Finding("GPU", f"none that torch can use ({built}); training runs on the CPU, by gloo"))
    backends = [name for name in ("nccl", "gloo", "mpi") if getattr(dist, f"is_{name}_available")()]
    level = "ok" if "gloo" in backends else "problem"
    found.append(Finding("backends", ", ".join(backends) or "none", level))
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    names = ("deepspeed", "torchrun", "srun", "mpirun", "pdsh")
    launchers = [name for name in names if shutil.which(name, path=path)]
    found.append(Finding("launchers", ", ".join(launchers) or "none on PATH"))
    return found


def _room() -> list[Finding]:
    found = []
    for name, folder, least, why in (
        ("disk here", Path.cwd(), LEAST_DISK, "a few checkpoints fill it"),
        ("/dev/shm", Path("/dev/shm"), LEAST_SHM, "data workers need it; docker run --shm-size=8g"),
    ):
        try:
            free = shutil.disk_usage(folder).free
        except OSError as error:
            found.append(Finding(name, f"{error.strerror}: {why}", "problem"))
            continue
        small = free < least
        found.append(
            Finding(name, f"{free / 2**30:.1f} GiB free" + (f": {why}" if small else ""), _level(small))
        )
    return found


def _level(small: bool) -> str:
    return "problem" if small else "ok"


def _extras() -> list[Finding]:
    found = []
    for part, modules in EXTRAS.items():
        missing = [module for module in modules if importlib.util.find_spec(module) is None]
        text = f"needs {', '.join(missing)}" if missing else "installed"
        found.append(Finding(part, text, "note" if missing else "ok"))
    try:
        found.append(Finding("walkers (the demo's data)", carried_shards()))
    except UserError:
        found.append(Finding("walkers (the demo's data)", "needs maskreid_walkers", "note"))
    return found
