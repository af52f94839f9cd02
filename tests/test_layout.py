"""The layout that lets every folder be a source root."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCES = [
    *(ROOT / "maskreid_dist").rglob("*.py"),
    *(ROOT / "kernels" / "maskreid_kernels").rglob("*.py"),
    *(ROOT / "shards").rglob("*.py"),
]


def imports(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    names = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    return names | {
        n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module and not n.level
    }


def test_source_roots_are_not_packages():
    for folder in ("kernels", "launch", "shards", "tests"):
        assert not (ROOT / folder / "__init__.py").exists(), f"a package named {folder} would shadow others"


def test_data_flows_one_way():
    for path in SOURCES:
        package = path.relative_to(ROOT).parts[0]
        tops = {name.split(".")[0] for name in imports(path)}
        if package != "maskreid_dist":
            assert "maskreid_dist" not in tops, path
        if package == "kernels":
            assert tops.isdisjoint({"maskreid_shards", "deepspeed"}), path
        if package == "shards":
            assert tops.isdisjoint({"maskreid_kernels", "torch", "deepspeed"}), path


def test_no_unsafe_loading():
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert any(
                    k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords
                ), path
        assert not imports(path) & {"pickle", "dill", "cloudpickle"}, path
