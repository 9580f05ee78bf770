"""The sweeps of the notebooks on sentiment: a row a run, nothing made twice, and no run lost for another's trouble."""

from dataclasses import replace

import pandas as pd
import pytest
from accelerate.state import AcceleratorState
from filelock import FileLock

from bonlib.__main__ import main
from bonlib.course.experiments import exact_runs, summarisation
from bonlib.course.experiments.grids import (
    RATES,
    bond_grid,
    budget_grid,
    cdf_grid,
    grid,
    rate_grid,
    setting_values,
)
from bonlib.course.experiments.results import RESULTS, read_rows
from bonlib.course.experiments.sentiment import Harness, Run
from bonlib.course.profiles import PROFILES, VARIANTS, get_profile
from bonlib.draws.store import SampleStore
from bonlib.methods import METHODS
from bonlib.models.responses import concatenate

quick = get_profile("quick")
SMALL = replace(
    quick,
    imdb=replace(quick.imdb, train_prompts=8, draws=8, opponents=8, batch_size=16, max_new_tokens=6),
    training=replace(
        quick.training, draws=16, cdf_samples=8, ns=(4,), bond_ns=(4,), steps=3, test_prompts=4, responses=2, methods=()
    ),
)


@pytest.fixture
def harness(tmp_path):
    AcceleratorState._reset_state(reset_partial_state=True)
    yield Harness(SMALL, SampleStore(tmp_path / "store"), build=tmp_path / "build")
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.slow
def test_a_sweep_stores_a_row_a_run_and_makes_none_twice(harness, tmp_path, capsys):
    runs, results = grid(SMALL), tmp_path / "results"
    taken = runs[0]
    folder = harness.folder(taken)
    folder.parent.mkdir(parents=True)
    with FileLock(folder.with_name(f"{folder.name}.lock")):  # another process is at it
        assert harness.run_all(runs, results=results)
    assert len(capsys.readouterr().out.splitlines()) == len(METHODS) - 1
    assert harness.run_all(runs, results=results)
    assert len(capsys.readouterr().out.splitlines()) == 1
    rows = read_rows(results / "sentiment.parquet")
    assert sorted(rows["method"]) == sorted(METHODS)
    assert set(rows["run"]) == {harness.identity(run) for run in runs}
    assert rows[["reward", "win_rate", "kl", "entropy", "kl_se", "seconds", "responses"]].notna().all(axis=None)
    assert set(read_rows(results / "sentiment.parquet", "prompts").groupby("run").size()) == {4}
    assert set(read_rows(results / "sentiment.parquet", "texts").groupby("run").size()) == {4}
    curves = read_rows(results / "sentiment.parquet", "curves")
    assert (curves.groupby("run")["step"].max() == 3).all()
    assert curves["test_reward"].notna().all()


def test_an_n_that_cannot_be_measured_is_refused_before_training(harness):
    with pytest.raises(ValueError, match="n is 5; profile quick has 8 draws a test prompt"):
        harness.train(Run("bond", 5, 0))


def test_the_second_judge_is_asked_about_an_opponent_once(harness, monkeypatch):
    opponents = [responses[8:] for responses in harness.test.draws.responses]
    told = harness.judged_by_gold(concatenate(opponents))
    assert harness.gold_opponents == pytest.approx(told, abs=1e-5)
    monkeypatch.setattr(type(harness.gold), "score", None)
    later = Harness(SMALL, harness.store, build=harness.build)
    assert (later.gold_opponents == harness.gold_opponents).all()


@pytest.mark.slow
def test_a_run_that_diverges_does_not_stop_the_others(harness, tmp_path, capsys):
    wild = Run("kl-rl-rloo", 0.1, 0, changes=(("learning_rate", 1e4), ("max_kl", 1.0)))
    assert not harness.run_all([wild, Run("dpo", 0.1, 0)], results=tmp_path / "results")
    assert "Likely cause" in capsys.readouterr().err
    assert list(read_rows(tmp_path / "results" / "sentiment.parquet")["method"]) == ["dpo"]


def test_the_grids_cover_what_the_notebooks_compare():
    laptop = PROFILES["laptop"]
    counts = pd.Series([run.method for run in grid(laptop)]).value_counts()
    assert set(counts.index) == set(METHODS)
    stored = set(read_rows(RESULTS / "sentiment.parquet")["method"])
    assert set(counts[list(stored)]) == {10}  # five values and two seeds
    assert [run.m for run in cdf_grid(laptop)][:6] == [2, 8, 32, 128, 512, 32]
    assert len(rate_grid(laptop)) == len(METHODS) * len(RATES)
    everything = [make(laptop) for make in (grid, cdf_grid, rate_grid, budget_grid, bond_grid)]
    identities = [Harness(laptop).identity(run) for runs in everything for run in runs]
    assert len(set(identities)) == len(identities)


def test_a_new_method_is_in_the_sweeps_by_what_it_registers(monkeypatch):
    entry = replace(METHODS["bonbon"], name="newcomer", label="Newcomer", setting="margin", grid=(1.0, 2.0, 4.0))
    monkeypatch.setitem(METHODS, "newcomer", entry)
    for profile, values in ((PROFILES["quick"], [1.0]), (PROFILES["laptop"], [1.0, 2.0, 4.0])):
        assert list(setting_values(profile, "newcomer")) == values
        runs = [*grid(profile, ["newcomer"]), *rate_grid(profile, ["newcomer"])]
        assert {run.value for run in runs} == set(values)
        assert Harness(profile).settings(runs[0]).learning_rate == 1e-4
        assert summarisation.grid(profile, ["newcomer"])[0].value == 1.0
        assert summarisation.SummaryHarness(profile).usual("newcomer")["learning_rate"] == 5e-4
    assert exact_runs.label("newcomer", None) == "Newcomer"
    assert exact_runs.ExactRun("newcomer").method == "newcomer"


def test_a_beta_of_another_meaning_is_not_that_of_kl_rl():
    laptop, paper = PROFILES["laptop"], PROFILES["paper"]
    assert setting_values(laptop, "wind") == setting_values(paper, "wind")[:5] == METHODS["wind"].grid
    assert setting_values(laptop, "pf") == laptop.training.betas
    assert setting_values(paper, "max-at-k") == setting_values(paper, "kl-rl-ppo") == paper.training.betas


def test_a_profile_of_one_seed_and_few_steps_can_make_the_runs_of_bond():
    runs = bond_grid(PROFILES["quick"])
    assert all(run.make() for run in runs)
    assert {run.cdf for run in runs} == {"samples"}  # a quantile model takes minutes


def test_variants_have_other_numbers_of_prompts_or_of_draws():
    for name, sizes in {
        "few-prompts": (128, 512, 200), "many-prompts": (2048, 128, 128), "few-draws": (512, 128, 128)
    }.items():  # fmt: skip
        profile = VARIANTS[name](PROFILES["laptop"])
        assert (profile.imdb.train_prompts, profile.training.draws, profile.training.cdf_samples) == sizes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "must be one of"),
        (["vbon"], "give --n"),
        (["dpo", "--n", "4"], "give --beta"),
        ([], "name one method"),
        (["vbon", "--n", "4", "--set", "stepz=3"], "'stepz' is unknown"),
        (["--sweep", "sentiment", "--set", "steps=3"], "leave out --set"),
        (["--sweep", "sentiment", "--n", "3"], "leave out --set, --out, --n"),
        (["dpo", "--sweep", "exact"], "the sweep exact trains them all"),
        (["dpo", "--sweep", "cdf"], "method is 'dpo', whose setting is beta"),
        (["dpo", "--sweep", "bond"], "the sweep bond has no runs of it"),
        (["bond-iterative", "--every", "50", "--n", "4"], "the setting of bond-iterative is every, not --n"),
        (["jbond", "--rate", "0.1", "--set", "regulariser=high"], "--set has a value of the wrong kind"),
        (["vbon", "--n", "0", "--set", "steps=1"], "n is 0"),
        (["--sweep", "cdf", "--variant", "readable"], "--variant is for --sweep price"),
        (["vbon", "--n", "4", "--variant", "readable"], "--variant is for --sweep price"),
        (["--sweep", "price", "--variant", "large"], "variant is 'large'"),
    ],
)
def test_wrong_usage_is_named(arguments, message, capsys):
    assert main(["train", *arguments]) == 2
    assert message in capsys.readouterr().err
