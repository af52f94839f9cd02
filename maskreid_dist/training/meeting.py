"""Where the ranks meet: short texts through a key-value store, before there is a process group and after one
failed.

Rank 0's process holds the store (torchrun's agent, under torchrun). A rank that does not come is known by
name here; a collective only says that it has waited. For rare things: an exchange costs rank 0 a message a
rank.
"""

import errno
import json
import math
import os
import queue
import socket
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, field
from datetime import timedelta
from typing import TypeVar

# torch's stubs hide what it exports.
from torch.distributed import DistError, HashStore, PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from maskreid_dist.errors import UserError
from maskreid_dist.training.environment import Place
from maskreid_dist.training.listening import store_socket
from maskreid_dist.training.machine import network_here, processors_here
from maskreid_dist.training.pulse import DEAD_S, Listener, Pulse

T = TypeVar("T")
POLL_S = 0.05
LONGEST_PAUSE_S = 0.2  # between two questions of a rank that waits
LAST_WORDS = "last_words"  # of a rank that leaves
LEAVING = "leaving"  # how many do
MAX_HOSTS = 4  # named in a line


class PeersLost(RuntimeError):
    """Others have left, or, `waited`, have not come in time; the message says who did not come."""

    def __init__(self, message: str, waited: bool = False) -> None:
        super().__init__(message)
        self.waited = waited


@dataclass(frozen=True)
class Member:
    """A rank as the others know it."""

    host: str
    local_rank: int
    processors: int = 1  # those it may run on, as a mask
    network: str = ""  # machine.network_here

    @classmethod
    def here(cls, place: Place) -> "Member":
        return cls(socket.gethostname(), place.local_rank, processors_here(), network_here())

    @property
    def machine(self) -> str:
        """The same for containers of one machine, whatever their host names."""
        return self.network.partition("/")[0] or self.host


@dataclass
class Meeting:
    """This rank among all. Every method but `who` and `look` is for all ranks: each must call it, in the same
    order."""

    place: Place
    store: Store
    timeout_s: float
    members: list[Member] = field(default_factory=list)
    rounds: int = 0
    pulse: Pulse = field(init=False)

    def __post_init__(self) -> None:
        self.pulse = Pulse(self.place.rank)

    @property
    def is_first(self) -> bool:
        return self.place.is_first

    def join(self, own: Member | None = None) -> None:
        """Meet all ranks of the launch: the first thing that they do. own: `Member.here` unless given.

        Raises PeersLost: a rank does not come. UserError, on every rank: the launchers tell different world
        sizes.
        """
        told = self.gather((astuple(own or Member.here(self.place)), self.place.size))
        self.members = [Member(*member) for member, _ in told]
        sizes = {size for _, size in told} | {self.place.size}
        if len(sizes) > 1:
            raise UserError(
                "the launchers tell different numbers of ranks (WORLD_SIZE): "
                f"{', '.join(map(str, sorted(sizes)))}; start all with the same hosts and ranks per host"
            )

    def beside(self) -> list[Member]:
        """The ranks of this rank's machine, itself among them."""
        machine = self.members[self.place.rank].machine
        return [member for member in self.members if member.machine == machine]

    def store_of_group(self) -> Store:
        """The same store under names of its own, for torch's process group."""
        return PrefixStore("torch", self.store)

    def gather(self, value: T) -> list[T]:
        """Every rank's value, which JSON can hold, on every rank.

        Raises PeersLost: another rank is leaving, or one has not come within `timeout_s`.
        """
        return self._gather(value, self.timeout_s)

    def wait_for_all(self) -> None:
        """Wait until all ranks have come here, for as long as they live.

        Raises PeersLost: another rank is leaving, or has had no pulse for DEAD_S.
        """
        self._gather(None, math.inf)

    def look(self) -> None:
        """Raise PeersLost if another rank is leaving. For this rank alone."""
        if self.store.check([LEAVING]):
            raise PeersLost("another rank is leaving")

    def _gather(self, value: T, timeout_s: float) -> list[T]:
        self.rounds += 1
        key = f"round_{self.rounds}"
        self.store.set(f"{key}/{self.place.rank}", json.dumps(value))
        if self.is_first:
            texts = self._wait([f"{key}/{rank}" for rank in range(self.place.size)], timeout_s)
            self.store.set(key, f"[{','.join(texts)}]")
        # Rank 0 says who is missing: the others give it the time.
        (text,) = self._wait([key], timeout_s + 5)
        values: list[T] = json.loads(text)
        return values

    def from_first(self, value: T) -> T:
        """Rank 0's value, which JSON can hold, on every rank."""
        self.rounds += 1
        key = f"round_{self.rounds}"
        if self.is_first:
            self.store.set(key, json.dumps(value))
        first: T = json.loads(self._wait([key], self.timeout_s)[0])
        return first

    def refuse(self, problem: str | None) -> None:
        """Raise UserError on every rank if any rank has a problem: a line for each, with its ranks and
        hosts."""
        lines = self.lines(self.gather(problem))
        if lines:
            raise UserError("\n".join(lines))

    def lines(self, problems: Sequence[str | None]) -> list[str]:
        """Each distinct problem once, with who has it, unless all have. `problems`: one a rank."""
        if len(set(problems)) == 1:
            return [problems[0]] if problems[0] else []
        ranks: dict[str, list[int]] = {}
        for rank, problem in enumerate(problems):
            if problem:
                ranks.setdefault(problem, []).append(rank)
        return [f"{self.who(owners)}: {problem}" for problem, owners in ranks.items()]

    def who(self, ranks: Iterable[int]) -> str:
        """ "rank 3 on node1", "ranks 0-7, 12 on node0, node1"."""
        chosen = sorted(ranks)
        hosts = list(dict.fromkeys(self.members[rank].host for rank in chosen if rank < len(self.members)))
        more = f" and {len(hosts) - MAX_HOSTS} more" if len(hosts) > MAX_HOSTS else ""
        where = f" on {', '.join(hosts[:MAX_HOSTS])}{more}" if hosts else ""
        return f"rank{'s' if len(chosen) > 1 else ''} {spans(chosen)}{where}"

    def _wait(self, keys: Sequence[str], timeout_s: float) -> list[str]:
        """The texts of the keys, once all are there. Polls: a wait of the store's own would not see a rank
        leave."""
        start = time.monotonic()
        listener = Listener(self.store)
        missing = list(keys)
        pause_s = 0.001
        while True:
            leaving = self.store.check([LEAVING])  # before the keys: who leaves has set them first
            missing = [key for key in missing if not self.store.check([key])]
            if not missing:
                return [self.store.get(key).decode() for key in keys]
            if leaving:
                raise PeersLost("another rank is leaving")
            absent = [int(key.rpartition("/")[2]) for key in missing if "/" in key] or [0]
            if time.monotonic() - start > timeout_s:
                raise PeersLost(f"{self.who(absent)} did not come within {timeout_s:g} s", waited=True)
            if self.is_first or timeout_s == math.inf:
                dead = [
                    rank for rank in absent if listener.quiet_s(rank) > DEAD_S and listener.has_heard(rank)
                ]
                if dead:
                    raise PeersLost(f"{self.who(dead)} has not been heard of for {DEAD_S:g} s", waited=True)
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


def store_is_of_agent() -> bool:
    """Whether torchrun's agent holds the store, and not rank 0."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def open_store(place: Place, timeout_s: float) -> Store:
    """The launch's store at MASTER_ADDR:MASTER_PORT, that of rank 0 at no other address where `store_socket`
    can say so. Raises OSError with that as its file name."""
    of_agent = store_is_of_agent()
    if place.size == 1 and not of_agent:
        return PrefixStore("maskreid", HashStore())  # alone: nothing listens
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    is_master = place.is_first and not of_agent
    taken = OSError(
        errno.EADDRINUSE, "the port is taken; give the launcher another (--master_port)", f"{address}:{port}"
    )
    try:
        listening = store_socket(address, port) if is_master else None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise taken from None
        raise OSError(error.errno, error.strerror, f"{address}:{port}") from None
    done: queue.Queue[Store | DistError] = queue.Queue()

    def connect() -> None:
        try:
            store = TCPStore(
                address,
                port,
                place.size,
                is_master=is_master,
                timeout=timedelta(seconds=timeout_s),
                wait_for_workers=False,  # it would not say who is missing
                master_listen_fd=None if listening is None else listening.detach(),
            )
        except DistError as error:
            done.put(error)
        else:
            done.put(store)

    # In a thread: a listener that is no store would never answer, and torch would never ask again.
    threading.Thread(target=connect, name="maskreid store", daemon=True).start()
    try:
        store = done.get(timeout=timeout_s + 5)
    except queue.Empty:
        store = DistError("no answer")
    if isinstance(store, DistError) and "EADDRINUSE" in str(store):
        raise taken
    if isinstance(store, DistError):
        reason = (
            f"rank 0 does not answer there within {timeout_s:g} s; see its log, and MASTER_ADDR and "
            "MASTER_PORT"
        )
        raise OSError(errno.ETIMEDOUT, reason, f"{address}:{port}")
    # torchrun's agent keeps its store when it starts the ranks again.
    return PrefixStore(f"maskreid_{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)


def spans(numbers: Sequence[int]) -> str:
    """0, 1, 2, 5 as "0-2, 5"."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and spans[-1][1] == number - 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)
