"""Results on disk, who works on which run, and how measured ways of policies compare."""

from concurrent.futures import ProcessPoolExecutor
from functools import partial

import numpy as np
import pandas as pd
import pytest
from filelock import FileLock

from bonlib.course.experiments import exact_runs, grids, noise, summarisation
from bonlib.course.experiments.price import HELD_OUT, own_objective
from bonlib.course.experiments.results import (
    RESULTS,
    add_run,
    claim,
    done_runs,
    height,
    lead,
    read_paths,
    read_rows,
    read_sweeps,
    with_fields,
)
from bonlib.course.experiments.sentiment import Harness
from bonlib.course.profiles import VARIANTS, get_profile


def test_a_run_replaces_what_it_had_and_new_columns_are_added(tmp_path):
    file = tmp_path / "folder" / "runs.parquet"
    assert list(read_rows(file)["run"]) == []
    assert read_rows(file, "curves").empty
    assert done_runs(file) == set()
    add_run(file, "1e5", {"reward": 0.5}, curves=[{"step": 1}, {"step": 2}])
    add_run(file, "00", {"reward": 0.7, "kl": 2.0, "m": 8}, curves=[])
    add_run(file, "1e5", {"reward": 0.1, "m": None}, curves=[{"step": 1, "kl": 0.5}, {"step": 3}])
    rows = read_rows(file)
    assert list(rows) == ["run", "reward", "kl", "m"]
    assert rows["run"].tolist() == ["00", "1e5"]  # as text, whatever it looks like
    assert rows["reward"].tolist() == [0.7, 0.1]
    assert rows["kl"].isna().tolist() == [False, True]
    assert done_runs(file) == {"00", "1e5"}
    curves = read_rows(file, "curves")
    assert curves[["run", "step"]].values.tolist() == [["1e5", 1], ["1e5", 3]]
    assert curves["step"].dtype == int
    assert curves["kl"].tolist() == pytest.approx([0.5, np.nan], nan_ok=True)
    assert read_rows(file, "texts").empty  # there are none


def test_a_part_of_another_name_is_refused(tmp_path):
    with pytest.raises(ValueError, match="part is 'curve'; it must be one of curves, prompts, texts"):
        add_run(tmp_path / "runs.parquet", "a", {}, curve=[])


def test_several_processes_write_one_file(tmp_path):
    file = tmp_path / "runs.parquet"
    with ProcessPoolExecutor(2) as pool:
        list(pool.map(partial(add_run, file, row={"x": 1}), "abcdefgh"))
    assert done_runs(file) == set("abcdefgh")
    assert [path for path in tmp_path.iterdir() if not path.name.endswith(".lock")] == [file]


def test_a_piece_of_work_is_claimed_once_and_let_go_of_after_an_error(tmp_path):
    lock = tmp_path / "folder" / "run.lock"
    with claim(lock) as ours, claim(lock) as theirs:
        assert ours
        assert not theirs
    with pytest.raises(RuntimeError), claim(lock):
        raise RuntimeError
    with claim(lock) as ours:
        assert ours
    with FileLock(lock), claim(lock) as ours:
        assert not ours


@pytest.mark.parametrize(
    ("sweep", "runs"),
    [
        ("sentiment", grids.grid),
        ("cdf", grids.cdf_grid),
        ("budget", grids.budget_grid),
        ("bond", grids.bond_grid),
        ("noise", noise.noise_grid),
        ("tldr", summarisation.grid),
    ],
)
def test_the_runs_that_the_notebooks_read_are_found_as_done(sweep, runs):
    laptop = get_profile("laptop")
    harness = (summarisation.SummaryHarness if sweep == "tldr" else Harness)(laptop)
    file = RESULTS / f"{sweep}.parquet"
    methods = sorted(set(read_rows(file)["method"]))  # a method that was added since has no run yet
    assert {harness.identity(run) for run in runs(laptop, methods)} == done_runs(file)
    parts = {part: read_rows(file, part) for part in ("curves", "prompts", "texts")}
    assert all(set(part["run"]) == done_runs(file) for part in parts.values())


def test_the_runs_of_the_price_are_found_as_done_and_rates_were_chosen_by_the_methods_themselves():
    laptop, file = get_profile("laptop"), RESULTS / "price.parquet"
    grid = {
        Harness(profile).identity(run): run
        for variant, changed in {None: lambda profile: profile, **VARIANTS}.items()
        for profile in [changed(laptop)]
        for run in grids.price_grid(profile, variant=variant)
    }
    assert done_runs(file) <= set(grid)
    missing = [run for identity, run in grid.items() if identity not in done_runs(file)]
    # Second seeds at a rate that overfits are for who has half an hour.
    about = {
        (run.method, run.target, run.seed, *(dict(run.changes)[name] for name in ("steps", "learning_rate")))
        for run in missing
    }
    assert about <= {("bon-sft", 32, 1, grids.LONGEST, 1e-4), ("bon-regression", 32, 1, grids.LONGEST, 3e-5)}
    rows = read_rows(file).assign(own=lambda rows: own_objective(rows, read_rows(file, "curves")).to_numpy())
    usual = rows["profile"].eq("laptop") & rows["lora_rank"].eq(0) & rows["responses"].eq(64 * rows["steps"])
    rows = rows[usual & rows["seed"].eq(0) & (rows["target"].eq(8) | rows["steps"].isin(grids.BUDGETS))]
    offline = rows["algorithm"].eq("offline")
    held_out = read_rows(HELD_OUT)
    assert set(held_out["run"]) == set(rows.loc[offline, "run"])
    rows = rows.merge(held_out, how="left", on="run")
    for objective, chosen, methods in (
        ("own", grids.CHOSEN | grids.OVERFIT, grids.PRICED),
        ("held_out", grids.CHOSEN, set(rows["method"][offline.to_numpy()])),
    ):
        kind = ["method", "target", "steps"]
        best = rows.dropna(subset=objective).groupby(kind)[objective].idxmin()
        best = rows.loc[best].set_index(kind)["learning_rate"].to_dict()
        wanted = {key: rate for key, rate in chosen.items() if key[0] in methods and key[1:] != (32, grids.LONGEST)}
        assert best == wanted


def test_the_exact_runs_are_found_as_done():
    methods = {run.identity for run in [*exact_runs.search(), *exact_runs.grid()]}
    assert methods == done_runs(exact_runs.TABLE)
    assert {run.identity for run in exact_runs.bond_grid()} == done_runs(exact_runs.BOND_TABLE)


def test_a_measurement_knows_its_run(tmp_path):
    for run, method in (("aa", "bond"), ("bb", "jbond")):
        curves = [{"step": step, "kl": step / 10, "method": "?"} for step in (1, 2)]
        add_run(tmp_path / "t.parquet", run, {"method": method, "kl": 9.0}, curves=curves)
    paths = read_paths(tmp_path / "t.parquet", ["method"])
    assert paths[["run", "method", "step", "kl"]].values.tolist() == [
        ["aa", "bond", 1, 0.1], ["aa", "bond", 2, 0.2], ["bb", "jbond", 1, 0.1], ["bb", "jbond", 2, 0.2],
    ]  # fmt: skip


def test_a_profile_is_read_from_several_sweeps(tmp_path):
    for sweep, run in (("one", "aa"), ("two", "bb")):
        row = {"profile": "laptop", "method": "bond", "value": 8.0, "seed": 0, "options": "n=4", "m": 200, "steps": 2}
        curves = [{"step": 1, "kl": 7.0, "test_kl": 0.5, "loss": 3.0}]
        add_run(tmp_path / f"{sweep}.parquet", run, {**row, "kl": 1.0}, curves=curves)
    add_run(tmp_path / "two.parquet", "cc", {"profile": "quick"})
    runs, paths = read_sweeps(tmp_path, ["one", "two"], "laptop", n=2)
    assert runs[["sweep", "run", "kl", "n"]].values.tolist() == [["one", "aa", 1.0, 4.0], ["two", "bb", 1.0, 4.0]]
    assert paths[["sweep", "run", "step", "kl", "n"]].values.tolist() == [
        ["one", "aa", 1, 0.5, 4.0], ["two", "bb", 1, 0.5, 4.0],
    ]  # fmt: skip


def test_fields_are_read_from_options_and_default_where_there_are_none():
    options = ["n=4; anchor_every=50", "anchor_rate=0.05; regulariser=-1.0", np.nan, ""]
    rows = with_fields(pd.DataFrame({"options": options}), n=2, anchor_every=1, regulariser=0, anchor_rate=0.02)
    assert rows["n"].tolist() == [4, 2, 2, 2]  # the n of "regulariser=-1.0" is not taken for it
    assert rows["anchor_every"].tolist() == [50, 1, 1, 1]
    assert rows["regulariser"].tolist() == [0, -1, 0, 0]
    assert rows["anchor_rate"].tolist() == [0.02, 0.05, 0.02, 0.02]


def path(kls, rewards, run="a"):
    return pd.DataFrame({"run": run, "step": range(len(kls)), "kl": kls, "reward": rewards})


def test_height_is_that_of_the_mean_path_and_nan_beyond_it():
    both = pd.concat([path([0, 1, 2], [0.0, 0.4, 0.6]), path([0, 3, 4], [0.0, 0.6, 0.8], "b")])
    assert height(both, [0, 1, 2, 3]) == pytest.approx([0, 0.25, 0.5, 0.7])
    assert np.isnan(height(both, [-0.1, 3.1])).all()


def test_lead_is_the_mean_at_the_places_of_the_first_path():
    upper, lower = path([0, 1, 2, 8], [0, 0.5, 0.7, 0.9]), path([0, 2, 4], [0, 0.4, 0.5])
    assert lead(upper, lower) == pytest.approx((0.3 + 0.3) / 2)
    assert lead(upper, lower, up_to=1.5) == pytest.approx(0.3)
    assert np.isnan(lead(path([5, 6], [1, 1]), lower))
