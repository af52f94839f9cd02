"""The Triton programs compiled ahead of time, in a process of their own: here they are interpreted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")
ROOT = Path(__file__).parent.parent
# Everything is `make kernels-report`, in CI too; here the bf16 programs of one target, those of one loss on
# all, and every preset of that loss on three.
SCRIPT = """
import json
from dataclasses import asdict
from maskreid_kernels.bench.aot import compile_all, jobs

if __name__ == "__main__":
    of_bf16 = jobs(columns=(256,), presets=("bf16",))
    work = [job for job in of_bf16 if job.target == "sm_90" or job.loss == "batch_hard"]
    all_presets = jobs(("sm_90", "gfx942", "sm_100"), columns=(256,))
    work += [job for job in all_presets if job.loss == "batch_hard" and job.index == 0]
    for program in compile_all(dict.fromkeys(work), 2):
        print(json.dumps({**asdict(program), "problems": program.problems}))
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    script = tmp_path_factory.mktemp("aot") / "compile_them.py"
    script.write_text(SCRIPT)
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    ran = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return [json.loads(line) for line in ran.stdout.splitlines()]


def test_no_limit_is_broken(compiled: list[dict[str, Any]]) -> None:
    # Compiles; shared memory fits; wgmma, mma.sync, tcgen05 or mfma; no atomic on floats.
    assert [problem for program in compiled for problem in program["problems"]] == []
    assert {program["job"]["target"] for program in compiled} == {
        "sm_80",
        "sm_89",
        "sm_90",
        "sm_100",
        "gfx942",
    }
    presets = {(program["job"]["target"], program["job"]["preset"]) for program in compiled}
    assert ("sm_90", "tf32x3") in presets and ("gfx942", "tf32x3") not in presets


def test_spills_are_few(compiled: list[dict[str, Any]]) -> None:
    spilling = {f"{p['job']['target']} {p['program']}": p["spills"] for p in compiled if p["spills"]}
    assert max(spilling.values(), default=0) <= 16, spilling


def test_the_loop_over_tiles_is_found(compiled: list[dict[str, Any]]) -> None:
    for program in compiled:
        if program["job"]["target"] == "sm_90" and program["matrix"]:
            counts = dict(program["per_slab"] + program["per_tile"])
            assert counts["HGMMA"] >= 4 and len(program["per_tile"]) > 5, program["program"]


def test_counts_add_slabs_outside_the_matrix_instruction(compiled: list[dict[str, Any]]) -> None:
    """One multiplication and addition a pair and slab: what `retrieval_counts/bounds.py` counts on."""
    of_name = [p for p in compiled if p["program"] == "retrieval.counts"]
    (counts,) = [p for p in of_name if p["job"]["target"] == "sm_90"]
    rows, columns, _ = counts["tile"]
    assert dict(counts["per_slab"])["FFMA"] == rows * columns // (32 * counts["warps"])


def test_float_atomics_are_recognised() -> None:
    from maskreid_kernels.bench.aot import FLOAT_ATOMIC

    assert FLOAT_ATOMIC.search("red.global.add.f32 [%rd1], %f1;")
    assert FLOAT_ATOMIC.search("atom.global.gpu.relaxed.add.noftz.f16x2 %r1, [%rd1], %r2;")
    assert FLOAT_ATOMIC.search("global_atomic_add_f32 v0, v1, s[0:1]")
    assert FLOAT_ATOMIC.search("global_atomic_pk_add_bf16 v0, v1, s[0:1]")
    assert not FLOAT_ATOMIC.search("ld.global.f32 %f1, [%rd1]; red.global.add.u32 [%rd1], %r1;")


SPECIALISED = """
import json
from maskreid_kernels.bench.aot import MODULES, TARGETS, variants

found = {}
for loss in MODULES:
    for variant in variants(loss, 256, "bf16", TARGETS["sm_90"]):
        program = variant.program
        sizes = [p for p in program.params if not p.is_constexpr]
        sizes = [p for p in sizes if not p.name.endswith(("_ptr", "_high", "_low", "_desc"))]
        found[f"{loss}.{program.fn.__name__}"] = [p.name for p in sizes if not p.do_not_specialize]
print(json.dumps(found))
"""


def test_another_batch_size_compiles_nothing() -> None:
    """Of the sizes only the rows' width is compiled in; constants are floats, which Triton never compiles
    in."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(ROOT / "kernels")
    ran = subprocess.run([sys.executable, "-c", SPECIALISED], env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert len(found) >= 15
    assert {name: sizes for name, sizes in found.items() if set(sizes) - {"D"}} == {}
