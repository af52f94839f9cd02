"""The programs that the kernels' tests compile on a GPU, compiled here and packed for the GPU's machine.

    python tests/pack_compile_cache.py OUT.tar.xz   fill the cache for all sizes that a GPU runs, and pack it
    python tests/pack_compile_cache.py --unpack IN.tar.xz
    python tests/pack_compile_cache.py --check      run again over the cache as it is: how many programs hit

Run it by a Python with the GPU machine's Triton: another version compiles anew. Triton's cache holds absolute
paths, so it stands at CACHE on both machines, and there is used by TRITON_CACHE_DIR. The launcher stubs that
Triton 3.6 has gcc build on the GPU's machine are built here too. A miss there costs its compilation, nothing
else.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
CACHE = Path("/tmp/maskreid-triton-cache")


def compile_all(processes: int, select: str) -> tuple[list[dict[str, Any]], list[str], bool]:
    """(programs, launcher stubs) that the tests ask for, and whether all passed. Two processes may ask for
    one program."""
    sys.path.insert(0, str(ROOT / "kernels"))  # where nothing is installed
    from maskreid_kernels.bench.gpu.checks import test_files

    found: list[dict[str, Any]] = []
    stubs: set[str] = set()
    with tempfile.TemporaryDirectory() as folder:
        running = []
        for part in range(1, processes + 1):
            out = Path(folder) / f"{part}.json"
            paths = [str(ROOT / "tests"), str(ROOT), str(ROOT / "kernels")]
            environment = os.environ | {
                "TRITON_CACHE_DIR": str(CACHE),
                "PYTHONPATH": os.pathsep.join(paths),
                "GPU_PATH_SIZES": "all",
                "GPU_PATH_PART": f"{part}/{processes}",
                "GPU_PATH_OUT": str(out),
            }
            command = [sys.executable, "-m", "pytest", "-q", "-p", "gpu_path", "-p", "no:cacheprovider"]
            command += [*map(str, test_files()), *(["-k", select] if select else [])]
            running.append((subprocess.Popen(command, cwd=ROOT, env=environment), out))
        failed = [process.wait() != 0 for process, _ in running]
        for _, out in running:
            records = json.loads(out.read_text())
            found += records["programs"]
            stubs |= set(records["stubs"])
    return found, sorted(stubs), not any(failed)


def build_stubs(stubs: list[str]) -> None:
    """What Triton 3.6 has gcc build before a first launch, under the keys it looks for. libcuda is bound when
    loaded."""
    from triton.backends.nvidia import driver
    from triton.runtime import build
    from triton.runtime.cache import get_cache_manager

    utilities = (Path(driver.__file__).parent / "driver.c").read_text()
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["gcc", "-shared", "-x", "c", "/dev/null", "-o", f"{folder}/libcuda.so.1"], check=True)
        sources = [("cuda_utils", utilities)] + [("__triton_launcher", text) for text in stubs]
        for name, text in sources:
            key = hashlib.sha256((text + build.platform_key()).encode()).hexdigest()
            cache = get_cache_manager(key)
            if cache.get_file(f"{name}{suffix}") is None:
                source = Path(folder) / f"{name}.c"
                source.write_text(text)
                built = build._build(
                    name,
                    str(source),
                    folder,
                    [driver.libdevice_dir, folder],
                    driver.include_dirs,
                    driver.libraries,
                    [],
                )
                cache.put(Path(built).read_bytes(), f"{name}{suffix}", binary=True)


def report(found: list[dict[str, Any]]) -> str:
    hits = sum(one["cached"] for one in found)
    seconds = sum(one["seconds"] for one in found)
    return f"{len(found)} programs asked for, {hits} of them in the cache; {seconds:.0f} s of compiling"


def pack(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:xz") as archive:
        # Only what launching needs: not the stages that led there.
        for file in sorted(CACHE.rglob("*")):
            if file.suffix not in (".ttir", ".ttgir", ".llir", ".source") or not file.is_file():
                archive.add(file, arcname=file.relative_to(CACHE), recursive=False)
    return f"{path}: {path.stat().st_size / 2**20:.1f} MiB"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("archive", type=Path, nargs="?")
    parser.add_argument("--unpack", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--select", default="", help="pytest's -k: a part of the tests")
    options = parser.parse_args()
    if not options.check and options.archive is None:
        parser.error("name an archive")
    if options.unpack:
        if not options.archive.is_file():
            parser.error(f"{options.archive}: no such file")
        CACHE.mkdir(exist_ok=True)
        with tarfile.open(options.archive) as archive:
            archive.extractall(CACHE, filter="data")
        print(f"export TRITON_CACHE_DIR={CACHE}")
    if not options.unpack:
        found, stubs, passed = compile_all(options.processes, options.select)
        print(report(found))
        if stubs:
            os.environ["TRITON_CACHE_DIR"] = str(CACHE)
            build_stubs(stubs)
            print(f"{len(stubs)} launcher stubs")
        if options.archive is not None:
            print(pack(options.archive))
        return 0 if passed else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
