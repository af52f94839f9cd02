"""Every command of the program `maskreid` with its arguments and options, as the code declares them."""

import argparse
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, NoReturn, Union, get_args, get_origin
from unittest.mock import patch

import typer
from typer.models import ArgumentInfo, OptionInfo, ParameterInfo

from maskreid_dist.cli.app import app
from maskreid_kernels.bench import command_line


@dataclass(frozen=True)
class Parameter:
    """flags: none for an argument. shown_default: "" where there is none to show."""

    name: str
    flags: tuple[str, ...]
    help: str
    takes_value: bool = True
    choices: tuple[str, ...] = ()
    repeatable: bool = False
    required: bool = False
    shown_default: str = ""


@dataclass(frozen=True)
class Command:
    """words: what is typed, such as ("convert", "folder")."""

    words: tuple[str, ...]
    about: str
    parameters: tuple[Parameter, ...]

    @property
    def arguments(self) -> list[Parameter]:
        return [one for one in self.parameters if not one.flags]

    @property
    def options(self) -> list[Parameter]:
        return [one for one in self.parameters if one.flags]

    def problem(self, words: list[str]) -> str | None:
        """What is wrong with these words, by the options' names and choices and the arguments' number."""
        known = {flag: option for option in self.options for flag in option.flags}
        given, rest, all_plain = 0, list(words), False
        while rest:
            word = rest.pop(0)
            if word == "--":
                all_plain = True
            elif all_plain or not word.startswith("--"):
                given += 1
            else:
                flag, equals, value = word.partition("=")
                if flag not in known:
                    return f"no option {flag}"
                if known[flag].takes_value and not equals:
                    value = rest.pop(0) if rest else ""
                if (choices := known[flag].choices) and value not in choices:
                    return f"{flag} {value}: one of {', '.join(choices)}"
        least = sum(one.required for one in self.arguments)
        most = 10**6 if any(one.repeatable for one in self.arguments) else len(self.arguments)
        return None if least <= given <= most else f"{given} arguments, not {least} to {most}"


def commands() -> Iterator[Command]:
    """In the order of `maskreid --help`."""
    yield from _of(app, ())


def groups_of_commands() -> dict[str, str]:
    """Words with several commands behind them, and what they are about."""
    found = {}
    for group in app.registered_groups:
        assert group.typer_instance and isinstance(group.name, str)
        found[group.name] = str(group.typer_instance.info.help)
    return found


def _of(group: typer.Typer, words: tuple[str, ...]) -> Iterator[Command]:
    for info in group.registered_commands:
        assert info.callback
        name = info.name or info.callback.__name__.replace("_", "-")
        about = info.help or inspect.getdoc(info.callback) or ""
        yield Command((*words, name), about, tuple(_parameters(info.callback, name)))
    for inner in group.registered_groups:
        assert inner.typer_instance and isinstance(inner.name, str)
        yield from _of(inner.typer_instance, (*words, inner.name))


def _parameters(callback: Callable[..., Any], name: str) -> Iterator[Parameter]:
    for one in inspect.signature(callback, eval_str=True).parameters.values():
        hint, info = one.annotation, None
        if hint is typer.Context:  # hands all on to a command of the losses
            yield from _of_the_kernels(name)
            continue
        if get_origin(hint) is Annotated:
            hint, *more = get_args(hint)
            info = next((m for m in more if isinstance(m, ParameterInfo)), None)
        if isinstance(info, OptionInfo) and info.hidden:
            continue
        yield _parameter(one, hint, info)


def _parameter(one: inspect.Parameter, hint: Any, info: ParameterInfo | None) -> Parameter:
    hint = _without_none(hint)
    repeatable = get_origin(hint) is list
    inner = get_args(hint)[0] if repeatable else hint
    choices = tuple(map(str, get_args(inner))) if get_origin(inner) is Literal else ()
    required = one.default is inspect.Parameter.empty
    about = (info.help if info else "") or ""
    if isinstance(info, ArgumentInfo):
        name = info.metavar or one.name.upper()
        return Parameter(name, (), about, choices=choices, repeatable=repeatable, required=required)
    words = [info.default, *(info.param_decls or ())] if info else []  # typer sorts these out when it runs
    declared = tuple(word for word in words if isinstance(word, str) and word.startswith("--"))
    plain = f"--{one.name.replace('_', '-')}"
    flags = declared or ((plain, plain.replace("--", "--no-", 1)) if inner is bool else (plain,))
    name = (info.metavar if info else None) or ("" if inner is bool else VALUES.get(inner, "TEXT"))
    shown = _shown_default(one.default, info, required)
    return Parameter(name, flags, about, inner is not bool, choices, repeatable, required, shown)


class _Parser(Exception):
    """Carries one out of a program that would use it."""


def _of_the_kernels(name: str) -> Iterator[Parameter]:
    """The options of `python -m maskreid_kernels.bench NAME`."""

    def stop(parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        raise _Parser(parser)

    with patch.object(command_line.OneLineParser, "parse_args", stop):
        try:
            command_line.main([name])
        except _Parser as found:
            actions = found.args[0]._actions
    for one in actions:
        if one.dest == "help":
            continue
        default = "" if one.default in (None, False) or one.nargs == 0 else str(one.default)
        choices = tuple(map(str, one.choices or ()))
        value = one.metavar or VALUES.get(one.type, "N" if one.type else "TEXT")
        repeatable = isinstance(one, argparse._AppendAction)
        flags, about = tuple(one.option_strings), one.help or ""
        yield Parameter(value, flags, about, one.nargs != 0, choices, repeatable, one.required, default)


VALUES: Mapping[Any, str] = {int: "N", float: "X", Path: "PATH"}


def _without_none(hint: Any) -> Any:
    if get_origin(hint) in (Union, UnionType):
        return next(part for part in get_args(hint) if part is not type(None))
    return hint


def _shown_default(default: Any, info: ParameterInfo | None, required: bool) -> str:
    if required or default is None or default is False or (info and info.show_default is False):
        return ""
    if info and isinstance(info.show_default, str):
        return info.show_default
    return str(default)
