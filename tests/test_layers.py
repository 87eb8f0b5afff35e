"""Folders import from folders below them only, and no module from one that imports it."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import dipy_spinverse

ROOT = Path(dipy_spinverse.__file__).parent
# From the top down, as in doc/architecture.md.
LAYERS = (
    "workflows", "report", "spinverse", "scan_design", "cell_shapes", "tissue_fractions",
    "cell_search", "packed_cells", "compartments", "inversion", "substrates", "walls",
    "bloch_torrey", "datasets", "voxels", "acquisition", "grid", "threads", "units", "docstrings",
    "user_warnings",
)  # fmt: skip


def imports_of(path):
    """Modules of the package that a file imports, anywhere, for its types too."""
    for statement in ast.walk(ast.parse(path.read_text())):
        if isinstance(statement, ast.ImportFrom) and statement.module:
            if statement.module.split(".")[0] == "dipy_spinverse":
                for alias in statement.names:
                    inner = (*statement.module.split(".")[1:], alias.name)
                    is_module = ROOT.joinpath(*inner).with_suffix(".py").exists()
                    yield ".".join(inner if is_module else inner[:-1])


def modules():
    for path in sorted(ROOT.rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        yield name.removesuffix(".__init__"), list(imports_of(path))


def test_folders_import_from_folders_below_them():
    level = {folder: k for k, folder in enumerate(LAYERS)}
    for name, imported in modules():
        own = name.split(".")[0]
        others = {other.split(".")[0] for other in imported} - {own, ""}
        if own in level:
            above = {other for other in others if level[other] < level[own]}
            assert not above, f"{name} imports from above: {above}"
    folders = {name.split(".")[0] for name, _ in modules()}
    assert folders - {"__init__", "_compiled_cache"} <= set(LAYERS)


def test_no_module_imports_one_that_imports_it():
    own = dict(modules())
    # Packages re-export: what counts is where a name comes from, so they are left out.
    packages = {name for name in own if (ROOT / name.replace(".", "/")).is_dir()}
    graph = {
        name: {other for other in imported if other in own and other not in packages}
        for name, imported in own.items()
        if name not in packages
    }
    assert len(list(TopologicalSorter(graph).static_order())) >= len(graph)
