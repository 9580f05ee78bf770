"""The runner on notebooks that are good, failing and given the wrong parameters."""

import json
import os
import subprocess
import sys

import nbformat
import pytest

from bonlib.__main__ import main
from bonlib.course.profiles import get_profile
from bonlib.course.runner import find_notebooks, parameters_of, run_notebooks

PARAMETERS = 'profile = "quick"\nsize = 1'
PLOT = "import matplotlib.pyplot as plt\nfigure, axis = plt.subplots()\nplt.close(figure)\nfigure"

FAILING = "x = 1\nassert x == 1\nif x:\n    assert x > 0"


def write_notebook(folder, name, *sources):
    cells = [nbformat.v4.new_markdown_cell(f"# Title of {name}"), nbformat.v4.new_code_cell(PARAMETERS)]
    cells[1].metadata["tags"] = ["parameters"]
    cells += [nbformat.v4.new_code_cell(source) for source in sources]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), folder / f"{name}.ipynb")


@pytest.fixture
def course(tmp_path):
    folder = tmp_path / "notebooks"
    folder.mkdir()
    write_notebook(folder, "01_good", "print(profile, size)", PLOT)
    write_notebook(folder, "02_failing", FAILING, "raise RuntimeError('deliberate')", "assert 'never'")
    write_notebook(folder, "03_last", "print('still ran')\nassert True")
    return folder


@pytest.fixture
def quick():
    return get_profile("quick")


@pytest.mark.slow
def test_a_failing_notebook_stops_neither_the_others_nor_the_report(course, quick, tmp_path, capfd):
    build = tmp_path / "build"
    reports = run_notebooks(quick, folder=course, build=build, parameters={"size": 5})
    assert [report.status for report in reports] == ["ok", "failed", "ok"]
    assert "RuntimeError: deliberate" in reports[1].error
    assert reports[1].error.startswith("cell 4 (raise RuntimeError('deliberate'))")  # as counted in the source
    assert [report.checks for report in reports] == [0, 2, 1]
    assert (build / "figures" / "01_1.png").read_bytes().startswith(b"\x89PNG")
    executed = nbformat.read(build / "01_good.ipynb", as_version=4)
    assert "quick 5" in str(executed.cells)
    out = capfd.readouterr().out
    assert "[1/3] 01_good … ok" in out
    assert "[2/3] 02_failing … failed" in out


@pytest.mark.slow
def test_resume_repeats_only_what_failed_or_changed(course, quick, tmp_path, capfd):
    build = tmp_path / "build"
    run_notebooks(quick, folder=course, build=build)
    write_notebook(course, "02_failing", "print('mended')")
    capfd.readouterr()
    reports = run_notebooks(quick, folder=course, build=build, resume=True)
    out = capfd.readouterr().out
    assert [report.status for report in reports] == ["ok"] * 3
    assert out.count("done before") == 2
    assert "[2/3] 02_failing … ok" in out


@pytest.mark.slow
def test_a_dead_kernel_is_a_failure_with_its_cell(course, quick, tmp_path):
    write_notebook(course, "02_failing", "x = 1", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    reports = run_notebooks(quick, only=["02", "03"], folder=course, build=tmp_path / "build")
    assert [report.status for report in reports] == ["failed", "ok"]
    assert reports[0].error.startswith("cell 4 (import os, signal")
    assert "DeadKernelError" in reports[0].error


def test_an_unknown_parameter_is_an_error_before_anything_runs(course, quick, tmp_path):
    with pytest.raises(ValueError, match=r"parameter 'sise' is not one of 01_good, which has profile, size"):
        run_notebooks(quick, folder=course, build=tmp_path / "build", parameters={"sise": 5})
    assert not list((tmp_path / "build").glob("*.ipynb"))


def test_only_takes_numbers_and_names_and_refuses_others(course):
    assert [path.stem for path in find_notebooks(["03", "01_good"], course)] == ["01_good", "03_last"]
    with pytest.raises(ValueError, match=r"only names \['07'\]; the notebooks are 01_good"):
        find_notebooks(["07"], course)


def test_parameters_are_read_from_the_tagged_cell(course):
    assert parameters_of(course / "01_good.ipynb") == {"profile": "quick", "size": 1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--profile", "huge"], "profile is 'huge'; it must be one of quick, laptop, gpu, paper"),
        (["run", "--only", "77"], "only names ['77']"),
        (["run", "--only", "01", "-p", "sise=1"], "parameter 'sise' is not one of 01_two_outcomes"),
        (["run", "-p", "profile=laptop"], "choose it with --profile"),
        (["run", "-p", "size"], "must have the form name=value"),
        (["pretrain", "evaluate", "no-such-model"], "model 'no-such-model' is neither"),
    ],
)
def test_wrong_usage_is_exit_code_2_with_a_reason(arguments, message, capsys, tmp_path):
    assert main([*arguments, *(["--build", str(tmp_path)] if arguments[0] == "run" else [])]) == 2
    assert message in capsys.readouterr().err


def test_a_profile_that_wants_a_gpu_says_so(monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["run", "--profile", "paper"]) == 2
    message = capsys.readouterr().err
    assert "wants a CUDA GPU" in message
    assert "PROFILE=laptop" in message


@pytest.mark.slow
def test_the_command_works_from_any_directory_and_its_last_lines_name_the_failure(tmp_path):
    """`python -m bonlib run` as a user types it, on a notebook of the course made to fail by a parameter."""
    command = [sys.executable, "-m", "bonlib", "run", "--only", "01", "--build", "out", "-p", "p_best=2.0"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 1, done.stderr
    last = done.stdout.strip().splitlines()[-1]
    assert last.startswith("FAILED 01_two_outcomes, cell 4 (import numpy as np): ValueError: probs[0] is -1.0")
    assert json.loads((tmp_path / "out" / "reports.json").read_text())[0]["status"] == "failed"
    site = tmp_path / "out" / "site"
    assert f"0 of 1 notebooks ran well; open {site / 'index.html'}" in done.stdout
    assert "probs[0] is -1.0" in (site / "notebooks" / "01_two_outcomes.html").read_text()
    assert "not run" in (site / "times.html").read_text()


@pytest.mark.slow
def test_an_unreadable_log_of_earlier_runs_does_not_matter(course, quick, tmp_path):
    (tmp_path / "reports.json").write_text('[{"name": "01_go')
    (report,) = run_notebooks(quick, only=["01"], folder=course, build=tmp_path, resume=True)
    assert report.status == "ok"
    assert report.commit
