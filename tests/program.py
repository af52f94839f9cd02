"""The program `maskreid` in this process, for tests."""

from typer.testing import CliRunner

from maskreid_dist.cli.app import app


def run(*arguments: object) -> tuple[int, str]:
    """Exit status and output. What is no exit is a bug, and raised."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output
