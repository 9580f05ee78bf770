"""Reading and comparing the measured ways of policies."""

import numpy as np
import pandas as pd
import pytest

from bonlib.course.experiments.paths import height, lead, read_paths, read_sweeps, verdict, with_fields
from bonlib.course.experiments.results import add_rows


def test_a_measurement_knows_its_run(tmp_path):
    for run, method in (("aa", "bond"), ("bb", "jbond")):
        add_rows(tmp_path / "t.csv", run, [{"method": method, "kl": 9.0}])
        add_rows(tmp_path / "t_curves.csv", run, [{"step": step, "kl": step / 10, "method": "?"} for step in (1, 2)])
    paths = read_paths(tmp_path / "t.csv", ["method"])
    assert paths[["run", "method", "step", "kl"]].values.tolist() == [
        ["aa", "bond", 1, 0.1], ["aa", "bond", 2, 0.2], ["bb", "jbond", 1, 0.1], ["bb", "jbond", 2, 0.2],
    ]  # fmt: skip


def test_a_profile_is_read_from_several_sweeps(tmp_path):
    for sweep, run in (("one", "aa"), ("two", "bb")):
        row = {"profile": "laptop", "method": "bond", "value": 8.0, "seed": 0, "options": "n=4", "m": 200, "steps": 2}
        add_rows(tmp_path / f"{sweep}.csv", run, [{**row, "kl": 1.0}])
        add_rows(tmp_path / f"{sweep}_curves.csv", run, [{"step": 1, "kl": 7.0, "test_kl": 0.5, "loss": 3.0}])
    add_rows(tmp_path / "two.csv", "cc", [{"profile": "quick"}])
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


@pytest.mark.parametrize(
    ("parts", "word"),
    [([True, True], "holds"), ([True, False], "holds in part"), ([False], "fails"), ([], "undecided")],
)
def test_a_verdict_counts_its_parts(parts, word):
    assert verdict("c", parts, "e") == {"claim": "c", "here it": word, "evidence": "e"}
