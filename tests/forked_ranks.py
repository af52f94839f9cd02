"""Launches of the program `maskreid` over ranks that are forked from one process: what they need is imported
once. `Launcher` in a test; run as a program, it reads launches and prints how their ranks ended."""

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partialmethod
from pathlib import Path
from typing import Any

import numpy as np

from nodes import GUARD_S, PYTHONPATH, ROOT

BATCH_ROWS = 4


@dataclass(frozen=True)
class Launch:
    """`arguments` of every rank, its number in the place of {rank}. kill: rank and number of the piece of a
    gallery before which it is killed. keep: a folder for what each rank's ranking gave, RANK.npz."""

    ranks: int
    arguments: Sequence[str]
    kill: tuple[int, int] | None = None
    keep: str | None = None


@dataclass(frozen=True)
class Left:
    """How the ranks of a launch ended (below 0: by that signal), and what they said together."""

    statuses: list[int]
    output: str

    @property
    def errors(self) -> list[str]:
        start = "maskreid: error: "
        return [line.removeprefix(start) for line in self.output.splitlines() if line.startswith(start)]


class Launcher:
    """The process that the ranks are forked from, while the block lasts. folder: for what they say."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._number = folder, 0

    def __enter__(self) -> "Launcher":
        environment = {**os.environ, "PYTHONPATH": PYTHONPATH, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            cwd=ROOT,
            env=environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        return self

    def __exit__(self, *problem: object) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()

    def run(self, *launches: Launch) -> list[Left]:
        """One after the other."""
        return [self._run(launch) for launch in launches]

    def _run(self, launch: Launch) -> Left:
        assert self._process.stdin and self._process.stdout
        self._number += 1
        log = self.folder / f"{self._number}.log"
        print(json.dumps([asdict(launch), str(log)]), file=self._process.stdin, flush=True)
        assert select.select([self._process.stdout], [], [], GUARD_S)[0], log.read_text()
        statuses = json.loads(self._process.stdout.readline())
        return Left(statuses, log.read_text())


def launch(one: Launch, log: Path) -> list[int]:
    """As launchers do: when a rank has failed, the others are ended."""
    from maskreid_dist.training.environment import free_port

    port = str(free_port())
    ranks = {_forked(one, rank, port, log): rank for rank in range(one.ranks)}
    statuses = [0] * one.ranks
    while ranks:
        process, status = os.wait()
        statuses[ranks.pop(process)] = os.waitstatus_to_exitcode(status)
        if os.WIFSIGNALED(status):
            for other in ranks:
                os.kill(other, signal.SIGKILL)
    return statuses


def _forked(one: Launch, rank: int, port: str, log: Path) -> int:
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(one.ranks)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        status = _program(one, rank)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _program(one: Launch, rank: int) -> int:
    from maskreid_dist.cli.app import app
    from maskreid_dist.evaluation import evaluate, ranks
    from maskreid_dist.gallery import enrol, pieces

    pieces.VISIBLE_S = 0.1  # a folder that is another one stays so
    init = partialmethod(ranks.Ranks.__init__, batch_rows=BATCH_ROWS)
    ranks.Ranks.__init__ = init  # type: ignore[assignment, method-assign]
    if one.kill and one.kill[0] == rank:
        enrol.write_piece = _killed_before(enrol.write_piece, one.kill[1])  # type: ignore[attr-defined]
    if one.keep:
        evaluate.rank_shares = _kept(evaluate.rank_shares, Path(one.keep) / f"{rank}.npz")
    try:
        app([argument.replace("{rank}", str(rank)) for argument in one.arguments])
    except SystemExit as error:
        return int(error.code or 0)
    return 0


def _killed_before(write: Callable[..., None], number: int) -> Callable[..., None]:
    calls = iter(range(1, number + 1))

    def written(*arguments: Any) -> None:
        if next(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        write(*arguments)

    return written


def _kept(rank_shares: Callable[..., Any], path: Path) -> Callable[..., Any]:
    def kept(*arguments: Any) -> Any:
        ranked = rank_shares(*arguments)
        ap, cmc = ranked.result.average_precision, ranked.result.cmc
        np.savez(path, query=ranked.query, gallery=ranked.gallery, ap=ap, cmc=cmc)
        return ranked

    return kept


if __name__ == "__main__":
    import maskreid_dist.cli.app
    import maskreid_dist.evaluation.evaluate
    import maskreid_dist.gallery.enrol
    import maskreid_dist.training.together  # noqa: F401 (before the ranks are forked)

    for line in sys.stdin:
        asked, log = json.loads(line)
        print(json.dumps(launch(Launch(**asked), Path(log))), flush=True)
