"""When to stop drawing: laws by enumeration, the value by dynamic programming."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_exact import outcomes

from bonlib.exact import Outcomes, kl_divergence
from bonlib.inference.stopping import reservation_value, rewind, rewind_at

W = Outcomes([0.30, 0.25, 0.20, 0.15, 0.10], [0.0, 1.0, 1.0, 2.0, 3.0])


def test_the_reservation_value_is_where_the_gain_of_a_draw_is_its_cost():
    assert reservation_value(W.rewards, 0.2, W.probs) == pytest.approx(1.6, abs=1e-15)
    assert reservation_value(W.rewards, 0.5, W.probs) == pytest.approx(0.785714285714, abs=1e-12)
    assert reservation_value([0, 0.5, 1, 1.5], 0.25, [0.5, 0.3, 0.17, 0.03]) == pytest.approx(0.23, abs=1e-15)
    draws = np.random.default_rng(0).normal(size=(3, 5, 40)).round(1)
    values = reservation_value(draws, 0.1)
    assert values.shape == (3, 5)
    np.testing.assert_allclose(np.maximum(draws - values[..., None], 0).mean(axis=-1), 0.1, rtol=1e-12)
    np.testing.assert_allclose(reservation_value(draws, 0.1, np.full(40, 1 / 40)), values, atol=1e-14)


@given(outcomes(), st.floats(1e-9, 10))
def test_the_reservation_value_solves_its_equation_in_any_world(model, cost):
    value = reservation_value(model.rewards, cost, model.probs)
    assert model.probs @ np.maximum(model.rewards - value, 0) == pytest.approx(cost, rel=1e-6)


@pytest.mark.parametrize("cost", [0, -1, np.nan])
def test_a_draw_must_cost_something(cost):
    with pytest.raises(ValueError, match="cost is"):
        reservation_value(W.rewards, cost)


def test_what_is_no_world_is_named():
    with pytest.raises(ValueError, match=r"rewards\[1\] is nan"):
        reservation_value([1.0, np.nan], 0.1)
    for probs in ([0.5, 0.4], [1.5, -0.5], [1.0]):
        with pytest.raises(ValueError, match="probs has shape"):
            reservation_value([1.0, 2.0], 0.1, probs)


def test_rewind_keeps_what_reaches_the_threshold():
    model = Outcomes([0.2, 0.3, 0.5], [1.0, 3.0, 2.0])
    np.testing.assert_allclose(rewind(model, 2.0), [0, 0.375, 0.625])
    assert kl_divergence(rewind(model, 2.0), model.probs) == pytest.approx(-np.log(0.8))
    with pytest.raises(ValueError, match=r"threshold is 4.*best reward is 3"):
        rewind(model, 4)
    with pytest.raises(ValueError, match="threshold is nan"):
        rewind(model, np.nan)


@given(outcomes())
def test_rewind_by_acceptance_agrees_with_rewind_by_threshold(model):
    for reward in model.rewards[model.probs > 0]:
        acceptance = model.probs[model.rewards >= reward].sum()
        by_threshold = rewind(model, reward)
        np.testing.assert_allclose(rewind_at(model, min(acceptance, 1.0)), by_threshold, rtol=1e-9, atol=1e-12)
        assert kl_divergence(by_threshold, model.probs) == pytest.approx(-np.log(acceptance), abs=1e-12)


@given(outcomes(), st.floats(1e-6, 1))
def test_rewind_by_acceptance_keeps_the_best_share(model, acceptance):
    policy = rewind_at(model, acceptance)
    assert policy.sum() == pytest.approx(1)
    assert (policy <= model.probs / acceptance * (1 + 1e-9)).all()
    ranked = np.argsort(model.rewards)
    partial = (policy[ranked] > 0) & (policy[ranked] < model.probs[ranked] / acceptance * (1 - 1e-6))
    assert len(set(model.rewards[ranked][partial])) <= 1


@pytest.mark.parametrize("acceptance", [0, 1.1, np.nan])
def test_a_chance_of_acceptance_is_one(acceptance):
    with pytest.raises(ValueError, match="acceptance is"):
        rewind_at(W, acceptance)
