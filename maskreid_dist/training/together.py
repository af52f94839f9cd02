"""Work that is no training, shared by the ranks of a launch: they meet, work, and leave with one status."""

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from maskreid_dist import exit_status
from maskreid_dist.config import EngineConfig
from maskreid_dist.data.batches import end_workers
from maskreid_dist.evaluation.ranks import Ranks
from maskreid_dist.training.environment import Place, tell_libraries
from maskreid_dist.training.facts import Fact, agree_on_facts
from maskreid_dist.training.interfaces import check_interfaces
from maskreid_dist.training.launcher_watch import LauncherWatch
from maskreid_dist.training.leaving import leave_together, meet, part, watch_over
from maskreid_dist.training.meeting import Meeting
from maskreid_dist.training.preparing import check_gpus
from maskreid_dist.training.world import choose_device, take_threads


def work_together(place: Place, work: Callable[[Ranks], None]) -> int:
    """Do `work` as one rank of a launch of several; returns the exit status (maskreid_dist.exit_status), the
    same on all. All ranks call it.

    Whatever ends it on any rank is printed, once a machine. Rank 0 may take as long as it likes for what it
    does alone at the end: the others wait while it lives.
    """
    LauncherWatch(place.rank, what="its work is done").start()
    tell_libraries(place)
    meeting = meet(place, EngineConfig().collective_timeout_s)
    if meeting is None:
        return exit_status.START_AGAIN
    try:
        meeting.join()
        watch_over(meeting)
        work(_start(meeting))
        meeting.wait_for_all()
    except Exception as error:  # one that this rank alone may meet, too: the others are told
        return leave_together(meeting, error)
    finally:
        end_workers()
    part(meeting)
    return exit_status.DONE


def _start(meeting: Meeting) -> Ranks:
    """A process group on the host: nothing but embeddings and counts travels. All ranks take part."""
    place = meeting.place
    device = choose_device(place)
    check_gpus(meeting, device)
    check_interfaces(meeting)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        take_threads(meeting)
    timeout = timedelta(seconds=meeting.timeout_s)
    store = meeting.store_of_group()
    dist.init_process_group("gloo", store=store, rank=place.rank, world_size=place.size, timeout=timeout)
    return Ranks(
        place.rank,
        place.size,
        device=device,
        group=dist.group.WORLD,
        wait=meeting.wait_for_all,
        from_first=partial(_from_first, meeting),
        agree=lambda facts: agree_on_facts(meeting, {name: Fact(*fact) for name, fact in facts.items()}),
        count=_Counts(meeting).total,
    )


def _from_first(meeting: Meeting, value: Any) -> Any:
    meeting.wait_for_all()  # rank 0 may have had long work before
    return meeting.from_first(value)


class _Counts:
    """How much all ranks have done of a work, by its name."""

    def __init__(self, meeting: Meeting) -> None:
        self._meeting = meeting
        self._told: dict[str, int] = {}

    def total(self, work: str, done: int) -> int:
        """Also raises PeersLost where another rank is leaving."""
        self._meeting.look()
        self._meeting.pulse.doing = f"{work}, {done} done"
        more = done - self._told.get(work, 0)
        self._told[work] = done
        return int(self._meeting.store.add(f"done/{work}", more))
