"""Measuring: interleaved times, peak memory in a process of its own, error of the gradient against
float64."""

import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from .cases import Case, make_case
from .figures import Quantiles
from .providers import COMPILED, FLOOR, Loss, Provider, providers

MIB = 1 << 20


def time_interleaved(
    found: list[Provider], x_ND: Tensor, y_N: Tensor, *, seconds: float, most: int = 50
) -> dict[str, dict[str, Quantiles]]:
    """ms of forward, backward and both by provider. All take turns, so that a slow moment hits them alike.

    At least 3 rounds, then as many as `seconds` allow, at most `most`. On a GPU every part ends with a host
    sync.
    """
    rows = {provider.name: x_ND.detach().clone().requires_grad_() for provider in found}
    times: dict[str, list[tuple[float, float]]] = {provider.name: [] for provider in found}
    for provider in found:  # compilation, caches, autotuning
        _once(provider, rows[provider.name], y_N)
    end = time.perf_counter() + seconds
    for round_number in range(most):
        if round_number >= 3 and time.perf_counter() > end:
            break
        turn = round_number % len(found)  # nobody always follows the one that empties the caches
        for provider in found[turn:] + found[:turn]:
            times[provider.name].append(_once(provider, rows[provider.name], y_N))
    return {
        name: {
            "forward": Quantiles.of([forward for forward, _ in pairs]),
            "backward": Quantiles.of([backward for _, backward in pairs]),
            "both": Quantiles.of([forward + backward for forward, backward in pairs]),
        }
        for name, pairs in times.items()
    }


def _once(provider: Provider, x_ND: Tensor, y_N: Tensor) -> tuple[float, float]:
    x_ND.grad = None
    start = _now(x_ND)
    loss = provider.loss(x_ND, y_N)
    middle = _now(x_ND)
    if provider.name != FLOOR:
        loss.backward()
    return (middle - start) * 1e3, (_now(x_ND) - middle) * 1e3


def _now(x_ND: Tensor) -> float:
    if x_ND.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter()


def gradient(loss: Loss, x_ND: Tensor, y_N: Tensor) -> Tensor:
    """The gradient on the rows, float64."""
    rows = x_ND.detach().clone().requires_grad_()
    loss(rows, y_N).backward()
    assert rows.grad is not None
    return rows.grad.double()


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm().clamp(min=1e-30))


def peak_memory(case: Case, provider: str, device: str, *, timeout_s: float) -> float | str:
    """MiB beyond rows, labels and gradient in one forward and backward; text where it did not end well.

    On a CPU: growth of the resident set over its level before the call, in a fresh process whose code has run
    once at a small size. On a GPU: what torch's allocator counted.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure_peak, args=(sender, case, provider, device), daemon=True)
    process.start()
    sender.close()
    try:
        return float(receiver.recv()) if receiver.poll(timeout_s) else f"no end within {timeout_s:.0f} s"
    except EOFError:
        process.join()
        return f"the process died (exit status {process.exitcode}): out of memory?"
    finally:
        process.kill()
        process.join()


def _measure_peak(
    sender: "multiprocessing.connection.Connection", case: Case, name: str, device: str
) -> None:
    small = Case(case.kernel, 64, case.columns, case.images, case.violators, dtype=case.dtype)
    for measured in (small, case):
        data = make_case(measured, torch.device(device))
        (provider,) = [p for p in providers(measured, data, compiled=name == COMPILED) if p.name == name]
        x_ND = data.x_ND.requires_grad_()
        meter = gpu_meter if x_ND.is_cuda else resident_meter
        peak = beside_gradient(meter, provider.loss, x_ND, data.y_N)
    sender.send(peak)


def beside_gradient(meter: Callable[[], Callable[[], int]], loss: Loss, x_ND: Tensor, y_N: Tensor) -> float:
    """MiB that one forward and backward takes at its peak, by the meter, beside the gradient that it
    leaves."""
    x_ND.grad = None  # one that is there would be kept, and the backward's own would count
    read = meter()
    loss(x_ND, y_N).backward()
    assert x_ND.grad is not None
    return max(read() - x_ND.grad.nbytes, 0) / MIB


def resident_meter() -> Callable[[], int]:
    """Bytes by which the resident set's peak rises from now on (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _status("VmRSS")
    return lambda: _status("VmHWM") - before


def gpu_meter() -> Callable[[], int]:
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    return lambda: torch.cuda.max_memory_allocated() - before


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {key}")
