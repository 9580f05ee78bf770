"""What closeness costs: laws, costs and break-even."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bonlib.course.experiments.price import (
    BEST_OF_N,
    Lengths,
    as_good_as,
    below_by_gold,
    best_of_n_by_gold,
    break_even,
    held_out_loss,
    own_objective,
    power_law,
    query_cost,
    readable_runs,
    responses_until,
    training_cost,
)
from bonlib.course.experiments.sentiment import Harness, Run
from bonlib.course.profiles import get_profile
from bonlib.draws.samplers import SamplingSettings
from bonlib.estimates import best_of_n_weights
from bonlib.evaluate import TestSet

TEXTS = Lengths(prompt=6, response=24, judge=0.5)


@given(st.floats(-1, 2), st.floats(0.1, 10))
def test_an_exact_law_is_found(exponent, factor):
    responses = np.array([3200.0, 12800, 51200, 204800])
    law = power_law(responses, factor * responses**-exponent)
    assert law.exponent == pytest.approx(exponent, abs=1e-6)
    assert law.factor == pytest.approx(factor, rel=1e-4)
    assert law.scatter < 1e-6
    assert law.at(51200) == pytest.approx(factor * 51200**-exponent, rel=1e-5)


def test_the_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(0)
    responses = np.repeat([3200.0, 12800, 51200, 204800], 2)
    laws = [power_law(responses, responses**-0.3 * np.exp(0.2 * rng.normal(size=8))) for _ in range(2000)]
    assert np.mean([law.low <= 0.3 <= law.high for law in laws]) == pytest.approx(0.95, abs=0.02)
    assert np.mean([law.scatter**2 for law in laws]) == pytest.approx(0.04, rel=0.05)


def test_responses_until_a_distance_follow_the_law_between_budgets_and_stop_at_both_ends():
    budgets = np.array([100.0, 400, 1600])
    law = 2 * budgets**-0.5
    assert [responses_until(2 * many**-0.5, budgets, law) for many in (120, 250, 1500)] == pytest.approx(
        [120, 250, 1500]
    )
    assert responses_until(5.0, budgets, law) == pytest.approx(100)  # fewer were not tried
    assert responses_until(0.01, budgets, law) == np.inf
    # One that turns back was as near on its way.
    assert responses_until(0.2, budgets, [0.4, 0.1, 0.3]) == pytest.approx(200)
    with pytest.raises(ValueError, match="distance is 0"):
        responses_until(0, budgets, law)
    with pytest.raises(ValueError, match=r"responses has shape \(3,\) and distances \(2,\); list as many"):
        responses_until(0.1, budgets, law[:2])


def test_bad_runs_are_named():
    with pytest.raises(ValueError, match=r"responses has shape \(2,\)"):
        power_law([1, 2], [1, 2])
    with pytest.raises(ValueError, match=r"distances is 0.0 at its least; all must be above 0"):
        power_law([1, 2, 3], [1, 0.0, 1])


def test_best_of_n_costs_n_responses_and_n_judgements_and_one_answer_neither():
    assert query_cost(1, TEXTS) == 6 + 24
    assert query_cost(8, TEXTS) == 6 + 8 * 24 + 8 * 15
    with pytest.raises(ValueError, match="n is 0"):
        query_cost(0, TEXTS)


def test_at_break_even_both_ways_cost_the_same():
    spent = training_cost(TEXTS, own=12800)
    queries, least, most = break_even(spent, 8 / 9, 0.01, TEXTS)
    assert as_good_as(8 / 9) == pytest.approx(8)
    assert spent + queries * query_cost(1, TEXTS) == pytest.approx(queries * query_cost(8, TEXTS))
    assert least < queries < most
    assert break_even(spent, 0.5, 0.0, TEXTS)[0] == np.inf  # a policy that is no better never pays


def test_a_training_pays_for_what_it_draws_and_reads():
    written_and_judged, read = 24 + 0.5 * 30, 30
    # Forwards, twice that backwards, and of its own responses what the reference says of them.
    assert training_cost(TEXTS, own=10) == 10 * (written_and_judged + 4 * read)
    assert training_cost(TEXTS, stored=10) == 10 * 3 * read
    assert training_cost(TEXTS, own=10, stored=20, prepared=30) == 40 * written_and_judged + 100 * read


def test_the_own_objective_is_the_loss_or_the_return_less_over_the_last_quarter_of_the_steps():
    runs = pd.DataFrame({"run": ["a", "b"], "algorithm": ["offline", "rloo"], "steps": 50})
    curves = pd.DataFrame(
        {"run": ["b"] * 5 + ["a"] * 5, "step": [50, 48, 36, 24, 12] * 2, "loss": [6.0, 3, 4, 5, 9] * 2}
    )
    curves["return"] = [1.0, 8, 7, 7, 7] + [np.nan] * 5
    assert own_objective(runs, curves).to_dict() == {"a": (2 * 6 + 12 * 3) / 14, "b": -(2 * 1 + 12 * 8) / 14}


def test_each_reference_is_compared_with_its_own_best_of_n_by_gold():
    curves = pd.read_parquet(BEST_OF_N)
    rows = curves.assign(profile=curves["profile"].replace("laptop", "laptop, 128 prompts"))
    assert below_by_gold(rows).abs().max() < 1e-12
    swapped = curves["profile"].map({"laptop": "laptop, readable", "laptop, readable": "laptop"})
    assert below_by_gold(curves.assign(profile=swapped)).abs().max() > 0.02
    assert below_by_gold(rows.assign(kl=4.0)).isna().all()


@pytest.mark.parametrize("agrees", [True, False])
def test_best_of_n_wins_by_a_judge_that_agrees_and_not_by_another(agrees):
    rng = np.random.default_rng(0)
    rewards, others, opponents = rng.normal(size=(100, 300)), rng.normal(size=(100, 300)), rng.normal(size=(100, 300))

    class Judged(Harness):
        """What gold says is known, whatever the responses are."""

        test = TestSet([f"prompt {place}" for place in range(100)], opponents, SamplingSettings(1), rewards=rewards)
        gold_opponents = opponents

        def gold_of_draws(self, part):
            return rewards if agrees else others

    found = best_of_n_by_gold(Judged(get_profile("quick")), [1, 3, 8])
    assert found["kl"].tolist() == pytest.approx([0, np.log(3) - 2 / 3, np.log(8) - 7 / 8])
    assert found["win_rate"].tolist() == pytest.approx([1 / 2, 3 / 4, 8 / 9], abs=0.02)
    assert found["gold_win_rate"].tolist() == pytest.approx([1 / 2, 3 / 4, 8 / 9] if agrees else [1 / 2] * 3, abs=0.02)


def test_the_held_out_loss_is_that_of_other_draws_of_training_prompts():
    class Untrained(Harness):
        """Its policies have learned nothing."""

        def train(self, run, **_):
            return SimpleNamespace(policy=self.setting.reference)

    harness = Untrained(get_profile("quick"))
    found = held_out_loss(harness, Run("bon-sft", 8, 0, options=(("picks", "weights"),)))
    assert set(harness.seen.prompts) <= set(harness.prompts)
    draws, rewards = harness.draw(harness.seen.prompts, harness.sizes.opponents, harness.profile.seed + 1)
    learned_from = harness.reference_draws[0].texts
    assert not any(set(own) & set(other) for own, other in zip(draws.texts, learned_from[: len(rewards)], strict=True))
    weights = best_of_n_weights(rewards, 8)
    losses = -np.where(weights > 0, weights * draws.log_probs, 0).sum(axis=1)
    assert found["held_out"] == pytest.approx(losses.mean(), abs=1e-3)
    assert found["held_out_se"] == pytest.approx(losses.std(ddof=1) / len(losses) ** 0.5, abs=1e-3)
    with pytest.raises(ValueError, match="method is 'bond'; a loss on stored draws is for"):
        held_out_loss(harness, Run("bond", 8, 0))


def test_readable_runs_say_what_is_changed_and_how_far_they_are_below_best_of_n():
    rows = readable_runs()
    usual = rows[rows["changed"] == ""]
    assert set(usual["label"]) >= {"BOND", "vBoN, L", "DPO", "J-BOND"}
    assert set(rows.loc[rows["changed"] != "", "changed"]) == {"M = 2", "M = 8", "w = 0", "w = 1", "rate 0.0002"}
    bound = usual[usual["method"] == "vbon-bound"].iloc[0]
    n = 1 / (1 - bound["win_rate"] - bound["gap"]) - 1  # of win rate n / (n + 1)
    assert np.log(n) - (n - 1) / n == pytest.approx(bound["kl"], abs=1e-3)
