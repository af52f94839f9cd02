"""A driver for Triton on a machine without a GPU: every launch compiles for sm_90 as on an H100, and nothing
runs.

The keys are those of real launches (types, alignment, divisibility, constants of the arguments), so a program
that only a GPU would be asked for is compiled here too. Recorded: compilations, launches and their grids, the
launcher stubs that Triton 3.6 has gcc build. Works with Triton 3.6 and 3.7.
"""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.backends.nvidia import driver as nvidia
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

import pretend_device
from maskreid_kernels.bench.aot import TARGETS, TOOLS
from pretend_device import GpuTensor

SHARED_LIMIT = TARGETS["sm_90"].shared_limit
GRID_LIMITS = (2**31 - 1, 65535, 65535)


@dataclass
class Compilation:
    """One program as launches asked for it. `spills`: bytes of stack per thread, once `read_binaries` ran."""

    name: str
    signature: str
    constants: str
    seconds: float
    cached: bool
    shared: int
    cubin: str
    registers: int = 0
    spills: int = 0

    def __str__(self) -> str:
        return f"{self.name}({self.signature}) [{self.constants}]"


@dataclass
class Records:
    """What this process asked Triton for."""

    compilations: list[Compilation] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    bad_grids: list[str] = field(default_factory=list)
    launches: Counter[str] = field(default_factory=Counter)
    stubs: set[str] = field(default_factory=set)  # C texts

    def problems(self, spill_limit: int) -> list[str]:
        """One line for each program that a GPU would refuse, or that spills more than `spill_limit` bytes."""
        found = [f"does not compile: {line}" for line in self.failures]
        found += [f"grid out of range: {line}" for line in self.bad_grids]
        for one in self.compilations:
            if one.shared > SHARED_LIMIT:
                found.append(f"{one.shared} bytes of shared memory, the limit is {SHARED_LIMIT}: {one}")
            if one.spills > spill_limit:
                found.append(f"{one.spills} bytes spilled, the limit is {spill_limit}: {one}")
        return list(dict.fromkeys(found))

    def read_binaries(self) -> None:
        """Fill in registers and spills, from the binaries."""

        def read(one: Compilation) -> None:
            command = [str(TOOLS / "cuobjdump"), "-res-usage", str(one.cubin)]
            text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            counts = dict(re.findall(r"(REG|STACK):(\d+)", text))
            one.registers, one.spills = int(counts["REG"]), int(counts["STACK"])

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(read, self.compilations))


records = Records()


class Launcher:
    """Stands where Triton's launcher does; made once per compiled program."""

    def __init__(self, source: Any, metadata: Any) -> None:
        self.name, self.arguments = metadata.name, list(source.signature)
        self.pointers = [kind.startswith("*") for kind in source.signature.values()]
        if hasattr(nvidia, "make_launcher"):
            constants = {(source.fn.arg_names.index(key),) if isinstance(key, str) else key: value
                         for key, value in source.constants.items()}  # fmt: skip
            text = nvidia.make_launcher(
                constants,
                dict(enumerate(source.signature.values())),
                getattr(metadata, "tensordesc_meta", None),
            )
            records.stubs.add(text)

    def __call__(self, x: int, y: int, z: int, stream: int, function: int, *others: Any) -> None:
        grid = (x, y, z)
        records.launches[self.name] += 1
        if any(not 1 <= size <= limit for size, limit in zip(grid, GRID_LIMITS, strict=True)):
            records.bad_grids.append(f"{self.name}{grid}")
        values = others[len(others) - len(self.arguments) :]
        for name, pointer, value in zip(self.arguments, self.pointers, values, strict=True):
            if pointer and not isinstance(value, GpuTensor):
                raise ValueError(f"{self.name}: {name} is not on the GPU (cpu tensor?)")
            if pointer and value.index != pretend_device.current.device:
                raise ValueError(
                    f"{self.name}: {name} is on {value.device}, another GPU than the current one"
                )


class Utils:
    def load_binary(self, name: str, *_: Any) -> tuple[int, str, int, int, int]:
        return 1, name, 0, 0, 1024

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {
            "max_shared_mem": SHARED_LIMIT,
            "multiprocessor_count": pretend_device.PROCESSORS,
            "warpSize": 32,
        }


class PretendDriver(DriverBase):  # type: ignore[misc]  # of Triton, which has no types
    def __init__(self) -> None:
        self.utils, self.launcher_cls = Utils(), Launcher

    @classmethod
    def is_active(cls) -> bool:
        return True

    def map_python_to_cpp_type(self, ty: str) -> str:
        return str(nvidia.ty_to_cpp(ty))

    def get_current_target(self) -> GPUTarget:
        return TARGETS["sm_90"].gpu

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cuda", pretend_device.current.device)

    def get_current_device(self) -> int:
        return int(pretend_device.current.device)

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_benchmarker(self) -> Callable[..., Any]:
        raise NotImplementedError("nothing runs here, so nothing can be measured")


def listen(
    *, src: Any, metadata: dict[str, Any], metadata_group: dict[str, str], times: Any, cache_hit: bool
) -> None:
    """Triton's compilation listener."""
    cubin = next((str(path) for name, path in metadata_group.items() if name.endswith(".cubin")), "")
    signature = ", ".join(f"{name}: {kind}" for name, kind in src.signature.items() if kind != "constexpr")
    names = {key[0]: src.fn.arg_names[key[0]] for key in src.constants}
    constants = ", ".join(f"{names[key[0]]}={value}" for key, value in src.constants.items())
    seconds = times.total / 1e6
    records.compilations.append(
        Compilation(src.name, signature, constants, seconds, cache_hit, metadata["shared"], cubin)
    )


def install() -> None:
    """Make this the driver of the process. Before the first launch, without TRITON_INTERPRET."""
    driver.set_active(PretendDriver())
    triton.knobs.compilation.listener = listen
    compile_one = JITFunction._do_compile

    def recorded(self: JITFunction, *arguments: Any, **options: Any) -> Any:
        try:
            return compile_one(self, *arguments, **options)
        except Exception as error:
            first = (str(error).strip().splitlines() or [""])[0]
            records.failures.append(f"{self.fn.__qualname__}: {type(error).__name__}: {first}")
            raise

    JITFunction._do_compile = recorded
