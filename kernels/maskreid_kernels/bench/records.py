"""Time, memory and error of every provider on every case, as tidy records."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import torch

from .cases import Case, CaseData, make_case
from .figures import Quantiles
from .measure import gradient, peak_memory, relative_error, time_interleaved
from .over_ranks import time_over_ranks
from .providers import FLOOR, OURS, Provider, providers

KERNELS = tuple(OURS)
CHECK_ROWS = 192
CHECK_ERROR = 1e-4
# Rows in bfloat16: mining on rounded distances picks other pairs, which is no mistake. Up to this, or twice
# what the eager form is off by there.
LOW_ERROR, LOW_ERROR_AT_MOST = 5e-2, 0.9  # a gradient that is 0 is off by 1
# The chunked float64 gradient that errors are measured against costs this many products; beyond, it is left
# out.
ERROR_UP_TO_FLOP = {"cpu": 2e12, "cuda": 2e15}
Say = Callable[[str], None]


@dataclass(frozen=True)
class Budget:
    """What one provider on one case may take: bytes at its peak, and seconds for all rounds of a case."""

    memory_bytes: int
    seconds: float
    flop_per_s: float  # a pessimistic rate, to leave out what could not end in time

    @classmethod
    def of(cls, device: str, seconds: float) -> "Budget":
        if device == "cuda":
            return cls(int(0.9 * torch.cuda.get_device_properties(0).total_memory), seconds, 2e13)
        pages = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return cls(int(0.6 * pages), seconds, 2e10 * torch.get_num_threads())


@dataclass(frozen=True)
class Record:
    """One line of the CSV. y50 is empty where `status` says why there is no figure."""

    kernel: str
    provider: str
    mode: str
    metric: str
    N: int
    M: int
    D: int
    K: int
    violators: float | None
    active: float  # share of the anchors that push a negative away
    dtype: str
    y50: float | None
    y20: float | None
    y80: float | None
    unit: str
    status: str


@dataclass(frozen=True)
class Job:
    """A case and what is measured on it. `only`: these providers, or all where empty.

    `active_from`: with a smaller share of active anchors nothing is measured.
    """

    case: Case
    timed: bool = True
    memory: bool = True
    only: tuple[str, ...] = ()
    active_from: float = 0.0


def run_job(
    job: Job, *, device: str, budget: Budget, compiled: bool, say: Say, max_autotune: bool = False
) -> list[Record]:
    """All records of one case. A provider that fails its check, or cannot fit, is a record that says so."""
    case = job.case
    data = make_case(case, torch.device(device))
    title, record = _title(case, data), partial(_record, case, data)
    if case.ranks > 1:
        return _run_over_ranks(case, data, budget, say)
    fitting, records = [], []
    for provider in providers(case, data, compiled=compiled, max_autotune=max_autotune):
        if job.only and provider.name not in job.only:
            continue
        reason = (
            _is_idle(job, data)
            or _why_not(case, provider, budget)
            or _fails_check(case, provider.name, device)
        )
        if reason:
            say(f"{title}: {provider.name}: {reason}")
            records.append(record(provider.name, "both", "time", None, "ms", reason))
        else:
            fitting.append(provider)
    say(f"{title}: {', '.join(provider.name for provider in fitting)}")
    if job.timed and fitting:
        times = time_interleaved(fitting, data.x_ND, data.y_N, seconds=budget.seconds)
        for name, modes in times.items():
            for mode, quantiles in modes.items():
                if name != FLOOR or mode == "forward":
                    records.append(record(name, mode, "time", quantiles, "ms", "ok"))
        records += _errors(case, data, fitting, device)
    if job.memory:
        for provider in fitting:
            if provider.name != FLOOR:
                peak = peak_memory(case, provider.name, device, timeout_s=20 * budget.seconds + 300)
                single = Quantiles(peak, peak, peak) if isinstance(peak, float) else None
                status = "ok" if isinstance(peak, float) else peak
                records.append(record(provider.name, "both", "memory", single, "MiB", status))
    return records


def _run_over_ranks(case: Case, data: CaseData, budget: Budget, say: Say) -> list[Record]:
    """M = N / ranks anchors by N candidates, a process and a thread each, over gloo; the slowest rank
    counts."""
    say(f"{_title(case, data)}, over {case.ranks} ranks")
    return [
        _record(case, data, f"{name}, {case.ranks} ranks", "both", "time", quantiles, "ms", "ok")
        for name, quantiles in time_over_ranks(case, budget.seconds).items()
    ]


def _is_idle(job: Job, data: CaseData) -> str | None:
    if data.active >= job.active_from:
        return None
    found, wanted = (f"{100 * share:.0f} %" for share in (data.active, job.active_from))
    return f"not measured: {found} of the anchors are active, {wanted} are wanted"


def _why_not(case: Case, provider: Provider, budget: Budget) -> str | None:
    """Why a provider is left out of a case: it would be driven out of memory, or take for ever."""
    wanted = provider.matrices * case.rows**2 * 4
    if wanted > budget.memory_bytes:
        free = f"{budget.memory_bytes / 1e9:.0f} GB"
        return f"out of memory: about {wanted / 1e9:.0f} GB of N x N matrices, {free} are free"
    products = 1 if provider.name == FLOOR else 3
    seconds = products * 2 * case.rows**2 * case.columns / budget.flop_per_s
    if seconds > 20 * budget.seconds:
        return f"left out: about {seconds:.0f} s a round"
    return None


def _fails_check(case: Case, name: str, device: str) -> str | None:
    """The gradient at a small size against the float64 reference; only what is right is measured.

    On float32 copies of the rows first: what is wrong there is wrong, whatever the rounding of the rows' own
    dtype.
    """
    small = Case(case.kernel, CHECK_ROWS, case.columns, case.images, case.violators, dtype=case.dtype)
    data = make_case(small, torch.device(device))
    by_name = {provider.name: provider for provider in providers(small, data, compiled=False)}
    if name not in by_name or not by_name[name].exact:
        return None
    reference, own = _reference(small, data), data.x_ND
    loss, eager = by_name[name].loss, by_name["eager"].loss
    error = relative_error(gradient(loss, own.float(), data.y_N), reference)
    if not error <= CHECK_ERROR:
        return f"not measured: its gradient is off by {error:.1e} at {CHECK_ROWS} rows"
    if own.dtype != torch.float32:
        error, of_eager = (relative_error(gradient(form, own, data.y_N), reference) for form in (loss, eager))
        if not error <= min(max(LOW_ERROR, 2 * of_eager), LOW_ERROR_AT_MOST):
            return f"not measured: its gradient is off by {error:.1e} at {CHECK_ROWS} rows in {case.dtype}"
    return None


def _reference(case: Case, data: CaseData) -> torch.Tensor:
    (chunked,) = [p for p in providers(case, data, compiled=False) if p.name == "maskreid chunked"]
    return gradient(chunked.loss, data.x_ND.double(), data.y_N)


def _errors(case: Case, data: CaseData, fitting: Sequence[Provider], device: str) -> Iterator[Record]:
    if 6 * case.rows**2 * case.columns > ERROR_UP_TO_FLOP[device]:
        return
    reference = _reference(case, data)
    for provider in fitting:
        if provider.exact:
            error = relative_error(gradient(provider.loss, data.x_ND, data.y_N), reference)
            yield _record(
                case, data, provider.name, "both", "error", Quantiles(error, error, error), "relative", "ok"
            )


def _record(
    case: Case,
    data: CaseData,
    provider: str,
    mode: str,
    metric: str,
    found: Quantiles | None,
    unit: str,
    status: str,
) -> Record:
    return Record(
        kernel=case.kernel,
        provider=provider,
        mode=mode,
        metric=metric,
        N=case.rows,
        M=case.rows // case.ranks,
        D=case.columns,
        K=case.images,
        violators=case.violators,
        active=data.active,
        dtype=case.dtype,
        y50=found.y50 if found else None,
        y20=found.y20 if found else None,
        y80=found.y80 if found else None,
        unit=unit,
        status=status,
    )


def _title(case: Case, data: CaseData) -> str:
    share = "" if case.violators is None else f", {100 * case.violators:g} % violators"
    active = f", {100 * data.active:.0f} % of the anchors active"
    return f"{case.kernel} N = {case.rows}, D = {case.columns}, K = {case.images}{share}{active}"


def as_row(record: Record) -> dict[str, object]:
    return asdict(record)
