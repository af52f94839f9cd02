"""`launch/train.py` whose ranks seem to be on different machines. Run as a program, by every rank."""

import os

from maskreid_dist.cli.app import train_main
from maskreid_dist.training import meeting

if __name__ == "__main__":
    meeting.network_here = lambda: f"boot/{os.environ['RANK']}"  # type: ignore[attr-defined]
    train_main()
