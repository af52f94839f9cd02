"""Named sets of cases, and the figures that this project promises about them."""

import itertools
from collections.abc import Sequence

from .cases import Case
from .figures import Promise
from .records import KERNELS, Record

SMALL_ROWS = (64, 128, 256, 512)
ALL_ROWS = (512, 2048, 8192, 32768, 65536, 131072)
ALL_COLUMNS = (256, 512, 2048)
VIOLATORS = (0.5, 0.01, 0.001)
SMALL_VIOLATORS = 0.05  # 1 % of 60 negatives would leave most anchors without one


def small_cases() -> list[Case]:
    return [
        Case(kernel, rows, columns, 4, SMALL_VIOLATORS if kernel == "ranking" else None)
        for kernel, rows, columns in itertools.product(KERNELS, SMALL_ROWS, (256, 2048))
    ]


def large_cases() -> list[Case]:
    return [Case("batch_hard", 4096, 2048), Case("ranking", 8192, 256, 4, 0.01)]


def memory_cases() -> list[Case]:
    return [Case(kernel, 32768, 256, 4, 0.01 if kernel == "ranking" else None) for kernel in KERNELS]


def grid(
    kernels: Sequence[str], rows: Sequence[int], columns: Sequence[int], images: Sequence[int], dtype: str
) -> list[Case]:
    """Every combination; the ranking loss at every share of violators."""
    return [
        Case(kernel, n, d, k, share, dtype=dtype)
        for kernel, n, d, k in itertools.product(kernels, rows, columns, images)
        for share in (VIOLATORS if kernel == "ranking" else (None,))
    ]


def cpu_promises(records: Sequence[Record]) -> list[Promise]:
    """The promises without a GPU: forward and backward, beside peers measured in the same rounds."""

    def time(kernel: str, rows: int, columns: int, provider: str) -> float | None:
        for r in records:
            if (r.kernel, r.N, r.D, r.provider, r.mode, r.metric) == (
                kernel, rows, columns, provider, "both", "time",
            ):  # fmt: skip
                return r.y50
        return None

    def faster(kernel: str, rows: int, columns: int, peer: str, bar: float) -> Promise:
        ours, theirs = time(kernel, rows, columns, "maskreid auto"), time(kernel, rows, columns, peer)
        ratio = theirs / ours if ours and theirs else None
        return Promise(f"{kernel} N = {rows}, D = {columns}: times faster than {peer}", ratio, bar, True)

    promises = [
        faster("batch_hard", 4096, 2048, "eager", 2.0),
        faster("batch_hard", 4096, 2048, "metric-learning", 3.0),
        faster("ranking", 8192, 256, "eager", 2.0),
    ]
    promises += [faster(c.kernel, c.rows, c.columns, "eager", 1 / 1.1) for c in small_cases()]
    for case in memory_cases():
        peak = next(
            (
                r.y50
                for r in records
                if (r.kernel, r.N, r.metric, r.provider)
                == (case.kernel, case.rows, "memory", "maskreid auto")
            ),
            None,
        )
        text = f"{case.kernel} N = {case.rows}, D = {case.columns}: MiB beyond rows and gradient"
        promises.append(Promise(text, peak, 256e6 / 2**20, False))
    return promises
