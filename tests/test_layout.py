"""The layout that lets every folder be a source root."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = [
    *(ROOT / "maskreid_dist").rglob("*.py"),
    *(ROOT / "kernels").rglob("*.py"),
    *(ROOT / "shards").rglob("*.py"),
]
EVERYTHING = [*SOURCES, *(ROOT / "launch").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]

KERNELS, SHARDS, DIST = "kernels/maskreid_kernels", "shards/maskreid_shards", "maskreid_dist"
LOSSES = {folder.parent.relative_to(ROOT).as_posix() for folder in (ROOT / KERNELS).glob("*/__init__.py")}
LOSSES -= {f"{KERNELS}/adapters", f"{KERNELS}/bench"}
# Which folders a folder may import. The top of a package has its public names, and what the folders share.
MAY_IMPORT: dict[str, set[str]] = {
    "kernels/bench": {f"{KERNELS}/bench"},
    KERNELS: LOSSES,
    **{loss: {KERNELS} for loss in LOSSES},
    f"{KERNELS}/adapters": {KERNELS, *LOSSES},
    f"{KERNELS}/bench": {KERNELS, *LOSSES, f"{KERNELS}/bench/gpu"},
    f"{KERNELS}/bench/gpu": {KERNELS, *LOSSES, f"{KERNELS}/bench"},
    SHARDS: {f"{SHARDS}/{name}" for name in ("layouts", "masks", "stores", "verification")},
    f"{SHARDS}/layouts": {SHARDS},
    f"{SHARDS}/masks": {SHARDS},
    f"{SHARDS}/stores": {SHARDS},
    f"{SHARDS}/verification": {SHARDS},
    f"{SHARDS}/bench": {SHARDS, f"{SHARDS}/layouts", f"{SHARDS}/verification"},
    DIST: {SHARDS, f"{DIST}/cli"},  # the latter for `python -m maskreid_dist` alone
    f"{DIST}/model": {DIST, SHARDS},
    f"{DIST}/retrieval": {DIST, KERNELS, f"{KERNELS}/retrieval_counts"},
    f"{DIST}/report": {DIST, SHARDS},
    f"{DIST}/data": {DIST, SHARDS, f"{DIST}/model"},
    f"{DIST}/planning": {DIST, SHARDS, f"{DIST}/data", f"{DIST}/model"},
    f"{DIST}/segmentation": {DIST, SHARDS, f"{SHARDS}/masks", f"{DIST}/model"},
    f"{DIST}/evaluation": {
        DIST,
        SHARDS,
        f"{SHARDS}/stores",
        KERNELS,
        *(f"{DIST}/{name}" for name in ("data", "model", "report", "retrieval")),
    },
    f"{DIST}/gallery": {
        DIST,
        SHARDS,
        f"{SHARDS}/stores",
        *(f"{DIST}/{name}" for name in ("data", "evaluation", "model", "report", "retrieval")),
    },
    f"{DIST}/webpage": {
        DIST,
        SHARDS,
        f"{SHARDS}/stores",
        *(f"{DIST}/{name}" for name in ("gallery", "model", "report")),
    },
    f"{DIST}/training": {
        DIST,
        SHARDS,
        KERNELS,
        *(f"{DIST}/{name}" for name in ("data", "evaluation", "model", "retrieval")),
    },
    f"{DIST}/study": {
        DIST,
        SHARDS,
        *(f"{DIST}/{name}" for name in ("data", "evaluation", "model", "planning", "report", "training")),
    },
    f"{DIST}/bench": {
        DIST,
        SHARDS,
        f"{SHARDS}/bench",
        f"{KERNELS}/bench",
        *(
            f"{DIST}/{name}"
            for name in ("data", "evaluation", "model", "retrieval", "segmentation", "training")
        ),
    },
    "launch": {f"{DIST}/cli"},
    "launch/studies": set(),
    "tests/cluster": {"tests"},
    "tests/golden": {KERNELS},  # compares two commits, so it knows of a package what all have
}
MAY_IMPORT[f"{DIST}/cli/bench"] = {
    DIST,
    SHARDS,
    f"{KERNELS}/bench",
    f"{SHARDS}/bench",
    *(f"{DIST}/{name}" for name in ("bench", "cli", "training")),
}
MAY_IMPORT[f"{DIST}/cli"] = {
    *(folder for folder in MAY_IMPORT if folder.startswith(DIST)),
    SHARDS,
    f"{KERNELS}/bench",
    f"{SHARDS}/bench",
}
# Of files that this project has made itself, or that the system has.
OPENS_ITSELF = {
    f"{SHARDS}/atomic.py": {"rmtree"},
    f"{SHARDS}/verification/remote.py": {"write_bytes"},
    f"{DIST}/training/machine.py": {"read_text"},
    f"{DIST}/report/page.py": {"read_text"},
    f"{DIST}/webpage/site.py": {"read_text"},
    f"{DIST}/training/facts.py": {"read_bytes"},
    f"{DIST}/training/run_folder.py": {"truncate"},
}
MAY_IMPORT["tests"] = set(MAY_IMPORT)


def imports(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    names = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    return names | {
        n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module and not n.level
    }


def all_imports(path: Path) -> set[str]:
    """With relative ones."""
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
    relative = {f"{node.module or ''}.{alias.name}" for node in nodes for alias in node.names}
    return imports(path) | relative


def test_source_roots_are_not_packages() -> None:
    for folder in ("kernels", "launch", "shards", "tests"):
        assert not (ROOT / folder / "__init__.py").exists(), f"a package named {folder} would shadow others"


def test_data_flows_one_way() -> None:
    for path in SOURCES:
        package = path.relative_to(ROOT).parts[0]
        tops = {name.split(".")[0] for name in imports(path)}
        if package != "maskreid_dist":
            assert "maskreid_dist" not in tops, path
        if package == "kernels":
            assert tops.isdisjoint({"maskreid_shards", "deepspeed", "rich", "typer", "pydantic"}), path
        if package == "shards":
            assert tops.isdisjoint({"maskreid_kernels", "torch", "deepspeed"}), path


def test_the_losses_do_not_know_their_benchmarks() -> None:
    package = ROOT / "kernels" / "maskreid_kernels"
    for path in package.rglob("*.py"):
        if "bench" not in path.relative_to(package).parts:
            assert "bench" not in {part for name in all_imports(path) for part in name.split(".")}, path


def test_the_benchmarks_of_the_losses_stand_with_them() -> None:
    assert {path.name for path in (ROOT / "kernels" / "bench").rglob("*.py")} == {"gpu.py"}
    assert (ROOT / "kernels" / "maskreid_kernels" / "bench" / "__main__.py") in SOURCES


def test_evaluation_needs_no_training() -> None:
    for wing in ("evaluation", "model", "data", "retrieval", "report", "segmentation"):
        for path in (ROOT / "maskreid_dist" / wing).rglob("*.py"):
            assert not {name for name in imports(path) if name.startswith("maskreid_dist.training")}, path


def test_the_configuration_stands_alone() -> None:
    """Of this project it imports how a URL is shown, and nothing else."""
    found = {name for name in imports(ROOT / "maskreid_dist" / "config.py") if "maskreid" in name}
    assert found == {"maskreid_shards.shown"}


def test_everything_is_printed_in_one_place() -> None:
    """`say` and `Terminal` escape what a terminal would obey."""
    for path in (ROOT / DIST).rglob("*.py"):
        calls = [n.func for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
        names = {func.id for func in calls if isinstance(func, ast.Name)}
        attributes = {func.attr for func in calls if isinstance(func, ast.Attribute)}
        own = path.name == "terminal.py" or path.parent.name == "bench"
        assert own or not names & {"print", "Console"}, path
        assert not attributes & {"echo", "secho"}, path
    for path in (ROOT / SHARDS).rglob("*.py"):
        assert "print" not in {n.id for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Name)}


def test_files_are_opened_in_one_place() -> None:
    """What a user was given may be a pipe, or a link to what we must not spoil."""
    for path in (*(ROOT / DIST).rglob("*.py"), *(ROOT / SHARDS).rglob("*.py")):
        attributes = {n.attr for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Attribute)}
        if path.parent.name == "bench":
            continue
        found = attributes & {"read_text", "read_bytes", "write_text", "write_bytes", "rmtree", "truncate"}
        assert not found - OPENS_ITSELF.get(path.relative_to(ROOT).as_posix(), set()), (path, found)


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part not in ("kernels", "shards", "__init__"))


def imported_modules(path: Path, modules: dict[str, Path]) -> set[str]:
    """Modules of the project that an import statement anywhere in the file names, the packages around them
    not counted."""
    package = module_of(path).split(".") + (["__init__"] if path.name == "__init__.py" else [])
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            around = package[: -node.level] if node.level else []
            base = ".".join([*around, *([node.module] if node.module else [])])
            inside = {f"{base}.{alias.name}" for alias in node.names}
            found |= {name if name in modules else base for name in inside}
    return found & set(modules) - {module_of(path)}


def folder_of(path: Path) -> str:
    return path.relative_to(ROOT).parent.as_posix()


def test_every_folder_imports_only_what_it_may() -> None:
    modules = {module_of(path): path for path in EVERYTHING}
    assert {folder_of(path) for path in EVERYTHING} == set(MAY_IMPORT), "a folder is new, or gone"
    for path in EVERYTHING:
        folders = {folder_of(modules[name]) for name in imported_modules(path, modules)}
        assert folders <= {folder_of(path), *MAY_IMPORT[folder_of(path)]}, path
    users = [path for path in (ROOT / DIST).glob("*.py") if f"{DIST}.cli.app" in imports(path)]
    assert [path.name for path in users] == ["__main__.py"]


@pytest.mark.parametrize("top", ["maskreid_dist", "kernels", "shards", "tests"])
def test_no_module_imports_itself_in_a_circle(top: str) -> None:
    modules = {module_of(path): path for path in EVERYTHING if path.relative_to(ROOT).parts[0] == top}
    arrows = {name: imported_modules(path, modules) for name, path in modules.items()}
    while leaves := {name for name, targets in arrows.items() if not targets & set(arrows)}:
        arrows = {name: targets for name, targets in arrows.items() if name not in leaves}
    assert not arrows, f"these import each other: {arrows}"


def test_no_drawer_for_everything() -> None:
    for path in EVERYTHING:
        names = {*path.relative_to(ROOT).parts[:-1], path.stem}
        assert not names & {"utils", "util", "helpers", "common", "misc"}, path


def test_no_unsafe_loading() -> None:
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert any(
                    k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords
                ), path
        assert not imports(path) & {"pickle", "dill", "cloudpickle"}, path
