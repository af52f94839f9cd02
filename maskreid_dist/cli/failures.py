"""How every command ends on bad input: one line on standard error, exit status 2."""

import functools
import io
import logging
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import typer

from maskreid_dist.errors import UserError
from maskreid_dist.exit_status import NEVER_AGAIN
from maskreid_dist.terminal import Printable, say
from maskreid_dist.training.environment import is_first_process
from maskreid_shards import ShardError
from maskreid_shards.shown import in_a_line

P = ParamSpec("P")
R = TypeVar("R")


def one_line_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Turn the user's errors into one line on standard error and exit status 2.

    Of a training's ranks, what is raised here is wrong with the launcher's variables: one of them prints.
    """

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        escape_what_cannot_be_printed()
        try:
            return command(*args, **kwargs)
        except (UserError, ShardError) as error:
            if is_first_process():
                say(f"maskreid: error: {in_a_line(str(error))}", file=sys.stderr, flush=True)
            raise typer.Exit(NEVER_AGAIN) from None
        except OSError as error:
            if error.filename is None:  # not about a file: a defect, with its traceback
                raise
            line = in_a_line(f"{error.filename}: {error.strerror}")
            say(f"maskreid: error: {line}", file=sys.stderr, flush=True)
            raise typer.Exit(NEVER_AGAIN) from None

    return wrapped


def escape_what_cannot_be_printed() -> None:
    """A file's name need not be text (bytes of another encoding), nor fit the terminal: print such letters as
    escapes, instead of ending a finished command with a UnicodeEncodeError."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if logging.lastResort:
        logging.lastResort.setFormatter(Printable())
