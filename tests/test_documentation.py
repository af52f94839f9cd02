"""Every block of code in README.md and docs/ does what it says; generated pages are those of the code."""

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from check_site import problems
from checkpoints import SMALL, write_run
from command_table import commands
from documentation import PAGES, ROOT, Block, blocks_of, commands_of
from generated_pages import stale_pages
from generated_results import study_in_brief
from market import jpeg, png, write_market
from maskreid_dist.recipe import validate
from maskreid_dist.segmentation import masks
from maskreid_shards import LAYOUTS, convert
from program import run as maskreid
from test_segmentation import left_half
from test_shards_layouts import write_dgd, write_duke

BLOCKS = [block for page in PAGES for block in blocks_of(page)]
TABLE = {command.words: command for command in commands()}
PACKAGES = ("maskreid_dist", "kernels/maskreid_kernels", "shards/maskreid_shards")
TRAINS = ("demo", "train")  # commands that get a small recipe
TINY = [
    *SMALL,
    "batch.identities=4",
    "batch.images=2",
    "optimizer.steps=3",
    "data.workers=0",
]


def of(page: Path) -> list[Block]:
    return [block for block in BLOCKS if block.page == page]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def test_every_block_says_how_it_is_tested() -> None:
    assert [block.problem for block in BLOCKS if block.problem] == []
    assert len(BLOCKS) > 60


def test_the_generated_pages_are_those_of_the_code() -> None:
    pages = {path.stem for path in (ROOT / "docs" / "commands").iterdir()}
    assert pages - {"index"} == {words[0] for words in TABLE}, "a command has gone: remove its page"
    assert [name_of(path) for path in stale_pages()] == [], "write them: make docs-pages"


def test_a_studys_claims_in_brief(tmp_path: Path) -> None:
    said = "{}: {} (mAP {:+.2f} points, 95 % interval {:+.2f} to {:+.2f}, {}). Paper: (mAP 1 (2))."
    claims = (
        said.format("A mask helps", "holds", 4.38, 1.36, 7.2, "3 seeds"),
        said.format("It is better: always", "does not hold", -9.13, -13.28, -5.17, "2 seeds"),
        said.format("The pull helps (lambda 2 beside 0)", "undecided", -4.5, -5.9, -3.15, "1 seed"),
    )
    (tmp_path / "table.md").write_text(
        "# paper\n\nPer cent. 6 of 99 trainings are done, 1 of 33 rows with every seed; on: X, 1 thread.\n\n"
        "| row |\n|---|\n\n## Claims\n\n" + "".join(f"- **c{n}**: {text}\n" for n, text in enumerate(claims))
    )
    lines = study_in_brief(tmp_path / "table.md").splitlines()
    assert lines == [
        "6 of 99 trainings so far (X, 1 thread). Difference in mAP, points, with its 95 % interval:",
        "",
        "- **Holds**: a mask helps (+4.4, +1.4 to +7.2).",
        "- **Does not hold**: it is better: always (-9.1, -13.3 to -5.2).",
        "- Of one seed so far, so not judged: 1.",
    ]
    (tmp_path / "table.md").write_text(f"- **c**: {claims[0].replace('holds', 'may be')}")
    with pytest.raises(ValueError):
        study_in_brief(tmp_path / "table.md")


def test_the_demos_figures_are_the_same_on_both_pages() -> None:
    tables = [
        re.findall(r"^\| (?:\w.*, .*|untrained.*|\*\*MaskReID.*) \|$", page.read_text(), re.MULTILINE)
        for page in (ROOT / "README.md", ROOT / "docs" / "recipes.md")
    ]
    rows = [
        [row for row in table if re.fullmatch(r"\|[^|]+(\| \**\d+\.\d\d\** ){6}\|", row)] for table in tables
    ]
    assert len(rows[0]) >= 5 and rows[0] == rows[1]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_blocks_that_are_not_run_could_be(page: Path) -> None:
    for block in of(page):
        if block.kind in ("run", "slow", "parse"):
            for problem in problems_of(block):
                pytest.fail(f"{block.where}: {problem}")
        if block.kind == "syntax":
            check_syntax(block)
        if block.kind == "recipe":
            validate(tomllib.loads(block.code), block.where)


def problems_of(block: Block) -> Iterator[str]:
    if block.language == "python":
        ast.parse(block.code)
        return
    assert block.language == "sh", f"{block.where}: {block.language} is not run by anything"
    for line in commands_of(block.code):
        words = shlex.split(line, comments=True)
        if problem := problem_of(words):
            yield f"{line}: {problem}"


def problem_of(words: list[str]) -> str | None:
    """What a command line names that is not there: a command, an option, a target, a file of ours."""
    missing = [
        word for word in words if re.match(r"(launch|tests|kernels)/\w", word) and not (ROOT / word).exists()
    ]
    if missing:
        return f"no file {missing[0]}"
    if words == ["maskreid", "--install-completion"]:
        return None
    if words[0] == "maskreid":
        names = next((tuple(words[1:n]) for n in (3, 2) if tuple(words[1:n]) in TABLE), None)
        if names is None:
            return "no such command"
        if names == ("supervise",) and "--" in words:
            return problem_of(words[words.index("--") + 1 :])
        return TABLE[names].problem(words[1 + len(names) :])
    if words[0] == "make":
        targets = [word for word in words[1:] if "=" not in word]
        known = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return next((f"no target {target}" for target in targets if target not in known), None)
    if words[0] in ("deepspeed", "torchrun", "python"):
        return problem_of_launch(words)
    return None if words[0] in ("touch", "sbatch", "kubectl", "tensorboard") else f"what is {words[0]}?"


def problem_of_launch(words: list[str]) -> str | None:
    """Of the options behind our script or module."""
    ours = ("train.py", "maskreid_dist.cli.train", "maskreid_dist")
    starts = [n for n, word in enumerate(words) if word.endswith(ours)]
    if not starts:
        return None if words[1].startswith("tests/") else "starts nothing of ours"
    rest = words[starts[0] + 1 :]
    if words[starts[0]] == "maskreid_dist":
        return TABLE[(rest[0],)].problem(rest[1:])
    return TABLE[("train",)].problem(rest)


def check_syntax(block: Block) -> None:
    if block.language == "python":
        ast.parse(block.code)
    else:
        subprocess.run(["bash", "-n", "-c", block.code], check=True)


# What pages find in the folder that they run in.


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small data under the names that the documentation uses."""
    folder = tmp_path_factory.mktemp("documentation")
    write_market(folder / "Market-1501-v15.09.15", identities=18)
    for number, name in enumerate(("anna_c1_1", "anna_c2_2", "ben_c1_1", "ben_c2_2")):
        for place in (folder / "people" / name.split("_")[0], folder / "crops"):
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{name}.jpg").write_bytes(jpeg(2000 + number))
    write_duke(folder / "DukeMTMC-reID")
    write_dgd(folder / "3dpes")
    (folder / "list.csv").write_text("path,pid,camid,split\ncrops/anna_c1_1.jpg,anna,1,train\n"
                                     "crops/ben_c1_1.jpg,ben,1,train\n")  # fmt: skip
    for name, identities in (("walkers", 18), ("people", 3), ("crops", 4)):
        scanned = LAYOUTS["market1501"](write_market(folder / "other", identities, images=2))
        convert(scanned, folder / "shards" / name, dataset=name)
        shutil.rmtree(folder / "other")
    for name in ("crop", "a", "b"):
        (folder / f"{name}.jpg").write_bytes(jpeg(ord(name[0])))
    (folder / "crop.png").write_bytes(png(3))
    (folder / "launch").symlink_to(ROOT / "launch")
    for number, name in enumerate(("demo", "other")):
        write_run(folder / "runs" / name, "data.workers=0", seed=number)
    return folder


@pytest.fixture
def place(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "here"
    shutil.copytree(data, folder, symlinks=True)
    monkeypatch.chdir(folder)
    # In the place of the pose network, whose weights would be fetched.
    (tmp_path / "weights").write_bytes(b"none")
    monkeypatch.setattr(masks, "find_weights", lambda *asked, **options: tmp_path / "weights")
    monkeypatch.setattr(masks, "load_segmenter", lambda *asked, **options: left_half)
    return folder


def pages_with(*kinds: str) -> list[Path]:
    return [page for page in PAGES if any(block.kind in kinds for block in of(page))]


@pytest.mark.parametrize("page", pages_with("run"), ids=name_of)
def test_a_page_runs(page: Path, place: Path) -> None:
    names: dict[str, Any] = {}
    for block in of(page):
        if block.kind == "run":
            run_block(block, names)


def run_block(block: Block, names: dict[str, Any]) -> None:
    if block.language == "python":
        exec(compile(block.code, block.where, "exec"), names)
        return
    for line in commands_of(block.code):
        program, *words = shlex.split(line, comments=True)
        if program == "maskreid":
            status, output = maskreid(*words)
            assert status == 0, f"{block.where}: {line}\n{output}"
        else:
            assert program == "touch", f"{block.where}: {program} is not run here; mark the block slow"
            subprocess.run([program, *words], check=True)


@pytest.mark.documented
@pytest.mark.parametrize("page", pages_with("slow"), ids=name_of)
def test_a_page_runs_with_what_is_slow(page: Path, place: Path) -> None:
    """In processes of their own, training a few steps of a small network."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(str(ROOT / f) for f in ("", "kernels", "shards")),
    }
    names: dict[str, Any] = {}
    for block in of(page):
        if block.kind == "run":
            run_block(block, names)
        for line in commands_of(block.code) if block.kind == "slow" else ():
            program, *words = shlex.split(line, comments=True)
            if program == "maskreid" and words[0] in TRAINS:
                small = [f"name=documented_{words[0]}", *TINY]
                words += [word for setting in small for word in ("--set", setting)]
            command = [sys.executable, "-m", "maskreid_dist"] if program == "maskreid" else [program]
            ended = subprocess.run([*command, *words], env=environment, capture_output=True, text=True)
            assert ended.returncode == 0, f"{block.where}: {line}\n{ended.stdout}{ended.stderr}"


# Messages.


def messages() -> list[str]:
    """Every text of the code, what is filled in as …"""
    found = []
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    found.append("".join(_part(value) for value in node.values))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return found


def _part(value: ast.expr) -> str:
    return value.value if isinstance(value, ast.Constant) and isinstance(value.value, str) else "…"


def says(message: str, heading: str) -> bool:
    """Whether the message has the parts of the heading, what is between … in order."""
    parts, place = heading.split("…"), 0
    for part in parts:
        place = message.find(part, place)
        if place < 0:
            return False
        place += len(part)
    return True


def test_the_messages_are_those_of_the_code() -> None:
    text = (ROOT / "docs" / "data" / "troubleshooting.md").read_text()
    headings = re.findall(r"^### `(.*)`$", text, re.MULTILINE)
    assert len(headings) > 40 and len(set(headings)) == len(headings)
    known = [message for message in messages() if len(message) > 15]
    lost = [heading for heading in headings if not any(says(message, heading) for message in known)]
    assert lost == []


# Files that are named.


def test_links_of_the_pages_lead_somewhere() -> None:
    for page in PAGES:
        text = "".join(
            re.split(r"^\s*```.*?^\s*```|`[^`\n]*`", page.read_text(), flags=re.MULTILINE | re.DOTALL)
        )
        for target in re.findall(r"\]\(([^)#\s]+)", text):
            if ":" not in target:
                assert (page.parent / target).exists(), f"{name_of(page)}: {target}"


def test_dead_links_of_a_site_are_found(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "index.html").write_text('<h1 id="top">A</h1><a href="../#here">home</a>')
    home = tmp_path / "index.html"
    home.write_text('<p id="here"><a href="a/#top">a</a> <a href="https://arxiv.org">elsewhere</a></p>')
    assert problems(tmp_path) == []
    home.write_text('<a href="b/"></a><a href="a/#gone"></a><script src="https://cdn.example/x.js"></script>')
    found = problems(tmp_path)
    assert [line.rpartition(": ")[2].split()[0] for line in found] == ["no", "no", "no", "fetches"]


def test_llms_txt_names_every_page() -> None:
    folder = ROOT / "docs"
    named = set(re.findall(r"\]\(([^)]+\.md)\)", (folder / "llms.txt").read_text()))
    pages = {path.relative_to(folder).as_posix() for path in folder.rglob("*.md")}
    assert named <= pages and {page for page in pages - named if not page.startswith("commands/")} == set()


def test_the_figure_is_a_picture() -> None:
    figure = (ROOT / "docs" / "figures" / "way-of-a-batch.svg").read_text()
    assert figure.startswith("<svg") and "<title" in figure


def test_the_readme_is_an_entrance() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 250


def test_line_lengths() -> None:
    """Of text; tables aside, and what a program writes."""
    docs, pages = ROOT / "docs", "README.md CHANGELOG.md CONTRIBUTING.md LOG.md SECURITY.md".split()
    pages += ["launch/README.md", "shards/README.md", "kernels/README.md", "maskreid_dist/README.md"]
    generated = {*(docs / "commands").iterdir(), docs / "reference" / "recipe.md", docs / "study.md"}
    by_hand = {ROOT / page for page in (*pages, "kernels/bench/GPU.md", "docs/llms.txt")}
    long = [
        f"{name_of(page)}:{number}: {len(line)} columns, more than 110"
        for page in (by_hand | {*docs.rglob("*.md")}) - generated
        for number, line in enumerate(page.read_text().splitlines(), 1)
        if len(line) > 110 and not line.startswith(("|", "!", "### `", "<!--"))
    ]
    assert long == []
