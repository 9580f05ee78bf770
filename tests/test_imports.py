"""The house: each floor uses the floors below it only, and heavy packages are imported where they are used."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted((ROOT / "bonlib").rglob("*.py"))
FLOORS = ["mathematics", "lm", "align", "course", "entrance"]
HEAVY = {"transformers", "accelerate", "peft", "vllm", "datasets", "ray", "ipywidgets"}
NO_TORCH = {"bonlib", "bonlib.exact", "bonlib.bounds", "bonlib.cdf"}


def dotted(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def floor(module):
    parts = module.split(".")
    if parts[-1] == "__main__":
        return FLOORS.index("entrance")
    return FLOORS.index(parts[1]) if len(parts) > 1 and parts[1] in FLOORS else 0


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (
                (f"{node.module}.{alias.name}" for alias in node.names) if node.module == "bonlib" else [node.module]
            )
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_a_module_uses_only_its_floor_and_those_below(path):
    above = [name for name in imported(path) if name.startswith("bonlib") and floor(name) > floor(dotted(path))]
    assert not above, f"{dotted(path)} reaches up to {above}"


def loaded_by(statement):
    code = f"import sys; {statement}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    return set(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split())


def test_no_module_loads_heavy_packages_when_imported():
    names = [dotted(path) for path in MODULES if path.name != "__main__.py"]
    assert not loaded_by("import " + ", ".join(names)) & HEAVY


@pytest.mark.parametrize("name", sorted(NO_TORCH))
def test_the_exact_part_needs_numpy_and_scipy_only(name):
    loaded = loaded_by(f"import {name}")
    assert not loaded & (HEAVY | {"torch", "pandas", "matplotlib"})
