"""Tensors that say they are on a GPU, on a machine that has none: host code takes its GPU branches.

A `GpuTensor` holds a CPU tensor and answers `device` and `is_cuda` as a GPU's would. Operators run on the CPU
and are counted: those that a GPU would launch, and those that would wait for it. Uninitialised memory is
zero, so that what a Triton program would have written there (see pretend_driver.py) is at least a valid
index. Mixing it with a CPU tensor fails as on a GPU.
"""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_map

aten = torch.ops.aten
PROCESSORS = 132  # of an H100
OPERATORS: Counter[str] = Counter()  # those that launch
WAITS: Counter[str] = Counter()  # those whose result the host waits for
ALLOCATIONS = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")
NO_LAUNCH = (*ALLOCATIONS, "resize_", "_unsafe_view", "lift_fresh", "is_same_size", "set_", "_to_copy")
WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2")
PRODUCTS = ("mm", "addmm", "addmm_", "bmm", "baddbmm", "baddbmm_")
CROSSES_DEVICES = ("copy_", "_to_copy", "index", "index_put", "index_put_", "_index_put_impl_")
current = SimpleNamespace(device=0)


class GpuTensor(Tensor):
    """C++ sees a CPU tensor (autograd needs no GPU), Python one on a GPU."""

    held: Tensor
    index: int  # type: ignore[assignment]  # a method of tuples, which Tensor is typed as one of

    @staticmethod
    def __new__(cls, held: Tensor, index: int = 0) -> GpuTensor:
        made = Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device("cpu"),
        )
        made.held, made.index = held, index
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cuda", self.index)

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    @property
    def is_cpu(self) -> bool:  # type: ignore[override]
        return False

    def get_device(self) -> int:
        return self.index

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def numpy(self, **_: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy; use Tensor.cpu() first")

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"GpuTensor({self.held!r})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return run(func, args, kwargs or {})


class _Moved(torch.autograd.Function):
    """A copy on another device, None being the CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: int | None) -> Tensor:
        ctx.index = x.index if isinstance(x, GpuTensor) else None
        (WAITS if index is None else OPERATORS)["_to_copy"] += 1
        held = (x.held if isinstance(x, GpuTensor) else x).clone()
        return held if index is None else GpuTensor(held, index)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _Moved.apply(gradient, ctx.index), None


_torch_to = Tensor.to


def to(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Tensor.to that knows of GpuTensors."""
    if args and isinstance(args[0], Tensor):
        args = (args[0].device, args[0].dtype, *args[1:])
    copy = kwargs.pop("copy", False)
    device, dtype, _, memory_format = torch._C._nn._parse_to(*args, **kwargs)
    moved = self
    if device is not None and device.type in ("cpu", "cuda") and device.type != self.device.type:
        index = None if device.type == "cpu" else current.device if device.index is None else device.index
        moved, copy = _Moved.apply(self, index), False
    return _torch_to(
        moved, dtype or self.dtype, copy=copy, memory_format=memory_format or torch.preserve_format
    )


def _tensor(
    data: Any, *, device: Any = None, requires_grad: bool = False, _make: Any = torch.tensor, **kwargs: Any
) -> Tensor:
    """torch.tensor that knows of GpuTensors."""
    made = to(_make(data, **kwargs), "cpu" if device is None else device)
    return made.requires_grad_(requires_grad)


class PretendGpu(TorchDispatchMode):
    """While active, tensors made with a CUDA device are GpuTensors."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


def run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operator on the held tensors; its results are on the GPU where one of its tensors or its device
    is."""
    gpu: list[GpuTensor] = []
    cpu: list[Tensor] = []

    def held(x: Any) -> Any:
        if isinstance(x, GpuTensor):
            gpu.append(x)
            return x.held
        if isinstance(x, Tensor) and x.dim():
            cpu.append(x)
        return x

    own_args, own_kwargs = tree_map(held, args), tree_map(held, kwargs)
    name = func.__name__.split(".")[0]
    device = torch.device(kwargs["device"]) if kwargs.get("device") is not None else None
    if device is not None:
        own_kwargs["device"] = torch.device("cpu")
    if gpu and cpu and name not in CROSSES_DEVICES:
        raise RuntimeError(f"{func}: Expected all tensors to be on the same device, found cuda:0 and cpu")
    index = _index(device, gpu)
    if index is None:
        return func(*own_args, **own_kwargs)
    if len({x.index for x in gpu}) > 1 and name not in CROSSES_DEVICES:
        raise RuntimeError(f"{func}: Expected all tensors to be on the same device, found two GPUs")
    _count(func, name)
    if name in PRODUCTS:
        out = _product(func, *own_args, **own_kwargs)
    else:
        out = func(*own_args, **own_kwargs)
    if name in ALLOCATIONS:
        out.zero_()
    out = tree_map(lambda x: GpuTensor(x, index) if isinstance(x, Tensor) else x, out)
    return return_and_correct_aliasing(func, args, kwargs, out)


def _index(device: torch.device | None, gpu: list[GpuTensor]) -> int | None:
    """The GPU that results are on, None for the CPU."""
    if device is not None and device.type == "cuda":
        return current.device if device.index is None else device.index
    return gpu[0].index if gpu and device is None else None


def _count(func: Any, name: str) -> None:
    if name in WAITING:
        WAITS[name] += 1
    if name == "_to_copy" or not (func.is_view or name in NO_LAUNCH):
        OPERATORS[name] += 1


def _product(func: Any, *args: Any, **kwargs: Any) -> Tensor:
    """mm, addmm and their kin without the work: what they would multiply are numbers that mean nothing."""
    *added, left, right = (x for x in args if isinstance(x, Tensor))
    if left.dtype != right.dtype or left.shape[-1] != right.shape[-2]:
        raise RuntimeError(f"{func}: {left.dtype} {list(left.shape)} times {right.dtype} {list(right.shape)}")
    if isinstance(out := kwargs.get("out"), Tensor):
        return out
    if func.__name__.split(".")[0].endswith("_"):
        return added[0]
    dtypes = [x for x in (*args, *kwargs.values()) if isinstance(x, torch.dtype)]  # out_dtype: on a GPU only
    shape = (*left.shape[:-1], right.shape[-1])
    return left.new_zeros(shape, dtype=dtypes[0] if dtypes else left.dtype)


def pretend() -> None:
    """Let torch.cuda answer for one H100 (of two), in this process and from now on."""
    properties = SimpleNamespace(
        name="no GPU (pretended H100)",
        multi_processor_count=PROCESSORS,
        major=9,
        minor=0,
        total_memory=80 << 30,
        L2_cache_size=50 << 20,
        shared_memory_per_block_optin=227 << 10,
        warp_size=32,
    )

    def exchange(device: int) -> int:
        before: int = current.device
        if device >= 0:
            current.device = device
        return before

    answers = {
        "is_available": lambda: True,
        "device_count": lambda: 2,
        "current_device": lambda: current.device,
        "set_device": lambda device: exchange(torch.device("cuda", device).index or 0),
        "_exchange_device": exchange,
        "_maybe_exchange_device": exchange,
        "get_device_properties": lambda device=None: properties,
        "get_device_capability": lambda device=None: (9, 0),
        "get_device_name": lambda device=None: properties.name,
        "is_bf16_supported": lambda *_, **__: True,
        "is_current_stream_capturing": lambda: False,
        "synchronize": lambda device=None: None,
        "_lazy_init": lambda: None,
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, answer)
    Tensor.to = to  # type: ignore[method-assign, assignment]
    Tensor.cuda = lambda self, device="cuda", **_: to(self, device)  # type: ignore[method-assign]
    Tensor.cpu = lambda self, **_: to(self, "cpu")  # type: ignore[method-assign]
    torch.tensor = _tensor  # type: ignore[assignment]
