"""Programs forked from one process, which has imported what a training needs: a start takes no seconds of
processor time. `Programs` in a test; run as a program, it reads what to start and says how it ended.

For tests of what ranks do; those of launchers start real ones.
"""

import atexit
import json
import os
import runpy
import select
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from importlib import import_module
from pathlib import Path

BEFORE_THE_FORK = (
    "deepspeed",
    "torch.utils.tensorboard",
    "maskreid_dist.cli.app",
    "maskreid_dist.training.loop",
)


@dataclass(frozen=True)
class Program:
    """A Python file with its arguments. log: what it says goes there, both streams in their order."""

    script: str
    arguments: Sequence[str]
    environment: Mapping[str, str]
    log: str


class Programs:
    """The process that they are forked from. It ends with this one."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            env={**environment, "DS_ACCELERATOR": "cpu"},
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )

    def run(self, programs: Sequence[Program], guard_s: float) -> list[int]:
        """Start all, and wait until they have ended: their exit statuses, below 0 by that signal. The first
        to end wakes those that are stopped. What they have started ends with them."""
        process = self._process
        assert process.stdin and process.stdout
        print(json.dumps([asdict(program) for program in programs]), file=process.stdin, flush=True)
        started = json.loads(process.stdout.readline())
        in_time = bool(select.select([process.stdout], [], [], guard_s)[0])
        for group in started:
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
        statuses: list[int] = json.loads(process.stdout.readline())
        if not in_time:
            said = "\n".join(Path(program.log).read_text()[-4000:] for program in programs)
            raise AssertionError(f"not ended after {guard_s:g} s:\n{said}")
        return statuses

    def end(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()


@cache
def programs(environment: tuple[tuple[str, str], ...]) -> Programs:
    """One for all tests of this process. environment: what is read at the imports."""
    started = Programs(dict(environment))
    atexit.register(started.end)
    return started


def serve() -> Program | None:
    """In a program that was forked: what it is. None at the end of the input."""
    for line in sys.stdin:
        started = []
        for program in json.loads(line):
            process = os.fork()
            if not process:
                return Program(**program)
            started.append(process)
        print(json.dumps(started), flush=True)
        print(json.dumps(_ended(started)), flush=True)
    return None


def _ended(started: Sequence[int]) -> list[int]:
    statuses: dict[int, int] = {}
    while len(statuses) < len(started):
        process, status = os.wait()
        statuses[process] = os.waitstatus_to_exitcode(status)
        for other in started:
            if other not in statuses:
                with suppress(ProcessLookupError):
                    os.kill(other, signal.SIGCONT)
    return [statuses[process] for process in started]


def become(program: Program) -> None:
    """As if this process had been started with the program's command; it ends as such a one does."""
    os.setsid()
    log = os.open(program.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number, file in enumerate((os.open(os.devnull, os.O_RDONLY), log, log)):
        os.dup2(file, number)
    os.environ.clear()
    os.environ.update(program.environment)
    sys.argv = [program.script, *program.arguments]
    sys.path[0] = str(Path(program.script).parent)
    runpy.run_path(program.script, run_name="__main__")


if __name__ == "__main__":
    for module in BEFORE_THE_FORK:
        import_module(module)

    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    asked = serve()
    if asked:
        become(asked)
