"""Optima in closed form are where exact gradients end; and each run of the table is of its kind."""

import copy
from dataclasses import replace
from itertools import product
from typing import get_args

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from bonlib.course.experiments import exact_ends
from bonlib.course.experiments.enumerated import Distillation, EnumeratedPrompts, TabularPolicy, train_exactly
from bonlib.course.experiments.exact_runs import ExactRun, N, method_of, reference, trained, world
from bonlib.course.experiments.optima import FAMILIES, optimum
from bonlib.course.making.enumerable import PROMPTS, letter_sentiment, vowel_count
from bonlib.estimates import best_of_n_weights
from bonlib.exact import Outcomes, kl_divergence
from bonlib.methods.bon_regression import BonRegression
from bonlib.methods.bon_sft import BonSft
from bonlib.methods.bonbon import Bonbon, bonbon_target
from bonlib.methods.bond import Bond
from bonlib.methods.dpo import Dpo
from bonlib.methods.filtration import Filtered, Kept
from bonlib.methods.infalign import InfAlignCtrl
from bonlib.methods.jbond import JBond
from bonlib.methods.kl_rl import KlRl
from bonlib.methods.max_at_k import MaxAtK
from bonlib.methods.qrpo import Qrpo
from bonlib.methods.vbon import Vbon
from bonlib.methods.vbon_bound import VbonBound
from bonlib.methods.wind import Wind

FIVE = Outcomes([0.30, 0.25, 0.20, 0.15, 0.10], [0, 1, 1, 2, 3])


@pytest.fixture(scope="module", params=[letter_sentiment, vowel_count], ids=["letters", "vowels"])
def prompts(request):
    return EnumeratedPrompts(reference(), PROMPTS[:1], request.param())


ON_POLICY = [Vbon(4), VbonBound(4), KlRl(1.0), InfAlignCtrl(0.2), Wind(0.2), MaxAtK(4.0, k=3)]
ANCHORED = [Bond(4), Bond(4, term_b=True), Bond(4, jeffreys_weight=0.9), Bond(2, anchor_rate=1.0, anchor_every=100)]


@pytest.mark.parametrize("method", [*ON_POLICY, *ANCHORED], ids=repr)
def test_exact_gradients_end_at_the_optimum(prompts, method):
    policy = TabularPolicy(prompts.ref_log_probs)
    steps = 800 if isinstance(method, Wind) else 200  # a game is slow to settle: .012 nats away after 200
    anchored = isinstance(method, Bond)
    objective = Distillation(prompts, method, policy) if anchored else prompts.ascend(method, easing=0.5)
    train_exactly(policy, objective, steps=steps, learning_rate=0.2, decay=not anchored or not method.anchor_rate)
    p, outcomes = policy().detach().exp()[0].numpy(), prompts.outcomes[0]
    own = optimum(method, outcomes, steps)
    assert own.sum() == pytest.approx(1, abs=1e-12)
    assert kl_divergence(p, own) < 1e-3
    assert kl_divergence(p, own) < kl_divergence(outcomes.probs, own) / 500


KEPT = [Filtered(3.0, kept) for kept in get_args(Kept)]


@pytest.mark.parametrize("method", KEPT, ids=repr)
def test_exact_updates_of_a_filter_end_where_they_rest(method):
    prompts = EnumeratedPrompts(reference(), PROMPTS[:1], vowel_count())
    policy, outcomes = TabularPolicy(prompts.ref_log_probs), prompts.outcomes[0]
    train_exactly(policy, prompts.ascend(method, easing=0.5, group=4), steps=200, learning_rate=0.2)
    rest = optimum(method, outcomes, 200, 4)
    p = policy().detach().exp()[0].numpy()
    assert kl_divergence(p, rest) < kl_divergence(outcomes.probs, rest) / 500


def test_a_filter_of_unknown_size_has_no_rest():
    assert optimum(KEPT[0], FIVE, 1) is None


@pytest.mark.parametrize("method", [*ON_POLICY, *KEPT, MaxAtK(4.0, k=3, estimator="sum")], ids=repr)
def test_many_draws_come_to_the_exact_gradient(prompts, method):
    now, group, times = prompts.log_best_of(2).clamp(min=-40).log_softmax(1), 6, 150
    better = torch.tensor(prompts.outcomes[0].calibrated_reward)

    def slope(objective):
        strength = torch.zeros((), dtype=torch.float64, requires_grad=True)
        objective((now + strength * better).log_softmax(1), 1.0).backward()
        return float(strength.grad)

    drawn = prompts.ascend(method, count=2 * group, group=group, seed=3)
    slopes = [slope(drawn) for _ in range(times)]
    exact = slope(prompts.ascend(method, group=group))
    assert abs(exact) > 5 * np.std(slopes) / times**0.5  # there is something to come to
    assert np.mean(slopes) == pytest.approx(exact, abs=4 * np.std(slopes) / times**0.5)


def test_the_ends_of_jeffreys_divergences_lie_between_those_of_both(prompts):
    outcomes = prompts.outcomes[0]
    for weight, other in [(0.0, BonSft(4)), (1.0, VbonBound(4))]:
        mixed = optimum(Bond(4, jeffreys_weight=weight), outcomes, 1)
        np.testing.assert_allclose(mixed, optimum(other, outcomes, 1), atol=1e-14)


@pytest.mark.parametrize(("n", "weight"), [(2, 0.3), (3, 0.9), (4, 0.05)])
def test_the_end_of_bonbon_by_listing_all_draws(n, weight):
    tuples = np.array(list(product(range(5), repeat=n)))
    chance, rows = FIVE.probs[tuples].prod(1), np.arange(len(tuples))
    rewards = FIVE.rewards[tuples]
    best, worst = tuples[rows, rewards.argmax(1)], tuples[rows, rewards.argmin(1)]

    def loss(logits):
        log_p = log_softmax(logits)
        m = log_p - FIVE.log_probs
        return chance @ (-weight * log_p[best] + (1 - weight) * (m[best] - m[worst] - bonbon_target(n)) ** 2)

    searched = minimize(loss, FIVE.log_probs, method="BFGS", options={"gtol": 1e-10})
    own = optimum(Bonbon(n, sft_weight=weight), FIVE, 1)
    assert loss(np.log(own)) == pytest.approx(searched.fun, abs=1e-12)
    np.testing.assert_allclose(own, softmax(searched.x), atol=1e-5)


REGRESSIONS = [BonRegression(4), BonRegression(4, "reference"), Qrpo(0.2), Qrpo(0.2, lifted=True)]


@pytest.mark.parametrize("method", REGRESSIONS, ids=repr)
def test_the_ends_of_regressions_by_search(method):
    chances, targets = map(torch.tensor, method.known(FIVE))
    start = torch.from_numpy(FIVE.log_probs.copy())[:, None]

    def loss(logits):
        log_p = torch.from_numpy(log_softmax(logits))[:, None]
        return float(chances @ method.loss(log_p, start, targets))

    searched = minimize(loss, FIVE.log_probs, method="BFGS", options={"gtol": 1e-10})
    own = optimum(method, FIVE, 1)
    assert loss(np.log(own)) <= searched.fun + 1e-12
    np.testing.assert_allclose(own, softmax(searched.x), atol=1e-5)
    if getattr(method, "lifted", False):
        np.testing.assert_allclose(own, FAMILIES["lifted"](FIVE, method.beta), atol=1e-14)


def test_what_has_no_end_has_no_optimum(prompts):
    for method in (Dpo(0.5), JBond(), Bond(2, anchor_rate=0.5)):
        assert optimum(method, prompts.outcomes[0], 100) is None
    with pytest.raises(ValueError, match="dpo has none that is known"):
        trained(ExactRun("dpo", training="optimum", beta=0.5))


PAIRS = Dpo(0.5, generations=64, pairs=500)


STORED = [
    *(BonSft(4, picks) for picks in ("groups", "weights")),
    *(Bonbon(4, picks=picks) for picks in ("groups", "weights")),
    *(PAIRS, replace(PAIRS, identity=True)),
    *REGRESSIONS,
]


@pytest.mark.parametrize("method", STORED, ids=repr)
def test_stored_draws_are_learned_from_as_the_method_chooses_them(prompts, method):
    policy, start = TabularPolicy(prompts.ref_log_probs), prompts.ref_log_probs
    objective, other = (prompts.learn_stored(method, count=512, seed=seed) for seed in (1, 2))
    begun = objective(start, 0.0)
    assert objective(start, 0.5) == begun  # the same at each step
    assert other(start, 0.0) != begun or isinstance(method, Dpo)  # whose loss at the reference is no draw's
    train_exactly(policy, objective, steps=20, learning_rate=0.1)
    assert objective(policy().detach(), 1.0) < begun
    assert prompts.judge(policy(), 4).win_rate[0] > 0.5


def test_each_stored_draw_counts_by_its_weight(prompts):
    outcomes, log_p = prompts.outcomes[0], prompts.log_best_of(2).clamp(min=-40).log_softmax(1)
    stored = np.random.default_rng(3).choice(len(outcomes), 300, p=outcomes.probs)
    want = -best_of_n_weights(outcomes.rewards[stored], 4) @ log_p[0, stored].numpy()
    assert float(prompts.learn_stored(BonSft(4, "weights"), count=300, seed=3)(log_p, 0.0)) == pytest.approx(want)


def test_stored_draws_without_an_example_are_refused(prompts):
    alike = copy.copy(prompts)
    alike.rewards = torch.zeros_like(prompts.rewards)
    with pytest.raises(ValueError, match="finds no example"):
        alike.learn_stored(PAIRS, count=64)


def test_no_run_is_there_twice_and_draws_have_seeds():
    runs = list(exact_ends.grid())
    assert len({run.identity for run in runs}) == len(runs)
    drawn = [run for run in runs if run.training in ("samples", "stored") and run.policy == "network"]
    assert {run.seed for run in drawn if run.steps == exact_ends.STEPS} == set(range(exact_ends.SEEDS))
    assert all(
        run.count * (1 if run.training == "stored" else run.steps) <= exact_ends.DRAWS for run in drawn if run.seed
    )


def test_an_optimum_is_a_row_of_its_own():
    row = exact_ends.run_end(ExactRun("vbon", "vowels", "table", "optimum"))
    assert row["reverse_kl"] == pytest.approx(0, abs=1e-12)
    assert row["own_reverse_kl"] == pytest.approx(0, abs=1e-12)
    assert row["even_4"] == pytest.approx(0.5)
    assert row["win_rate_1"] == pytest.approx(row["win_rate"])
    assert row["kl_1"] == pytest.approx(row["kl"])
    assert method_of(ExactRun("vbon")).n == N


def test_draws_that_are_stored_are_of_methods_that_store_them():
    with pytest.raises(ValueError, match="vbon draws from the policy"):
        ExactRun("vbon", training="stored")


@pytest.mark.parametrize("name", exact_ends.BETAS["letters"])
def test_betas_of_methods_spend_as_much_as_best_of_n(name):
    run = next(run for run in exact_ends.grid() if (run.method, run.training) == (name, "optimum"))
    spent = [
        (kl_divergence(optimum(method_of(run), o, 1, run.group), o.probs), kl_divergence(o.best_of(N), o.probs))
        for o in world(run.reward).outcomes
    ]
    own, best = np.mean(spent, axis=0)
    assert own == pytest.approx(best, rel=1e-4)  # β is rounded


def test_with_little_mass_a_tie_group_the_lift_is_the_tilt_of_the_calibrated_reward():
    even = Outcomes(np.full(400, 1 / 400), np.arange(400))
    np.testing.assert_allclose(FAMILIES["lifted"](even, 0.2), even.tilt(0.2, "calibrated"), atol=1e-12)


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_families_spend_as_much_as_best_of_n(name):
    row = exact_ends.run_family(name, "vowels")
    spent = np.mean([kl_divergence(o.best_of(N), o.probs) for o in world("vowels").outcomes])
    assert row["kl"] == pytest.approx(spent, rel=1e-4)
    assert row["own_reverse_kl"] == pytest.approx(0, abs=1e-12)
    assert all(row[f"duel_{k}"] <= row[f"duel_bound_{k}"] + 1e-9 for k in (1, 2, 4, 8))
