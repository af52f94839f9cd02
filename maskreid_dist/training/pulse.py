"""A thread of each rank that tells the others what it is doing, and ends it when it is stuck while they
leave.

A beat is a text in the store; no collective, nothing on the GPU. A process that is stopped or gone beats no
more; one whose main thread hangs goes on beating.
"""

import faulthandler
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

# torch's stubs hide what it exports.
from torch.distributed import DistError, Store  # type: ignore[attr-defined]

from maskreid_dist.terminal import say

BEAT_S = 2.0
DEAD_S = 60.0  # without a beat, for those who wait before there is a process group
STUCK_S = 5.0  # for a rank's main thread to notice that others leave
BEATS = "beats"


@dataclass
class Pulse:
    """What this rank is doing; `start` tells the others, until `stop`."""

    rank: int
    doing: str = "starting"
    leaves: bool = False  # the main thread has noticed
    patience_s: float = STUCK_S  # for it to notice that the store has gone
    _ended: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self, store: Store, others_leave: Callable[[], bool], leave: Callable[[str], None]) -> None:
        """store: a connection for this thread alone. leave: ends the process; gets what the rank was
        doing."""
        self._thread = threading.Thread(
            target=self._beat, args=(store, others_leave, leave), name="maskreid pulse", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        if self._thread and self._thread is not threading.current_thread():
            self._thread.join()

    def _beat(self, store: Store, others_leave: Callable[[], bool], leave: Callable[[str], None]) -> None:
        count = 0
        noticed: float | None = None
        while True:
            patience_s = STUCK_S
            try:
                count += 1
                store.set(f"{BEATS}/{self.rank}", json.dumps([count, self.doing]))
                leaving = others_leave()
            except DistError:  # the store went, with rank 0 or with torchrun's agent
                leaving, patience_s = True, self.patience_s
            if leaving and not self.leaves:
                noticed = noticed or time.monotonic()
                if time.monotonic() - noticed > patience_s:
                    leave(self.doing)
                    return
            if self._ended.wait(BEAT_S / 2 if leaving else BEAT_S):
                return


class Listener:
    """The beats of other ranks, as this one hears them while it waits for them."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.heard: dict[int, tuple[int, str, float]] = {}  # count, doing, when it was new here

    def quiet_s(self, rank: int) -> float:
        """Seconds without a new beat of a rank, since it was first asked for; all ranks begin with beat 0."""
        count, doing = 0, "starting"
        if self.store.check([f"{BEATS}/{rank}"]):
            count, doing = json.loads(self.store.get(f"{BEATS}/{rank}"))
        now = time.monotonic()
        if rank not in self.heard or self.heard[rank][0] != count:
            self.heard[rank] = (count, doing, now)
        return now - self.heard[rank][2]

    def has_heard(self, rank: int) -> bool:
        """Whether a rank has had a beat at all."""
        return self.heard.get(rank, (0,))[0] > 0

    def doing(self, rank: int) -> str:
        return self.heard[rank][1]


def print_stacks(title: str) -> None:
    """The stacks of all threads to standard error, in one piece: other ranks write there too."""
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        text = file.read()
    say(f"{title}\n{text}", end="", file=sys.stderr, flush=True)


def end_process(status: int) -> None:
    """Leave from another thread than the main one, which is stuck."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
