"""Bounds on what a proxy loses hold in random worlds, for soft best-of-n, pessimism and best-of-n."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bonlib.exact import Outcomes
from bonlib.inference.pessimism import pessimistic_policy
from bonlib.inference.regret import (
    best_of_n_regret_bound,
    chi_squared,
    pessimism_regret_bound,
    proxy_error,
    soft_regret_bound,
)
from bonlib.inference.soft_best_of_n import soft_best_of

H = Outcomes([0.5, 0.3, 0.17, 0.03], [0, 0.5, 1, 1.5])
GOLD = np.array([0, 0.5, 1, -1])


@given(st.integers(1, 6), st.integers(0, 9999), st.floats(-2, 1), st.integers(1, 99))
def test_regret_is_within_the_bounds(size, seed, log_knob, n):
    rng, knob = np.random.default_rng(seed), 10**log_knob
    model = Outcomes(rng.dirichlet(np.ones(size)), rng.integers(-3, 3, size=size))
    gold = model.rewards + rng.normal(size=size)
    soft = soft_best_of(model, n, knob)
    for other in (rng.dirichlet(np.ones(size)), model.best_of(20), np.eye(size)[0]):
        coverage = 1 + chi_squared(other, model.probs)
        regret = {
            law: other @ gold - p @ gold
            for law, p in {"soft": soft, "pessimism": pessimistic_policy(model, knob), "best": model.best_of(n)}.items()
        }
        assert regret["soft"] <= soft_regret_bound(model, gold, other, n, knob) + 1e-12
        assert regret["pessimism"] <= pessimism_regret_bound(model, gold, other, knob) + 1e-12
        assert regret["best"] <= best_of_n_regret_bound(model, gold, other, n) + 1e-12
        best = proxy_error(model, gold) / np.sqrt(coverage)
        at_best = pessimism_regret_bound(model, gold, other, best)
        assert at_best == pytest.approx(2 * best * coverage)
        assert at_best <= pessimism_regret_bound(model, gold, other, knob) * (1 + 1e-12)


@given(st.integers(1, 6), st.integers(0, 9999), st.floats(1, 99), st.floats(-2, 1))
def test_the_coverage_of_what_is_chosen_is_below_that_of_best_of_n(size, seed, n, log_temperature):
    rng = np.random.default_rng(seed)
    model = Outcomes(rng.dirichlet(np.ones(size)), rng.integers(-3, 3, size=size))
    for law in (model.best_of(n), soft_best_of(model, n, 10**log_temperature)):
        assert 1 + chi_squared(law, model.probs) <= n**2 / (2 * n - 1) * (1 + 1e-9)


def test_the_usual_root_of_n_is_too_small():
    model = Outcomes(np.full(1000, 1e-3), np.arange(1000))  # nearly continuous
    for n in (2, 4, 16):
        assert np.sqrt(1 + chi_squared(model.best_of(n), model.probs)) == pytest.approx(
            n / np.sqrt(2 * n - 1), rel=1e-3
        )


def test_the_bound_of_best_of_n_falls_and_rises():
    bound = [best_of_n_regret_bound(H, GOLD, H.tilt(0.3), n) for n in range(1, 65)]
    assert 0 < np.argmin(bound) < 63


def test_error_and_coverage():
    assert proxy_error(H, GOLD) == pytest.approx(np.sqrt(0.03 * 2.5**2))
    assert chi_squared([0.5, 0.5, 0], [0.25, 0.25, 0.5]) == pytest.approx(1)
    assert chi_squared([0.5, 0.5], [1, 0]) == np.inf


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"gold has shape \(2,\)"):
        proxy_error(H, [1, 2])
    with pytest.raises(ValueError, match="same outcomes"):
        chi_squared([1.0], [0.5, 0.5])
    with pytest.raises(ValueError, match="comparator has mass"):
        best_of_n_regret_bound(Outcomes([1, 0], [0, 1]), [0, 1], [0.5, 0.5], 3)
    with pytest.raises(ValueError, match="beta is 0"):
        pessimism_regret_bound(H, GOLD, H.probs, 0)
    with pytest.raises(ValueError, match="temperature is 0"):
        soft_regret_bound(H, GOLD, H.probs, 4, 0)
    with pytest.raises(ValueError, match=r"n is 0\.5"):
        best_of_n_regret_bound(H, GOLD, H.probs, 0.5)
