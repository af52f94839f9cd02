"""The commands of `python -m maskreid_kernels.bench`, which `maskreid bench` calls too.

A command is a module with `main(arguments, program) -> exit status`. It is imported when it is called,
because some choose between the compiler and Triton's interpreter before Triton is imported.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import NoReturn

from .figures import BenchError

COMMANDS = {
    "loss": ("loss", "time, memory and gradient error of the losses, beside their peers"),
    "exactness": ("exactness", "gradients over gloo ranks, against one process on the whole batch"),
    "ahead-of-time": ("ahead_of_time", "every Triton program compiled without a GPU; predicted times"),
    "gpu": ("gpu.program", "tests and figures on a machine with a GPU, within a budget of seconds"),
}


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong with the options in one line, and ends with status 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def main(arguments: Sequence[str], program: str = "python -m maskreid_kernels.bench") -> int:
    """Run one command and return its exit status: 0, 1 where a promise is missed, 2 for input that cannot be
    used."""
    name, *rest = arguments or ("--help",)
    if name in ("-h", "--help"):
        print(f"usage: {program} COMMAND ...\n")
        print("\n".join(f"  {command:14} {what}" for command, (_, what) in COMMANDS.items()))
        return 0
    if name not in COMMANDS:
        print(f"{program}: error: {name}: use one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    module = importlib.import_module(f".{COMMANDS[name][0]}", __package__)
    try:
        status: int = module.main(rest, f"{program} {name}")
    except BenchError as error:
        print(f"{program} {name}: error: {error}", file=sys.stderr)
        return 2
    return status
