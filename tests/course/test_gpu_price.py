"""The script for a GPU works before one is at hand: its dry run, from a folder alone."""

import os
import subprocess
import sys

import pytest

from bonlib.course.experiments.results import read_rows
from bonlib.course.runner import ROOT

SCRIPT = ROOT / "benchmarks" / "gpu_price.py"


@pytest.fixture
def call(tmp_path):
    def script(*given):
        environment = os.environ | {"BONLIB_STORE": str(tmp_path / "store")}
        command = [sys.executable, SCRIPT, *given, "--tiny"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return script


def test_the_dry_run_prepares_runs_and_goes_on_where_its_time_was_over(tmp_path, call):
    folder = tmp_path / "carried"
    call("prepare", folder)
    assert (folder / "openings.json").stat().st_size < 2**20
    assert "the minutes are over" in call("run", folder, "--minutes", "0.1")
    cut_off = len(read_rows(folder / "price.parquet"))
    assert "10 runs in" in call("run", folder, "--copy", tmp_path / "home")
    rows = read_rows(folder / "price.parquet")
    assert cut_off < len(rows) == 10
    assert rows[["reverse_kl", "forward_kl", "win_rate", "seen_win_rate", "seen_kl"]].notna().all(axis=None)
    assert len(read_rows(tmp_path / "home" / "price.parquet")) == 10
    speeds = read_rows(tmp_path / "home" / "speed.parquet")
    assert speeds["what"].tolist() == ["draws", "draws", "stored draws", "VbonBound", "BonRegression"]
    assert speeds["per_second"].gt(0).all()


def test_so_does_a_method_on_the_readable_reference(tmp_path, call):
    call("prepare", tmp_path, "--model", "imdb-smollm2")
    call("train", tmp_path, "--model", "imdb-smollm2", "--method", "bon-sft")
    rows = read_rows(tmp_path / "price.parquet")
    assert rows["target"].tolist() == [8, 32]
    assert rows["profile"].tolist() == 2 * ["laptop, readable, 1024 at once"]
    assert rows["reference"].str.startswith("imdb-smollm2@").all()
