"""Rewind-and-repeat keeps what is good enough, and is a threshold and a chance of acceptance alike."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_exact import outcomes

from bonlib.exact import Outcomes, kl_divergence
from bonlib.inference.rewind import rewind, rewind_at


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
        rewind_at(Outcomes([0.5, 0.5], [0.0, 1.0]), acceptance)
