"""One budget for many prompts: greedy is optimal, and nobody looks at what is not drawn yet."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from bonlib.estimates import best_of_n_mean
from bonlib.exact import Outcomes
from bonlib.inference.budgets import (
    adaptive_budget,
    greedy_budget,
    kernel_gains,
    oracle_budget,
    uniform_budget,
)


def allocations(prompts, most, total):
    return [each for each in itertools.product(range(1, most + 1), repeat=prompts) if sum(each) == total]


@settings(max_examples=40)
@given(st.data())
def test_greedy_is_optimal_among_all_allocations(data):
    prompts, most = data.draw(st.integers(1, 3)), data.draw(st.integers(2, 5))
    rewards = data.draw(st.lists(st.integers(0, 5), min_size=prompts * most, max_size=prompts * most))
    table = np.reshape(np.array(rewards, dtype=float), (prompts, most))
    total = data.draw(st.integers(prompts, prompts * most))
    worlds = [Outcomes(np.full(most, 1 / most), row) for row in table]
    exact = np.array([[world.mean_reward(world.best_of(n)) for n in range(1, most + 1)] for world in worlds])
    stored = best_of_n_mean(table, range(1, most + 1))
    for curve, counts in (
        (exact, greedy_budget(np.diff(exact, axis=1), total)),
        (stored, oracle_budget(table, total)),
    ):
        assert counts.sum() == total
        values = [sum(curve[p, n - 1] for p, n in enumerate(each)) for each in allocations(prompts, most, total)]
        assert sum(curve[p, n - 1] for p, n in enumerate(counts)) == pytest.approx(max(values), abs=1e-12)


def test_the_gain_of_a_draw_is_an_integral_that_falls():
    world = Outcomes([0.30, 0.25, 0.20, 0.15, 0.10], [0.0, 1.0, 1.0, 2.0, 3.0])
    gains = np.diff([world.mean_reward(world.best_of(n)) for n in range(1, 12)])
    levels = np.array([0.30, 0.75, 0.90])  # F≤ between one reward and the next
    np.testing.assert_allclose(gains, [np.sum(levels**n * (1 - levels)) for n in range(1, 11)], atol=1e-14)


def test_a_uniform_budget_shares_the_rest():
    assert uniform_budget(3, 11).tolist() == [4, 4, 3]
    assert uniform_budget(3, 3).tolist() == [1, 1, 1]


def test_kernel_gains_are_those_of_the_blurred_draws():
    rewards = np.array([[0.0, 1.0, 4.0], [2.0, 2.5, 2.25], [1.0, 1.0, 1.0]])
    gains = kernel_gains(rewards, 6)
    rng = np.random.default_rng(0)
    for row, found in zip(rewards[:2], gains[:2], strict=True):
        width = row.std(ddof=1) * 3**-0.2
        drawn = rng.choice(row, size=(400_000, 6)) + width * rng.normal(size=(400_000, 6))
        best = np.maximum.accumulate(np.maximum(drawn, row.max()), axis=1).mean(axis=0)
        np.testing.assert_allclose(np.diff(best, prepend=row.max()), found, atol=0.01)
        kernel = stats.gaussian_kde(row)
        grid = np.linspace(row.max(), row.max() + 9 * width, 4001)
        upto = np.array([kernel.integrate_box_1d(-np.inf, each) for each in grid])
        for n in (0, 5):
            assert found[n] == pytest.approx(np.trapezoid(upto**n * (1 - upto), grid), abs=1e-6)
    assert gains[2].tolist() == [0] * 6
    assert (np.diff(gains) <= 0).all()


def test_the_adaptive_budget_does_not_look_ahead():
    rng = np.random.default_rng(0)
    rewards = rng.normal(size=(6, 20)) * np.array([0.1, 0.3, 1, 2, 3, 5])[:, None]
    counts = adaptive_budget(rewards, 60, explore=5)
    assert counts.sum() == 60
    assert counts.min() >= 5
    assert counts[0] == 5 < counts[5] <= 20
    rewards[:, 5:] = rng.normal(size=(6, 15))
    np.testing.assert_array_equal(adaptive_budget(rewards, 60, explore=5), counts)
    np.testing.assert_array_equal(adaptive_budget(rewards, 30, explore=5), np.full(6, 5))
    np.testing.assert_array_equal(adaptive_budget(rewards, 120, explore=5), np.full(6, 20))


def test_where_prompts_differ_adapting_is_between_uniform_and_the_oracle():
    rng = np.random.default_rng(1)
    scale = np.exp(rng.normal(size=(40, 1)))
    found = []
    for _ in range(60):
        rewards = scale * rng.exponential(size=(40, 64))
        budgets = uniform_budget(40, 640), adaptive_budget(rewards, 640, 5), oracle_budget(rewards, 640)
        # The oracle knows the distributions, not the draws: what it gets are others.
        fresh = scale * rng.exponential(size=(40, 64))
        found.append(
            [
                np.mean([row[:count].max() for row, count in zip(each, counts, strict=True)])
                for each, counts in zip((rewards, rewards, fresh), budgets, strict=True)
            ]
        )
    uniform, adaptive, oracle = np.mean(found, axis=0)
    assert uniform + 0.05 < adaptive < oracle


def test_many_prompts_are_quick_and_sum_up():
    rewards = np.random.default_rng(0).normal(size=(200, 128))
    for counts in (oracle_budget(rewards, 3000), adaptive_budget(rewards, 3000, 4)):
        assert counts.shape == (200,)
        assert counts.sum() == 3000
        assert (counts >= 1).all()
        assert (counts <= 128).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: uniform_budget(3, 2), "total is 2; 3 are made in any case"),
        (lambda: uniform_budget(0, 2), "prompts is 0"),
        (lambda: greedy_budget([[1.0, 0.5]], 4), "total is 4; 1 are made in any case, so it must be .* from 1 to 3"),
        (lambda: greedy_budget([[0.5, 1.0]], 2), r"gains\[0, 1\] is larger"),
        (lambda: greedy_budget([0.5, 1.0], 2), r"gains has shape \(2,\)"),
        (lambda: greedy_budget([[1.0]], 2, least=0), "least is 0"),
        (lambda: oracle_budget([1.0, 2.0], 2), r"rewards has shape \(2,\)"),
        (lambda: adaptive_budget([[1.0, 2.0]], 2, 1), "explore is 1"),
        (lambda: adaptive_budget([[1.0, np.nan]], 2, 2), r"rewards\[0, 1\] is nan"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
