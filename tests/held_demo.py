"""`maskreid demo ...` whose training is `held_training.py`. Run as a program."""

from pathlib import Path

from maskreid_dist.cli import launcher
from maskreid_dist.cli.app import main

if __name__ == "__main__":
    launcher.SCRIPT = Path(__file__).with_name("held_training.py")
    main()
