"""The wheel: what it holds, that it declares what its code imports, and that it works without a checkout."""

import ast
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LATE = {"datasets", "ray", "trl", "vllm"}  # extras of the library, imported where they are asked for
NOT_IMPORTED = {"gguf"}  # by us: transformers needs it for GGUF files
WITHOUT_A_CHECKOUT = """\
import bonlib as bon

policy = bon.Outcomes([0.3, 0.5, 0.2], [0, 1, 2]).best_of(4)
assert abs(policy[2] - (1 - 0.8**4)) < 1e-12
model = bon.load("imdb-gpt2-tiny")
draws = bon.draw(model, ["The film", "My mother"], count=16, max_new_tokens=8).score(bon.reward("imdb-sentiment-tiny"))
curve = draws.curve()
assert curve.table["reward"].is_monotonic_increasing
curve.plot().savefig("curve.png")
bon.report(draws).save("report")
policy = bon.train("vbon", draws, n=2, steps=2)
print(bon.compare(policy, draws, responses=4, ns=(2,)))
print(bon.__file__)
"""


def required(texts, extras=("",)):
    found = map(Requirement, texts)
    return [
        need for need in found if not need.marker or any(need.marker.evaluate({"extra": extra}) for extra in extras)
    ]


def imported(files):
    """The distributions whose modules are imported, at the top or in a function."""
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text()))]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    outside = {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"bonlib"}
    owners = importlib.metadata.packages_distributions()
    return {canonicalize_name(owners.get(name, [name])[0]) for name in outside}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy: a build leaves files beside the code."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("bonlib", "data/models"):
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    words = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*words, "--wheel-dir", folder, folder / "source"], check=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    """A Python that has the wheel and, linked from this one, what it declares to depend on, and nothing else."""
    folder = tmp_path_factory.mktemp("empty")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    (site,) = folder.glob("lib/python*/site-packages")
    waiting, seen = required(PROJECT["dependencies"]), set()
    while waiting:
        need = waiting.pop()
        if (key := (canonicalize_name(need.name), *sorted(need.extras))) in seen:
            continue
        seen.add(key)
        try:
            distribution = importlib.metadata.distribution(need.name)
        except importlib.metadata.PackageNotFoundError:  # of CUDA, say, which another build of PyTorch asks for
            continue
        waiting += required(distribution.requires or (), ("", *need.extras))
        for top in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(distribution.locate_file(top))
    words = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*words, wheel], check=True)
    return python


@pytest.mark.slow
def test_the_wheel_has_all_modules_two_models_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {str(file.relative_to(ROOT)) for file in (ROOT / "bonlib").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == modules
    models = [name for name in names if name.startswith("bonlib/bundled/")]
    assert {name.split("/")[2] for name in models} == {"imdb-gpt2-tiny", "imdb-sentiment-tiny"}
    assert sum(name.endswith((".safetensors", "config.json", "tokenizer.json")) for name in models) == 9
    pages = {name for name in names if name.startswith("bonlib/course/site/")} - modules
    assert pages == {f"bonlib/course/site/{name}" for name in ("sliders.md", "static/course.css", "static/sliders.js")}
    about = {name for name in names if ".dist-info/" in name}
    assert names == modules | set(models) | pages | about | {"bonlib/records/report.html"}
    assert wheel.stat().st_size < 16e6


@pytest.mark.slow
def test_the_wheel_draws_judges_and_trains_where_there_is_no_checkout(python, tmp_path):
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    environment |= {name: value for name, value in os.environ.items() if name.startswith(("OMP_", "GOMP_"))}
    done = subprocess.run(
        [python, "-c", WITHOUT_A_CHECKOUT], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.splitlines()[-1]).is_relative_to(python.parents[1])
    assert (tmp_path / "curve.png").exists()
    words = ["explain", "imdb-gpt2-tiny"]
    done = subprocess.run(
        [python, "-m", "bonlib", *words], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "imdb-gpt2-tiny" in done.stdout
    done = subprocess.run(
        [python, "-m", "bonlib", "run"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1, done.stderr


def test_what_the_code_imports_is_what_it_declares():
    files = set((ROOT / "bonlib").rglob("*.py"))
    course = set((ROOT / "bonlib" / "course").rglob("*.py"))
    base, extras = PROJECT["dependencies"], PROJECT["optional-dependencies"]
    assert {Requirement(text).name for extra in ("paper", "ray", "trl", "vllm") for text in extras[extra]} == LATE
    declared = {Requirement(text).name for text in base}
    assert imported(files - course) - LATE == declared - NOT_IMPORTED
    assert imported(course) - LATE <= declared | {Requirement(text).name for text in extras["course"]}
