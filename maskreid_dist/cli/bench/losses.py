"""`maskreid bench loss` and `exactness`: what maskreid_kernels.bench prints."""

import typer

from maskreid_dist.cli.failures import one_line_errors


@one_line_errors
def bench_loss(context: typer.Context) -> None:
    """Time, peak memory and gradient error of the losses, beside eager, lean and library forms of them."""
    _of_the_kernels("loss", context)


@one_line_errors
def bench_exactness(context: typer.Context) -> None:
    """Gradients and logged values of every loss over gloo ranks, against one process on the whole batch."""
    _of_the_kernels("exactness", context)


def _of_the_kernels(command: str, context: typer.Context) -> None:
    from maskreid_kernels.bench.command_line import main

    raise typer.Exit(main([command, *context.args], program="maskreid bench"))
