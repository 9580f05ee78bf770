"""The report says of responses with scores what counting all subsets of them says."""

import itertools
import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from records_by_hand import records
from scipy.stats import spearmanr

from bonlib.estimates import best_of_n_kl, best_of_n_reward, best_of_n_win_rate
from bonlib.records.measures import draws_of_most, errors_over_draws, rank_correlation, rank_shares, some_numbers
from bonlib.records.report import report

RNG = np.random.default_rng(0)
RAGGED = [RNG.normal(size=size).round(1) for size in (6, 9, 6, 2, 7, 6, 6, 8, 6, 6)]


def subsets(values, n):
    """Of every n of a prompt's draws, places of the best, as many times as there are ways to break ties evenly."""
    for chosen in itertools.combinations(range(len(values)), n):
        best = max(values[place] for place in chosen)
        yield [place for place in chosen if values[place] == best]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), min_size=4, max_size=5), min_size=2, max_size=3), st.integers(0, 99))
def test_the_curve_is_that_of_all_subsets(rewards, seed):
    rng = np.random.default_rng(seed)
    gold = [rng.normal(size=len(mine)) for mine in rewards]
    correct = [rng.random(len(mine)) < 0.5 for mine in rewards]
    given_ = records(rewards, gold=gold, correct=correct)
    table = report(given_, most=4).curve.table
    lengths = np.split(given_.lengths, np.cumsum([len(mine) for mine in rewards])[:-1])
    assert list(table.index) == [1, 2, 3, 4]
    for n in table.index:
        kept = [list(subsets(mine, n)) for mine in rewards]

        def mean(values, kept=kept):
            return np.mean(
                [
                    np.mean([np.mean([v[i] for i in best]) for best in all_])
                    for v, all_ in zip(values, kept, strict=True)
                ]
            )

        assert table.loc[n, "reward"] == pytest.approx(mean(rewards))
        assert table.loc[n, "gold"] == pytest.approx(mean(gold))
        assert table.loc[n, "right"] == pytest.approx(mean(correct))
        assert table.loc[n, "length"] == pytest.approx(mean(lengths))
        ceiling = [np.mean([max(c) for c in itertools.combinations(mine, n)]) for mine in gold]
        solved = [np.mean([any(c) for c in itertools.combinations(mine, n)]) for mine in correct]
        assert table.loc[n, "gold_best"] == pytest.approx(np.mean(ceiling))
        assert table.loc[n, "solved"] == pytest.approx(np.mean(solved))


def test_the_curve_is_made_of_the_estimators_prompt_by_prompt():
    found = report(records(RAGGED))
    table = found.curve.table
    long_enough = [mine for mine in RAGGED if len(mine) >= 6]
    assert list(table.index) == [1, 2, 3, 4, 5, 6]
    for n in (1, 3, 6):
        value = np.array([best_of_n_reward(mine, n).value for mine in long_enough])
        assert table.loc[n, "reward"] == pytest.approx(value.mean())
        assert table.loc[n, "reward_se"] == pytest.approx(value.std(ddof=1) / 3)
    win = np.array([best_of_n_win_rate(mine, 5) for mine in long_enough])
    assert table.loc[5, "win_rate"] == pytest.approx(win.mean())
    assert np.isnan(table.loc[6, "win_rate"])  # a prompt of six has nobody to play against
    kl = np.array([best_of_n_kl(mine, 3) for mine in long_enough])
    assert table.loc[3, "kl"] == pytest.approx(kl.mean(), abs=1e-12)
    assert table.loc[3, "kl_se"] == pytest.approx(kl.std(ddof=1) / 3, abs=1e-12)
    assert np.isnan(table.loc[4, "kl"])  # draws say too little of it beyond half of them
    assert table.loc[3, "gain"] == pytest.approx(table.loc[3, "reward"] - table.loc[2, "reward"])
    assert not found.tables["prompts"].loc[3, "in_curve"]
    assert np.isnan(found.tables["prompts"].loc[3, "gain"])


@settings(max_examples=25, deadline=None)
@given(st.lists(st.permutations(range(6)), min_size=2, max_size=4))
def test_what_holds_without_ties(rewards):
    table = report(records(rewards)).curve.table
    ns = table.index[:-1].to_numpy()
    np.testing.assert_allclose(table["win_rate"][:-1], ns / (ns + 1))
    assert (np.diff(table["reward"]) >= -1e-12).all()
    np.testing.assert_allclose(table["control"], np.mean([np.mean(mine) for mine in rewards]))


def test_log_probabilities_are_used_where_they_can_be():
    rng = np.random.default_rng(0)
    probs, drawn = np.array([0.6, 0.2, 0.1, 0.1]), rng.choice(4, p=[0.6, 0.2, 0.1, 0.1], size=(5, 16))
    texts, logs = [[f"text {one}" for one in row] for row in drawn], np.log(probs)[drawn]
    known = report(records(drawn, texts, log_probs=logs))
    want = best_of_n_kl(drawn, 8, log_probs=logs, responses=texts)
    assert known.curve.table.loc[8, "kl"] == pytest.approx(want.mean())
    assert known.kl_from == "from the log-probabilities of the file"
    counted = report(records(drawn, texts)).curve.table.loc[8, "kl"]
    assert counted == pytest.approx(best_of_n_kl(drawn, 8).mean())
    for wrong, why in (
        (logs + 2, "above 0"),
        (np.where(drawn == 3, np.nan, logs), "are unknown"),
        (logs / 5, "more than 1 together"),
        (logs - 5, "are not those of the distribution"),
    ):
        found = report(records(drawn, texts, log_probs=wrong))
        assert found.kl_from.startswith("counted: ")
        assert why in found.kl_from
        assert found.curve.table.loc[8, "kl"] == pytest.approx(counted)


def test_the_responses_have_their_ranks():
    table = report(records([[3.0, 1.0, 1.0, 2.0], [5.0]], [["a", "b", "b", "c"], ["a"]])).tables["responses"]
    np.testing.assert_allclose(table["strict_cdf"], [0.75, 0, 0, 0.5, 0])
    np.testing.assert_allclose(table["cdf"], [1, 0.5, 0.5, 0.75, 1])
    np.testing.assert_allclose(table["mid_rank"], [4, 1.5, 1.5, 3, 1])
    # E log F≤ under Beta(k + 1, m − k + 1): k of m are no better.
    harmonic = np.append(0, np.cumsum(1 / np.arange(1, 20)))
    for k, m, found in zip((4, 2, 2, 3, 1), (4, 4, 4, 4, 1), table["log_cdf"], strict=True):
        assert found == pytest.approx(harmonic[k] - harmonic[m + 1])
    assert list(table["copies"]) == [1, 2, 2, 1, 1]
    assert list(table["tied"]) == [1, 2, 2, 1, 1]


def test_one_prompt_has_errors_by_the_jackknife():
    rewards = np.random.default_rng(0).normal(size=20)
    table = report(records([rewards])).curve.table
    for n in (1, 4, 16):
        assert table.loc[n, "reward_se"] == pytest.approx(best_of_n_reward(rewards, n).standard_error)
    left_out = [best_of_n_kl(np.delete(rewards.round(0), place), 4) for place in range(20)]
    rounded = report(records([rewards.round(0)])).curve.table
    assert rounded.loc[4, "kl_se"] == pytest.approx(np.sqrt(19 * np.var(left_out)))
    assert np.isnan(table.loc[20, "reward_se"])


@pytest.mark.parametrize("rewards", [[[1.0]], [[1.0], [2.0]], [[2.0] * 5] * 4, [[0.0] * 5], [[1e9, -1e9, 0.0]] * 2])
def test_little_is_enough(rewards, tmp_path):
    gold = [np.arange(len(mine)) for mine in rewards]
    answers, correct = [["x"] * len(mine) for mine in rewards], [[True] * len(mine) for mine in rewards]
    found = report(records(rewards, gold=gold, answers=answers, correct=correct))
    assert found.curve.table.loc[1, "reward"] == pytest.approx(np.mean(rewards), abs=1e-6)
    assert found.save(tmp_path).read_text().startswith("<!doctype html>")
    json.dumps(found.to_json(), allow_nan=False)


def test_how_many_draws_are_worth_what():
    rewards = [[0.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0], [0.0, 1.0, 1.0, 1.0]]
    found = report(records(rewards))
    prompts = found.tables["prompts"]
    np.testing.assert_allclose(prompts["gain"], [0.75, 0, 0.25])
    # The chance to have the one that is better: n/4. To have one of three: 3/4, then 1.
    np.testing.assert_allclose(prompts["enough"], [4, np.nan, 2])
    assert found.summary["gain"] == pytest.approx(1 / 3)
    assert found.summary["enough"] == 4
    assert found.summary["enough_by_prompt"]["0.5"] == 3


def test_gold_peaks_and_falls():
    rng = np.random.default_rng(0)
    proxy = rng.normal(size=(200, 32))
    found = report(records(proxy, gold=proxy - proxy**2 / 2)).summary["gold"]
    assert 2 <= found["peak_n"] < 10
    assert found["fall"] > 2 * found["fall_se"] > 0
    assert found["best_gain"] > found["gain"]


def test_majority_of_answers():
    answers = [["a", "a", "b"], ["b", None, "a"]]
    correct = [[True, True, False], [False, False, True]]
    votes = report(records([[0, 1, 2], [0, 1, 2]], answers=answers, correct=correct)).tables["votes"]
    assert list(votes.index) == [1, 2, 3]
    np.testing.assert_allclose(votes["majority"], [(2 / 3 + 1 / 3) / 2, (2 / 3 + 1 / 2) / 2, (1 + 1 / 2) / 2])


def test_right_and_wrong_are_a_score_where_there_is_no_other():
    found = report(records([[0, 0], [0, 0]], scores={}, correct=[[True, False], [True, True]]))
    np.testing.assert_allclose(found.curve.table["reward"], [0.75, 1.0])
    assert found.summary["reward"] == "correct"


def test_the_numbers_of_draws():
    assert some_numbers(5) == [1, 2, 3, 4, 5]
    few = some_numbers(100, 16, 2)
    assert few == [*range(1, 17), 23, 32, 45, 64, 91, 100]
    assert draws_of_most(records([[0.0] * 4] * 9 + [[0.0]])) == 4
    assert draws_of_most(records([[0.0] * 4] * 8 + [[0.0]] * 2)) == 2  # with one there is nothing to see


def test_ranks_correlate_as_scipy_has_it():
    first, second = np.round(RNG.normal(size=(2, 21))), np.round(RNG.normal(size=(2, 21)))
    given_ = records([first[0], first[1, :9], np.ones(4)])
    other = np.concatenate([second[0], second[1, :9], np.arange(4)])
    found = rank_correlation(given_, rank_shares(given_, given_.reward), rank_shares(given_, other))
    assert found[0] == pytest.approx(spearmanr(first[0], second[0]).statistic)
    assert found[1] == pytest.approx(spearmanr(first[1, :9], second[1, :9]).statistic)
    assert np.isnan(found[2])


def test_what_cannot_be_reported_on_is_named():
    with pytest.raises(ValueError, match=r"most is 9; the number of draws up to which the curve goes .* from 1 to 2"):
        report(records([[0.0, 1.0]]), most=9)
    with pytest.raises(ValueError, match="has no score"):
        report(records([[0.0, 1.0]], scores={}))
    bad = pd.DataFrame({"place": ["line 1"], "reason": ["no reward"], "row": ["{}"]})
    with pytest.raises(ValueError, match=r"no row that can be used; 1 .* because no reward: name the columns"):
        report(records([[]], bad=bad))


def test_tables_are_saved_and_read_again(tmp_path):
    found = report(records(RAGGED, gold=RAGGED))
    found.save(tmp_path / "folder")
    for name in found.tables:
        file = tmp_path / "folder" / (f"{name}.parquet" if name == "responses" else f"{name}.csv")
        again = pd.read_parquet(file) if name == "responses" else pd.read_csv(file)
        assert len(again) == len(found.tables[name])
    assert json.loads((tmp_path / "folder" / "summary.json").read_text()) == found.to_json()
    assert found.to_json()["draws"] == 6
    assert "prompts with fewer draws" in found.to_json()["findings"]
    assert "10 prompts" in repr(found)
    assert "prompts have fewer than 6 draws" in repr(found)
    assert "<table" in found._repr_html_()


@pytest.mark.parametrize("m", [10, 64, 4096])
def test_the_error_of_a_mean_over_draws_is_the_usual_one(m):
    values = np.random.default_rng(0).normal(size=m)
    found = errors_over_draws(lambda rows: {"mean": values[rows].mean(axis=1, keepdims=True)}, np.arange(m)[None])
    # From 16 parts of many draws it is known to a fifth or so.
    assert found["mean"][0] == pytest.approx(values.std(ddof=1) / np.sqrt(m), rel=0.5 if m == 4096 else 1e-9)


def test_scores_may_have_any_name():
    named = records([[1.0, 2.0]], scores={"cdf": np.array([1.0, 2.0]), "mine": np.array([0.0, 4.0])})
    table = report(named).tables["responses"]
    assert list(table["cdf"]) == [0.5, 1]
    assert list(table["score cdf"]) == [1, 2]
    assert list(table["mine"]) == [0, 4]
