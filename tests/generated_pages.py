"""What is made of the code in docs/: pages of the commands, the keys of a recipe, the table of recipes; and
of committed results, in docs/ and README.md: what a study found.

    python tests/generated_pages.py            # write them
    python tests/generated_pages.py --check    # exit status 1 where one is stale; tests do this too

They stand between the lines `<!-- generated: NAME -->` and `<!-- end of NAME -->`; what is around them is
written by hand and kept.
"""

import argparse
import inspect
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import BaseModel

from command_table import Command, Parameter, commands, groups_of_commands
from generated_results import study_in_brief, study_table
from maskreid_dist.config import Config
from maskreid_dist.recipe import load_recipe

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PROGRAM = "python tests/generated_pages.py"


def main() -> int:
    parser = argparse.ArgumentParser(description=" ".join((__doc__ or "").partition("\n\n")[0].split()))
    parser.add_argument("--check", action="store_true", help="Write nothing; name what is stale.")
    check = parser.parse_args().check
    stale = stale_pages()
    for path, text in stale.items():
        print(f"{'stale' if check else 'written'}: {path.relative_to(ROOT)}")
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    return 1 if check and stale else 0


def stale_pages() -> dict[Path, str]:
    """The pages that are not as the code says, with what they should be."""
    found = {}
    for path, (name, part) in {**command_pages(), **other_pages(), **result_pages()}.items():
        before = path.read_text() if path.is_file() else ""
        if (after := replaced(before, name, part)) != before:
            found[path] = after
    return found


def replaced(text: str, name: str, part: str) -> str:
    """The page with its generated part renewed; a page that has none is made of it. A title at the part's
    beginning stays outside: a page's title is its first line."""
    first, last = f"<!-- generated: {name} -->", f"<!-- end of {name} -->"
    title, _, rest = part.partition("\n\n") if part.startswith("# ") else ("", "", part)
    whole = f"{first}\n\n{rest.strip()}\n\n{last}\n"
    if first not in text:
        return f"{title}\n\n{whole}"
    before, _, after = text.partition(first)
    return before + whole + after.partition(f"{last}\n")[2]


# Commands.


def command_pages() -> dict[Path, tuple[str, str]]:
    """A page for each word after `maskreid`, and one that lists them."""
    groups: dict[str, list[Command]] = {}
    for command in commands():
        groups.setdefault(command.words[0], []).append(command)
    groups = dict(sorted(groups.items()))
    folder = DOCS / "commands"
    pages = {folder / f"{name}.md": (name, _group_page(name, found)) for name, found in groups.items()}
    lines = ["# Commands", "", *table(("command", "what it does"), _summary(groups))]
    return {folder / "index.md": ("commands", "\n".join(lines)), **pages}


def _summary(groups: dict[str, list[Command]]) -> Iterator[tuple[str, str]]:
    for name, found in groups.items():
        about = found[0].about if len(found) == 1 else GROUPS[name]
        yield f"[`maskreid {name}`]({name}.md)", sentence(about)


GROUPS = groups_of_commands()


def _group_page(name: str, found: list[Command]) -> str:
    if len(found) == 1:
        return "\n".join([f"# maskreid {name}", "", *_described(found[0], found[0].options)])
    lines = [f"# maskreid {name}", "", GROUPS[name], ""]
    shared = [option for option in found[0].options if all(option in other.options for other in found)]
    if shared:
        lines += ["## Options of all", "", *_option_table(shared), ""]
    for command in found:
        own = [option for option in command.options if option not in shared]
        lines += [f"## maskreid {' '.join(command.words)}", "", *_described(command, own), ""]
    return "\n".join(lines)


def _described(command: Command, options: list[Parameter]) -> list[str]:
    arguments = [_argument(one) for one in command.arguments]
    line = " ".join(["maskreid", *command.words, *arguments, *(["[OPTIONS]"] if command.options else [])])
    paragraphs = [in_cell(part) for part in re.split(r"\n\s*\n", command.about)]
    lines = ["\n\n".join(paragraphs), "", "<!-- text -->", "```text", line, "```"]
    described = [(f"`{_argument(one)}`", in_cell(one.help)) for one in command.arguments if one.help]
    if described:
        lines += ["", *table(("argument", ""), described)]
    return lines + (["", *_option_table(options)] if options else [])


def _argument(one: Parameter) -> str:
    name = f"{one.name}..." if one.repeatable and "..." not in one.name else one.name
    return name if one.required else f"[{name}]"


def _option_table(options: list[Parameter]) -> list[str]:
    rows = []
    for one in options:
        value = f" {one.name.replace('|', ' or ')}" if one.takes_value and not one.choices else ""
        choices = ", ".join(f"`{choice}`" for choice in one.choices)
        about = in_cell(one.help).rstrip(".") + "." if one.help else ""
        more = [f"{choices}:" if choices else "", about]
        if one.repeatable and "epeatable" not in one.help:
            more.append("Repeatable.")
        if one.shown_default:
            more.append(f"Default: `{one.shown_default}`.")
        if one.required:
            more.append("Required.")
        rows.append((f"`{' / '.join(one.flags)}{value}`", " ".join(filter(None, more))))
    return table(("option", ""), rows)


# Recipes.


def other_pages() -> dict[Path, tuple[str, str]]:
    return {
        DOCS / "reference" / "recipe.md": ("keys", "\n".join(_keys())),
        DOCS / "recipes.md": ("recipes", "\n".join(_recipes())),
    }


def _keys() -> Iterator[str]:
    """A table for each section of the configuration, with the comments of its source."""
    top = [name for name, field in Config.model_fields.items() if not _is_section(field.annotation)]
    yield from ("## At the top", "", *_key_table(Config, top, ""), "")
    for name, field in Config.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            section = field.annotation
            yield from (f"## {name}", "", inspect.cleandoc(section.__doc__ or ""), "")
            yield from (*_key_table(section, list(section.model_fields), f"{name}."), "")


def _is_section(annotation: object) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _key_table(section: type[BaseModel], names: list[str], prefix: str) -> list[str]:
    comments = comments_of(section)
    rows = []
    for name in names:
        field = section.model_fields[name]
        default = "needed" if field.is_required() else f"`{_toml(field.default)}`"
        rows.append((f"`{prefix}{name}`", default, comments.get(name, "")))
    return table(("key", "default", ""), rows)


def _toml(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return f'"{value}"' if isinstance(value, str) else f"{value:_}" if isinstance(value, int) else str(value)


def comments_of(section: type[BaseModel]) -> dict[str, str]:
    """Of each field, the comment above it and the one behind it, as one line."""
    found, above = {}, []
    for line in inspect.getsource(section).splitlines():
        if line.startswith("    #"):
            above.append(line.strip("# "))
        elif field := re.match(r"    (\w+)\s*:", line):
            behind = line.partition("  # ")[2]
            found[field[1]] = in_cell(" ".join([*above, behind]))
            above = []
        elif line.startswith("    @"):  # validators
            break
    return found


def _recipes() -> list[str]:
    rows = []
    for path in sorted((ROOT / "launch" / "recipes").glob("*.toml")):
        recipe = load_recipe(path)
        batch = f"{recipe.batch.identities} x {recipe.batch.images} images"
        if recipe.batch.sampling == "paper":
            batch = "the paper's batch"
        head = [line.removeprefix("#").strip() for line in path.read_text().split("\n\n")[0].splitlines()]
        loss = f"`{recipe.loss.name}`" + (" + `softmax`" if recipe.loss.identity_weight else "")
        parts = [loss, batch, f"{recipe.optimizer.steps:,} steps"]
        if recipe.model.backbone != "inception":
            parts.append(f"`{recipe.model.backbone}`")
        link = f"[{path.stem}](../launch/recipes/{path.name})"
        rows.append((link, ", ".join(parts), _expected(head)))
    return table(("recipe", "trains", "expected"), rows)


def _expected(head: list[str]) -> str:
    """What the recipe's first comment says of its result, up to the next of its headings."""
    start = next(number for number, line in enumerate(head) if line.startswith("Expected:"))
    lines = [head[start].removeprefix("Expected:")]
    for line in head[start + 1 :]:
        if not line or re.match(r"[A-Z][a-z']+( [a-z]+)?:|Not the paper's|[a-z_]+ = ", line):
            break
        lines.append(line)
    return in_cell(" ".join(lines).strip())


# Results.


def result_pages() -> dict[Path, tuple[str, str]]:
    table = ROOT / "launch" / "studies" / "results" / "paper_walkers" / "table.md"
    return {
        DOCS / "study.md": ("paper_walkers", study_table(table)),
        ROOT / "README.md": ("paper_walkers", study_in_brief(table)),
    }


# Markdown.


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return lines + [f"| {' | '.join(row)} |" for row in rows]


def in_cell(text: str) -> str:
    """Words of the program as Markdown on one line: what would be markup is shown."""
    parts = re.split(r"(`[^`]*`)", " ".join(text.split()))
    shown = (part if part.startswith("`") else _shown(part) for part in parts)
    return "".join(shown)


def _shown(text: str) -> str:
    text = text.replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([|*_{}\[\]])", r"\\\1", text)


def sentence(text: str) -> str:
    """The first one."""
    return in_cell(re.split(r"(?<=[.])\s", " ".join(text.split()))[0])


if __name__ == "__main__":
    sys.exit(main())
