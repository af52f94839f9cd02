"""The blocks of code in the documentation, and how each is tested: a comment before it says so.

    <!-- run -->             run by `make test`, in a folder with small data
    <!-- slow -->            run by `make docs-commands`
    <!-- parse: REASON -->   not run: commands, options, targets and files exist; Python compiles
    <!-- syntax: REASON -->  not run: bash and Python accept it
    <!-- recipe -->          TOML that is a valid recipe
    <!-- text -->            no code: a tree, a list, an output

Blocks without one, and reasons that are missing, are problems.
"""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    ROOT / "README.md",
    *(ROOT / folder / "README.md" for folder in ("kernels", "launch", "maskreid_dist", "shards")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
KINDS = {"run", "slow", "parse", "syntax", "recipe", "text"}
NEED_A_REASON = {"parse", "syntax"}
MARK = re.compile(r"<!-- (\w+)(?:: (.+?))? -->$")


@dataclass(frozen=True)
class Block:
    """line: of the opening fence, from 1."""

    page: Path
    line: int
    language: str
    code: str
    kind: str
    reason: str

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def problem(self) -> str | None:
        if self.kind not in KINDS:
            return f"{self.where}: no mark before the block; tests/documentation.py has the kinds"
        if self.kind in NEED_A_REASON and not self.reason:
            return f"{self.where}: the mark {self.kind} needs a reason"
        return None


def blocks_of(page: Path) -> list[Block]:
    found: list[Block] = []
    lines = page.read_text().splitlines()
    number = 0
    while number < len(lines):
        fence = re.match(r"\s*```(\w*)", lines[number])
        if not fence:
            number += 1
            continue
        end = next(n for n in range(number + 1, len(lines)) if lines[n].strip() == "```")
        mark = MARK.match(lines[number - 1].strip()) if number else None
        kind, reason = (mark[1], mark[2] or "") if mark else ("", "")
        code = "\n".join(lines[number + 1 : end])
        found.append(Block(page, number + 1, fence[1], code, kind, reason))
        number = end + 1
    return found


def commands_of(code: str) -> list[str]:
    """Lines of a shell block, continued ones joined."""
    lines = code.replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip() and not line.strip().startswith("#")]
