"""The house: each room uses those below it only, no two modules use each other, and what is heavy is imported late."""

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULES = {
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
    for file in sorted((ROOT / "bonlib").rglob("*.py"))
}
# From the ground up; a module that stands alone is a room of its own. ARCHITECTURE.md draws the same.
ROOMS = [
    "mathematics",
    "tables",
    "models",
    "draws",
    "inference",
    "training",
    "methods",
    "evaluate",
    "records",
    "bridge",
    "ingredients",
    "front",
    "files",
    "options",
    "commands",
    "course",
    "entrance",
]
ALONE = ("evaluate", "tables", "ingredients", "front", "files", "options", "commands")
MATHEMATICS = ("checks", "exact", "bounds", "cdf", "estimates", "answers", "inference_aware", "metrics")
HEAVY = {"transformers", "accelerate", "peft", "vllm", "datasets", "ray", "trl", "ipywidgets"}
NO_TORCH = [
    "bonlib",
    "bonlib.exact",
    "bonlib.bounds",
    "bonlib.cdf",
    "bonlib.estimates",
    "bonlib.answers",
    "bonlib.inference_aware",
    "bonlib.tables",
    "bonlib.records.reading",
    "bonlib.records.report",
    "bonlib.records.page",
    "bonlib.front",
    "bonlib.ingredients",
    "bonlib.files",
]


def room(module):
    name = module.split(".")[1] if "." in module else "front"
    return ROOMS.index({"__main__": "entrance"}.get(name, "mathematics" if name in MATHEMATICS else name))


def imported(module):
    """Modules of the library that one imports, at its top or in a function, but for those it names in types only."""
    tree = ast.parse(MODULES[module].read_text())
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and id(node) not in for_types:
            assert node.level == 0, f"{module}: relative import"
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else node.module for name in whole if name.startswith("bonlib"))
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("bonlib"))


@pytest.mark.parametrize("module", MODULES)
def test_a_module_uses_only_its_room_and_those_below(module):
    above = [name for name in imported(module) if room(name) > room(module)]
    assert not above, f"{module} reaches up to {above}"


def test_no_two_modules_use_each_other():
    graph = {module: {name for name in imported(module) if name != module} for module in MODULES}
    assert len(list(TopologicalSorter(graph).static_order())) == len(
        MODULES
    )  # raises, and names it, if there is a circle


def test_the_page_on_the_house_names_every_room():
    page = (ROOT / "ARCHITECTURE.md").read_text()
    assert len(page.splitlines()) <= 120
    folders = [file.parent.name for module, file in MODULES.items() if file.name == "__init__.py" and "." in module]
    assert not [name for name in (*folders, *MATHEMATICS, *ALONE) if not re.search(rf"\b{name}\b", page)]


def loaded_by(statement):
    code = f"import sys; {statement}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    return set(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split())


def test_no_module_loads_heavy_packages_when_imported():
    assert not loaded_by("import " + ", ".join(name for name in MODULES if not name.endswith("__main__"))) & HEAVY


@pytest.mark.parametrize("name", NO_TORCH)
def test_the_exact_part_needs_numpy_and_scipy_only(name):
    assert not loaded_by(f"import {name}") & (HEAVY | {"torch", "pandas", "matplotlib"})
