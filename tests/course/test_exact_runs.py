"""The runs behind the table of notebook 04: each method as it says, each row once."""

from dataclasses import asdict, replace

import numpy as np
import pytest

from bonlib.course.experiments import exact_runs
from bonlib.course.experiments.exact_runs import ExactRun, N, matching_beta, world
from bonlib.course.experiments.results import read_rows
from bonlib.exact import kl_divergence


@pytest.mark.parametrize("reward", exact_runs.REWARDS)
@pytest.mark.parametrize("kind", ["raw", "calibrated"])
def test_a_matching_beta_spends_as_much_as_best_of_n(reward, kind):
    beta = matching_beta(reward, kind)
    spent = [
        (kl_divergence(o.tilt(beta, kind), o.probs), kl_divergence(o.best_of(N), o.probs))
        for o in world(reward).outcomes
    ]
    tilt, best = np.mean(spent, axis=0)
    assert tilt == pytest.approx(best, rel=1e-4)  # β is rounded


def test_no_run_is_there_twice():
    runs = [*exact_runs.search(), *exact_runs.grid(), *exact_runs.bond_grid()]
    assert len({run.identity for run in runs}) == len(runs)


@pytest.mark.parametrize(
    "run",
    [
        ExactRun("vbon", policy="table"),
        ExactRun("vbon", "vowels", "table"),
        ExactRun("vbon-bound", policy="table", training="samples", m=8, smoothing="posterior"),
        ExactRun("kl-rl-rloo", policy="table", beta=1.0),
        ExactRun("bon-sft", policy="table"),
        ExactRun("bon-sft", policy="table", training="samples"),
        ExactRun("bonbon", policy="table"),
        ExactRun("dpo", policy="table", beta=0.5),
        ExactRun("ipo", policy="table", beta=0.1),
        ExactRun("vbon", training="trainer"),
        ExactRun("bond", policy="table"),
        ExactRun("bond", policy="table", training="samples", options=(("anchor_every", 1), ("anchor_rate", 1.0))),
        ExactRun("jbond", policy="table"),
        ExactRun("jbond", training="samples"),
    ],
    ids=lambda run: f"{run.method}-{run.reward}-{run.training}",
)
def test_every_method_gets_nearer_to_best_of_n(run):
    few = replace(run, steps=3, learning_rate=0.1 if run.policy == "table" else 3e-3, count=64)
    row = exact_runs.run_exactly(few)
    prompts = world(run.reward)
    start = prompts.judge(prompts.ref_log_probs, N).means()
    assert all(row[name] == value for name, value in asdict(few).items())
    assert row["reverse_kl"] < start["reverse_kl"]
    assert row["win_rate"] > start["win_rate"]
    assert 0 < row["kl"] < 20


def test_a_row_is_made_once(tmp_path, capsys):
    runs = [ExactRun("vbon", policy="table", steps=1)]
    for _ in range(2):
        exact_runs.run_all(runs, table=tmp_path / "exact.parquet")
    assert len(capsys.readouterr().out.splitlines()) == 1
    assert read_rows(tmp_path / "exact.parquet")["run"].tolist() == [runs[0].identity]


def test_a_run_that_meets_a_log_cdf_of_minus_infinity_says_so():
    run = ExactRun("vbon-bound", policy="table", training="samples", m=2, smoothing="none", steps=1)
    assert np.isnan(exact_runs.run_exactly(run)["reverse_kl"])


def test_what_makes_no_run_is_refused():
    with pytest.raises(ValueError, match="beta is None"):
        exact_runs.run_exactly(ExactRun("dpo"))
    with pytest.raises(ValueError, match="training is 'exakt'; it must be one of optimum, exact"):
        ExactRun("vbon", training="exakt")
    with pytest.raises(ValueError, match="smoothing is ''"):
        ExactRun("vbon", m=8)
    with pytest.raises(ValueError, match="leave m out"):
        ExactRun("vbon", training="trainer", m=8, smoothing="posterior")
