"""The runner on notebooks that are good, failing and given the wrong parameters."""

import json
import os
import re
import time
from dataclasses import replace
from pathlib import Path

import nbformat
import psutil
import pytest

from bonlib.__main__ import main
from bonlib.course.check import Machine
from bonlib.course.profiles import get_profile
from bonlib.course.runner import Report, find_notebooks, in_order, jobs_for, parameters_of, run_notebooks

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
    reports = run_notebooks(quick, folder=course, build=build, parameters={"size": 5}, pages=lambda: tmp_path / "site")
    assert [report.status for report in reports] == ["ok", "failed", "ok"]
    assert "RuntimeError: deliberate" in reports[1].error
    assert reports[1].error.startswith("cell 4 (raise RuntimeError('deliberate'))")  # as counted in the source
    assert [report.checks for report in reports] == [0, 2, 1]
    assert (build / "figures" / "01_1.png").read_bytes().startswith(b"\x89PNG")
    executed = nbformat.read(build / "01_good.ipynb", as_version=4)
    assert "quick 5" in str(executed.cells)
    assert [row["name"] for row in json.loads((build / "reports.json").read_text())] == [row.name for row in reports]
    lines = sorted(capfd.readouterr().out.splitlines(), key=lambda line: line.split()[-1])
    pattern = r"\[ \d/3\] (\S+)  (\w+)  \d+ s  " + re.escape(str(tmp_path / "site" / "notebooks"))
    assert [re.match(pattern, line).groups() for line in lines] == [
        ("01_good", "ok"), ("02_failing", "failed"), ("03_last", "ok")
    ]  # fmt: skip
    assert sorted(line[:5] for line in lines) == ["[ 1/3", "[ 2/3", "[ 3/3"]
    assert not list((build / "running").iterdir())


@pytest.mark.slow
def test_resume_repeats_only_what_failed_or_changed(course, quick, tmp_path, capfd):
    build = tmp_path / "build"
    run_notebooks(quick, folder=course, build=build)
    write_notebook(course, "02_failing", "print('mended')")
    capfd.readouterr()
    reports = run_notebooks(quick, folder=course, build=build, resume=True)
    out = capfd.readouterr().out
    assert [report.status for report in reports] == ["ok"] * 3
    assert out.splitlines()[:2] == ["[ 1/3] 01_good  done before", "[ 2/3] 03_last  done before"]
    assert "[ 3/3] 02_failing  ok" in out


@pytest.mark.slow
def test_a_dead_kernel_is_a_failure_with_its_cell(course, quick, tmp_path):
    write_notebook(course, "02_failing", "x = 1", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    reports = run_notebooks(quick, only=["02", "03"], folder=course, build=tmp_path / "build")
    assert [report.status for report in reports] == ["failed", "ok"]
    assert reports[0].error.startswith("cell 4 (import os, signal")
    assert "DeadKernelError" in reports[0].error


@pytest.mark.slow
def test_two_run_at_a_time_each_with_its_share_of_the_cores(course, quick, tmp_path, monkeypatch, capfd):
    meet = (
        "import os, time; from pathlib import Path\n"
        "print('threads', os.environ['OMP_NUM_THREADS'], Path.cwd())\n"
        "Path('{0}.here').touch()\n"
        "while not Path('{1}.here').exists(): time.sleep(0.05)"
    )
    write_notebook(course, "01_good", meet.format("01", "02"))  # each ends only if both run
    write_notebook(course, "02_failing", meet.format("02", "01"))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("bonlib.course.check.this_machine", lambda: Machine(6, 16))
    reports = run_notebooks(quick, only=["01", "02"], folder=course, build=tmp_path, jobs=2)
    assert [report.status for report in reports] == ["ok", "ok"]
    for name in ("01_good", "02_failing"):
        assert f"threads 3 {course}" in str(nbformat.read(tmp_path / f"{name}.ipynb", as_version=4).cells)
    assert "OMP_NUM_THREADS" not in os.environ


@pytest.mark.slow
def test_an_interrupt_leaves_no_kernel_and_keeps_what_had_ended(course, quick, tmp_path, monkeypatch):
    """Where it comes from does not matter: here it comes while pages are made."""
    mark = tmp_path / "kernel"
    write_notebook(
        course, "02_failing", f"import os, time; open({str(mark)!r}, 'w').write(str(os.getpid()))", "time.sleep(600)"
    )

    def pages():
        if mark.exists() and (tmp_path / "01_good.ipynb").exists():
            raise KeyboardInterrupt
        return tmp_path / "site"

    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_notebooks(quick, only=["01", "02", "03"], folder=course, build=tmp_path, jobs=2, pages=pages)
    assert time.monotonic() - begun < 300
    assert not psutil.pid_exists(int(mark.read_text()))
    known = {row["name"]: row["status"] for row in json.loads((tmp_path / "reports.json").read_text())}
    assert "02_failing" not in known
    assert known["01_good"] == "ok"
    write_notebook(course, "02_failing", "print('mended')")
    reports = run_notebooks(quick, folder=course, build=tmp_path, resume=True)
    assert [report.status for report in reports] == ["ok"] * 3


@pytest.mark.slow
def test_pages_that_cannot_be_made_do_not_end_a_run(course, quick, tmp_path, capfd):
    def pages():
        raise OSError("disk is full")

    (report,) = run_notebooks(quick, only=["01"], folder=course, build=tmp_path, pages=pages)
    assert report.status == "ok"
    assert "no pages: disk is full\n[ 1/1] 01_good  ok" in capfd.readouterr().out


def test_one_worker_goes_through_the_course_and_the_others_begin_with_the_longest():
    course = [Path(f"{number:02}_name.ipynb") for number in range(6)]
    past = {
        path.stem: Report(path.stem, "ok", seconds) for path, seconds in zip(course, (4, 5, 6, 7, 8, 20), strict=True)
    }

    def order(paths, past, jobs):
        return [int(path.stem[:2]) for path in in_order(paths, past, jobs)]

    assert order(course, past, 1) == [0, 1, 2, 3, 4, 5]
    assert order(course, past, 2) == [0, 5, 1, 2, 3, 4]
    assert order(course, past, 3) == [0, 5, 4, 1, 3, 2]
    assert order([Path(f"{number:02}_name.ipynb") for number in (3, 4, 11)], {}, 2) == [3, 11, 4]


@pytest.mark.parametrize(
    ("cores", "memory", "device", "wanted"),
    [(2, 16, "cpu", 2), (2, 6, "cpu", 1), (8, 16, "cpu", 4), (1, 1, "cpu", 1), (8, 64, "cuda", 1)],
)
def test_jobs_are_as_many_as_cores_and_memory_allow(cores, memory, device, wanted, quick, monkeypatch):
    monkeypatch.setattr("bonlib.course.check.this_machine", lambda: Machine(cores, memory))
    monkeypatch.setattr("bonlib.models.loaded.pick_device", lambda name: device)
    free = psutil.virtual_memory()._replace(available=memory * 1e9)
    monkeypatch.setattr("psutil.virtual_memory", lambda: free)
    assert jobs_for(replace(quick, memory_gb=4)) == wanted


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
        (["run", "--jobs", "0"], "jobs is 0; it must be a whole number of at least 1"),
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
def test_an_unreadable_log_of_earlier_runs_does_not_matter(course, quick, tmp_path):
    (tmp_path / "reports.json").write_text('[{"name": "01_go')
    (report,) = run_notebooks(quick, only=["01"], folder=course, build=tmp_path, resume=True)
    assert report.status == "ok"
    assert report.commit
