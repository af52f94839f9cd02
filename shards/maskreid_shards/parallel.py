"""Shards written by several processes, which end with the one that started them, however that ends."""

import contextlib
import fcntl
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from ctypes import c_bool, c_int64
from functools import partial
from pathlib import Path
from typing import Any

from .bad_inputs import CAP, BadInput, BadInputs
from .errors import ShardError
from .resume import ShardTask
from .writing import WrittenShard

POLL_S = 0.1
# Set in each worker process: samples written by all of them, and whether to stop.
_done: Any = None
_stop: Any = None


class _Stopped(Exception):
    """The conversion was interrupted or has failed elsewhere."""


def write_shards(
    tasks: Sequence[ShardTask], workers: int, tick: Callable[[int], None], lock_folder: Path
) -> list[WrittenShard]:
    """Run the tasks, in order of the list or `workers` at a time; the results stand in the list's order.

    `tick` gets the number of samples written since its last call. Bad inputs are collected over the shards,
    up to CAP, and raised together; of other failures the first in order is raised. Workers hold a shared lock
    on `lock_folder`, so that who takes an exclusive one knows that none is left (see `await_workers`).
    """
    workers = min(workers, len(tasks))
    if workers <= 1:
        return _gathered(partial(task.run, lambda: tick(1)) for task in tasks)
    # Not fork: the caller may have threads (a progress bar), and locks taken by them.
    context = multiprocessing.get_context("spawn")
    done: Any = context.Value(c_int64)
    stop: Any = context.Value(c_bool, lock=False)  # typeshed says c_bool, the value is a bool
    setup = (str(lock_folder), done, stop)
    with ProcessPoolExecutor(workers, context, _start_worker, setup) as pool:
        try:
            with _interrupts_held():
                futures = [pool.submit(_run, task) for task in tasks]
            return _gathered(_awaited(futures, done, tick))
        except BrokenProcessPool:
            raise ShardError("a worker process was killed (memory?); try fewer --workers") from None
        finally:
            stop.value = True
            pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Ctrl-C waits until the block ends. Processes that start in it never see one: the parent decides for
    them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _gathered(results: Iterable[Callable[[], WrittenShard]]) -> list[WrittenShard]:
    """All results, in order. Raises BadInputs: those of all, the first CAP of them."""
    written: list[WrittenShard] = []
    bad: list[BadInput] = []
    for result in results:
        try:
            written.append(result())
        except BadInputs as error:
            bad += error.found
            if len(bad) >= CAP:
                break
    if bad:
        raise BadInputs(bad[:CAP])
    return written


def _awaited(
    futures: list["Future[WrittenShard]"], done: Any, tick: Callable[[int], None]
) -> Iterator[Callable[[], WrittenShard]]:
    reported = 0
    for future in futures:
        while not wait([future], timeout=POLL_S).done:
            reported = _report(done.value, reported, tick)
        yield future.result
        reported = _report(done.value, reported, tick)


def _report(done: int, reported: int, tick: Callable[[int], None]) -> int:
    if done > reported:
        tick(done - reported)
    return done


def await_workers(lock_folder: Path) -> None:
    """Wait for the workers of a killed conversion to end: they notice within moments."""
    handle = os.open(lock_folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
    finally:
        os.close(handle)


def _start_worker(lock_folder: str, done: Any, stop: Any) -> None:
    global _done, _stop
    _done, _stop = done, stop
    fcntl.flock(os.open(lock_folder, os.O_RDONLY), fcntl.LOCK_SH)  # until the process ends
    parent = multiprocessing.parent_process()
    if parent is None or not parent.is_alive():
        os._exit(1)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: Any) -> None:
    """A killed parent cannot stop its workers, and they must not write into the next conversion."""
    parent.join()
    os._exit(1)


def _run(task: ShardTask) -> WrittenShard:
    return task.run(_tick)


def _tick() -> None:
    if _stop.value:
        raise _Stopped
    with _done.get_lock():
        _done.value += 1
