"""What the program prints: text from outside (paths, names, answers of servers) is shown, never obeyed.

Everything is printed by `say` or a `Terminal`; a test holds that.
"""

import logging
from typing import Any, TextIO

from rich.console import Console
from rich.text import Text

from maskreid_shards.shown import printable


def say(*values: object, end: str = "\n", file: TextIO | None = None, flush: bool = False) -> None:
    """`print`, with control characters as escapes."""
    print(*(printable(str(value)) for value in values), end=end, file=file, flush=flush)


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
