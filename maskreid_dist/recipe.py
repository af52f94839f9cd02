"""Recipes: TOML files into the configuration, with `--set key=value` overrides and errors that name the
key."""

import difflib
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from maskreid_dist.config import Config
from maskreid_dist.errors import RecipeError
from maskreid_shards.opening import RECIPE_BYTES, read_text
from maskreid_shards.shown import in_a_line

RENAMED = {"engine.precision": "engine.autocast"}


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The validated configuration of a recipe.

    overrides: `section.key=value`, the value as TOML has it (a bare word that is no TOML value is a string).
    Raises RecipeError, one line that names the file and the key.
    """
    path = Path(path)
    tree = read_toml(path, "recipe", "launch/recipes/walkers_demo.toml")
    for override in overrides:
        apply_override(tree, override)
    return validate(tree, str(path))


def read_toml(path: Path, kind: str, example: str) -> dict[str, Any]:
    """What a TOML file holds. kind, example: what it should be, and one that is. Raises RecipeError, one line
    that names the file."""
    try:
        return tomllib.loads(read_text(path, RECIPE_BYTES))
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such {kind}; name a TOML file such as {example}") from None
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read as a {kind}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: cannot be read as a {kind}: {error}") from None
    except RecursionError:
        raise RecipeError(f"{path}: not valid TOML: nested too deeply") from None
    except ValueError as error:  # TOMLDecodeError, or a number of too many digits
        raise RecipeError(f"{path}: not valid TOML: {error}") from None


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Set one `section.key=value` in a parsed recipe."""
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"--set {override}: not of the form section.key=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):  # of TOML's, of a number of too many digits
        value = text
    *sections, leaf = key.strip().split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise RecipeError(f"--set {override}: {section} is a value, not a section")
    tree[leaf] = value


def validate(tree: dict[str, Any], where: str) -> Config:
    """Configuration of a parsed recipe; `where` is the file that an error names."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise RecipeError(f"{where}: {describe(error)}") from None


def describe(error: ValidationError, keys: Sequence[str] = ()) -> str:
    """The first problem of a validation in one line, and how many others there are. keys: all that there are,
    dotted, where it is no recipe's."""
    problems = error.errors()
    first = problems[0]
    location = [str(part) for part in first["loc"] if not str(part).startswith(("function-", "constrained-"))]
    key = in_a_line(".".join(location), 80)
    if first["type"] == "extra_forbidden":
        near = nearest_key(location, keys)
        text = f"unknown key {key}" + (f"; did you mean {near}?" if near else "")
        if key in RENAMED:
            text = f"{key} is called {RENAMED[key]} now"
    elif first["type"] == "missing":
        text = f"key {key} is missing; add it"
    else:
        message = first["msg"].removeprefix("Value error, ")
        shown = in_a_line(repr(first["input"]), 80)
        got = "" if isinstance(first["input"], dict | BaseModel) else f" (got {shown})"
        text = f"{key or 'recipe'}: {message}{got}" if key or not keys else f"{message}{got}"
    others = len({tuple(problem["loc"]) for problem in problems}) - 1
    return text + (f" (and {others} more)" if others else "")


def known_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Every key of the configuration, dotted."""
    keys: list[str] = []
    for name, field in model.model_fields.items():
        keys.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys += known_keys(field.annotation, f"{prefix}{name}.")
    return keys


def nearest_key(location: Sequence[str], keys: Sequence[str] = ()) -> str | None:
    """The known key that an unknown one most likely stands for: by its own name first, then with its
    section. keys: all of them, where it is no recipe's."""
    keys = keys or known_keys(Config)
    section = [part for part in location[:-1] if not part.isdigit()]  # of a list: which one
    siblings = [key for key in keys if key.split(".")[:-1] == section]
    initials = "".join(word[:1] for word in location[-1].split("_"))  # learning_rate -> lr
    for candidates in (siblings, keys):
        by_leaf = {key.split(".")[-1]: key for key in reversed(candidates)}
        near = difflib.get_close_matches(location[-1], by_leaf, n=1, cutoff=0.7)
        if near or initials in by_leaf:
            return by_leaf[near[0] if near else initials]
    near = difflib.get_close_matches(".".join(location), keys, n=1, cutoff=0.6)
    return near[0] if near else None
