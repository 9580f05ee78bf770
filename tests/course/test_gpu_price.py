"""The script for a GPU works before one is at hand: its dry run, from a folder alone."""

import os
import subprocess
import sys

from bonlib.course.experiments.results import read_rows
from bonlib.course.runner import ROOT

SCRIPT = ROOT / "benchmarks" / "gpu_price.py"


def test_the_dry_run_prepares_runs_and_goes_on_where_its_time_was_over(tmp_path):
    def call(*given):
        environment = os.environ | {"BONLIB_STORE": str(tmp_path / "store")}
        command = [sys.executable, SCRIPT, *given, "--tiny"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

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
