"""`launch/train.py` that waits after its third step, once that is written down. Run as a program, by every
rank.

It says HELD and goes on when a byte comes through the FIFO `release` beside its run directories. LEAVE_S in
its environment: in place of the launcher watch's.
"""

import os
from collections.abc import Mapping

from maskreid_dist.cli.app import train_main
from maskreid_dist.training import launcher_watch
from maskreid_dist.training.run_log import RunLog

STEP = 3
HELD = f"held after step {STEP}"

write = RunLog.write


def held(log: RunLog, step: int, scalars: Mapping[str, float]) -> None:
    write(log, step, scalars)
    if step == STEP:
        print(HELD, flush=True)
        with (log.path.parent.parent / "release").open("rb") as release:
            release.read(1)


if __name__ == "__main__":
    RunLog.write = held  # type: ignore[method-assign, assignment]
    launcher_watch.LEAVE_S = float(os.environ.get("LEAVE_S", launcher_watch.LEAVE_S))
    train_main()
