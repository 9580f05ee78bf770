"""TRL beside our loop: runs resume, the page has what is stored and claims what holds, and its script runs on two."""

import json
import os
import re
import subprocess
import sys

import pytest

from bonlib.bridge.trl_checks import REQUIRED
from bonlib.course.experiments import trl_runs
from bonlib.course.experiments.results import read_rows
from bonlib.course.experiments.trl_runs import FIGURES, LABELS, TABLE, TrlRun, grid, run_all, run_once, table_of_runs
from bonlib.course.runner import ROOT

pytestmark = [
    pytest.mark.usefixtures("one_accelerator"),
    pytest.mark.filterwarnings("ignore:.*(checkpointing|pin_memory).*"),
]
PAGE = (ROOT / "TRAINERS.md").read_text()


@pytest.mark.parametrize("trainer", ["loop", "rloo", "grpo"])
def test_a_run_is_trained_and_judged(trainer):
    row = run_once(TrlRun(trainer, steps=2, count=4))
    assert row["trainer"] == trainer
    assert 0 < row["kl"] < 2
    assert row["reverse_kl"] > 0


def test_runs_that_have_a_row_are_not_done_again(tmp_path, monkeypatch):
    done = []

    def once(run):
        done.append(run)
        return {"trainer": run.trainer, "seed": run.seed, **dict.fromkeys(FIGURES, 0.5), "processor_seconds": 1.0}

    monkeypatch.setattr(trl_runs, "run_once", once)
    monkeypatch.setattr(trl_runs, "BUILD", tmp_path)
    for seeds in (1, 2):
        run_all(grid(seeds), table=tmp_path / "trl.parquet")
    assert len(done) == len(grid(2)) == len(set(done))
    assert "| our loop | 0.500 ± 0.000 |" in table_of_runs(tmp_path / "trl.parquet")
    with pytest.raises(ValueError, match="trainer is 'ppo'; it must be one of loop, rloo"):
        TrlRun("ppo")


def test_the_page_has_the_stored_runs_and_every_option():
    assert table_of_runs() in PAGE
    assert not [name for name in REQUIRED if f"`{name}=" not in PAGE]
    assert len(PAGE.splitlines()) < 120


def test_trls_rloo_ends_where_our_loop_does_and_grpo_elsewhere():
    rows = read_rows(TABLE)
    assert set(rows["run"]) == {run.identity for run in grid()}
    by_trainer = rows.groupby("trainer")[list(FIGURES)]
    mean, variance = by_trainer.mean(), by_trainer.sem() ** 2

    def apart(name):
        return (mean.loc[name] - mean.loc["loop"]).abs() / (variance.loc[name] + variance.loc["loop"]) ** 0.5

    assert (apart("rloo") < 3).all(), apart("rloo")
    for name in LABELS:
        if name.startswith("grpo"):
            assert apart(name)["reverse_kl"] > 5


@pytest.mark.slow
def test_the_script_of_the_page_runs_on_two_processes(tmp_path):
    script = tmp_path / "train_vbon.py"
    script.write_text(re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1])
    command = re.search(r"`accelerate (launch --multi_gpu --num_processes 2) train_vbon.py`", PAGE)[1].split()[1:]
    launch = [sys.executable, "-m", "accelerate.commands.launch", *command, "--main_process_port", "0", str(script)]
    done = subprocess.run(
        launch, capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"BONLIB_STORE": str(tmp_path)}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("2 processes, 16 responses at once each") == 2
    assert json.loads((tmp_path / "vbon-policy" / "config.json").read_text())["model_type"] == "gpt2"
