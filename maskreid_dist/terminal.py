"""What the program prints: text from outside (paths, names, answers of servers) is shown, never obeyed.

Everything is printed by `say` or a `Terminal`; a test holds that.
"""

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.text import Text

from maskreid_shards.shown import printable


def say(*values: object, end: str = "\n", file: TextIO | None = None, flush: bool = False) -> None:
    """`print`, with control characters as escapes."""
    print(*(printable(str(value)) for value in values), end=end, file=file, flush=flush)


def say_json(figures: object) -> None:
    """What `--json` prints: one line of JSON, for programs. A number that is none becomes null."""
    say(json.dumps(_plain(figures), allow_nan=False))


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


class Terminal(Console):
    """rich's console for text that means what it says: no markup, no emoji codes, no control characters.
    quiet: prints nothing."""

    def __init__(self, *, stderr: bool = False, quiet: bool = False) -> None:
        super().__init__(stderr=stderr, quiet=quiet, markup=False, emoji=False)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)


class Printable(logging.Formatter):
    """Of log lines."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))
