"""The bar of long work: on standard error, and nothing where that is no terminal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from maskreid_dist.terminal import Terminal


def make_bar(what: str, console: Console, *more: ProgressColumn, transient: bool = False) -> Progress:
    """ "WHAT", a bar, how many are done of how many, the time that remains, and more; not started.

    transient: gone when it ends.
    """
    columns = (
        TextColumn(what, markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        *more,
    )
    off = console.quiet or not console.is_terminal
    return Progress(*columns, console=console, transient=transient, disable=off, refresh_per_second=2)


@contextmanager
def progress_bar(what: str, console: Console | None = None) -> Iterator[Callable[[int, int | None], None]]:
    """Show a bar; the function it gives takes how many are done, and of how many."""
    with make_bar(what, console or Terminal(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)

        def show(done: int, total: int | None) -> None:
            bar.update(task, completed=done, total=total)

        yield show
