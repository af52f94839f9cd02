"""A rank whose launcher has gone leaves: nobody reads what it says any more, and nobody would end it.

A launcher that is killed with -9 takes no rank with it, and `deepspeed` not even its own second process. So
each rank looks every second whether the processes between it and its outermost launcher are still each
other's parents. Linux's PR_SET_PDEATHSIG would do for the first of them alone, and for a launcher's thread
that ends.
"""

import os
import select
import socket
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

import psutil

from maskreid_dist import exit_status
from maskreid_dist.terminal import say
from maskreid_dist.training.pulse import end_process

POLL_S = 1.0
LEAVE_S = 25.0  # for the step and the save: 30 s after its launcher nothing trains
NOTICE_S = POLL_S + LEAVE_S

# Programs and modules that start ranks, or start what starts ranks.
LAUNCHERS = {"deepspeed", "torchrun", "maskreid", "srun", "mpirun", "mpiexec", "prterun", "orted", "prted"}
MODULES = ("deepspeed.launcher.", "torch.distributed.", "maskreid_dist")
# A session of sshd without a terminal is a command of another machine (pdsh); one with a terminal is a
# person, who may log out of a training that nohup keeps.
TITLES = ("slurmstepd", "hydra_pmi_proxy")
NO_TERMINAL = "@notty"
# What takes in the children of those that have gone.
ADOPTERS = {"systemd", "init", "tini", "docker-init", "dumb-init", "catatonit"}


@dataclass(frozen=True)
class Ancestor:
    """A process above a rank; `words`: its command line."""

    pid: int
    name: str
    words: tuple[str, ...]

    @property
    def launches(self) -> bool:
        """Whether this is a launcher, by the first words of its command: an interpreter, options, a
        program."""
        title = " ".join(self.words)
        if title.startswith(TITLES) or (title.startswith("sshd") and NO_TERMINAL in title):
            return True
        first = self.words[:5]
        modules = [word for before, word in zip(first, first[1:], strict=False) if before == "-m"]
        return any(PurePath(word).name in LAUNCHERS for word in first) or any(
            module.startswith(MODULES) for module in modules
        )

    @property
    def adopts(self) -> bool:
        return not self.launches and (self.pid == 1 or self.name in ADOPTERS)


def ancestors_of(pid: int) -> list[Ancestor]:
    """The processes above a process, its parent first; those that may not be looked at end the list."""
    found = []
    try:
        for process in psutil.Process(pid).parents():
            found.append(Ancestor(process.pid, process.name(), tuple(process.cmdline())))
    except psutil.Error:
        pass
    return found


def launched_by(ancestors: Sequence[Ancestor], environment: Mapping[str, str]) -> list[Ancestor]:
    """The ancestors up to the outermost launcher; none where a shell started this process.

    With a launcher's own variables the parent counts, whatever it is: other programs start ranks like
    `torchrun`.
    """
    last = max((number for number, ancestor in enumerate(ancestors) if ancestor.launches), default=-1)
    if _by_variables(environment):
        last = max(last, 0)
    return list(ancestors[: last + 1])


def orphaned(
    launchers: Sequence[Ancestor], ancestors: Sequence[Ancestor], environment: Mapping[str, str]
) -> bool:
    """Whether a launcher was gone already when this process looked for the first time."""
    if _by_variables(environment) and launchers and launchers[0].adopts:
        return True
    # The second process of `deepspeed` is always somebody's child.
    outermost = launchers[-1] if launchers else None
    above = ancestors[len(launchers) : len(launchers) + 1]
    return bool(outermost and "deepspeed.launcher.launch" in outermost.words and above and above[0].adopts)


def _by_variables(environment: Mapping[str, str]) -> bool:
    return "TORCHELASTIC_RUN_ID" in environment or "CROSS_RANK" in environment


class LauncherWatch:
    """Looks after the launchers of this process, in a thread: `start` it, and tell it `ask` once there is a
    training that can be asked to stop. Before that, and 25 s after it was asked, it ends the process.

    what: that the launcher has gone before, as a line says it.
    """

    def __init__(
        self, rank: int, environment: Mapping[str, str] = os.environ, what: str = "the training began"
    ) -> None:
        self.rank, self.what = rank, what
        self.ask: Callable[[], None] | None = None
        ancestors = ancestors_of(os.getpid())
        launchers = launched_by(ancestors, environment)
        self._chain = [os.getpid(), *(ancestor.pid for ancestor in launchers)]
        self._gone = orphaned(launchers, ancestors, environment)
        self._left = threading.Event()

    def start(self) -> None:
        if len(self._chain) > 1 or self._gone:
            threading.Thread(target=self._watch, name="maskreid launcher watch", daemon=True).start()

    def stop(self) -> None:
        """From here on this process may live as long as it likes."""
        self._left.set()

    def gone(self) -> bool:
        """Whether any of the launchers has ended."""
        return self._gone or any(
            parent_of(child) != parent for child, parent in zip(self._chain, self._chain[1:], strict=False)
        )

    def _watch(self) -> None:
        while not self.gone():
            if self._left.wait(POLL_S):
                return
        discard_lost_output()
        if self.ask is None:
            self._say(f"its launcher has gone, before {self.what}; it leaves")
            end_process(exit_status.START_AGAIN)
        else:
            self.ask()
            self._say("its launcher has gone: the step is finished and saved first")
        if not self._left.wait(LEAVE_S):
            discard_lost_output()
            self._say(f"its launcher has gone, and the step and its save take longer than {LEAVE_S:g} s")
            end_process(exit_status.START_AGAIN)

    def _say(self, text: str) -> None:
        try:
            say(f"maskreid: rank {self.rank} on {socket.gethostname()}: {text}", file=sys.stderr, flush=True)
        except OSError:  # nobody reads
            discard_lost_output()


def parent_of(pid: int) -> int | None:
    """The parent of a process, None where there is no such process. A parent that has ended is another one
    at once, also while it has not been waited for."""
    if pid == os.getpid():
        return os.getppid()
    try:
        return int(psutil.Process(pid).ppid())
    except psutil.Error:
        return None


def discard_lost_output() -> None:
    """Standard output and error that nobody can read any more (a closed terminal, a pipe without a reader) go
    nowhere from here on: a line that cannot be printed must not end a training that could still save."""
    for number in (1, 2):
        poll = select.poll()
        poll.register(number, select.POLLOUT)
        if any(event & (select.POLLERR | select.POLLHUP | select.POLLNVAL) for _, event in poll.poll(0)):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, number)
            os.close(nowhere)
