"""Mean advantages against all groups that can be drawn; and where they rest against optima that are known."""

from itertools import product
from typing import get_args

import numpy as np
import pytest
import torch

from bonlib.course.experiments.mean_gains import filtered_gain, mean_gain, resting_point
from bonlib.exact import Outcomes
from bonlib.inference_aware import best_of_optimum, wind_optimum
from bonlib.methods.filtration import Filtered, Kept, filter_weights
from bonlib.methods.kl_rl import KlRl
from bonlib.methods.max_at_k import MaxAtK
from bonlib.methods.vbon import Vbon
from bonlib.methods.wind import Wind
from bonlib.training.on_policy import Judged

W = Outcomes([0.30, 0.25, 0.20, 0.15, 0.10], [0, 1, 1, 2, 3])
FILTERS = [(Filtered(1.0, kept), group) for kept in get_args(Kept) for group in (2, 3, 5)]


@pytest.mark.parametrize(("method", "group"), [*FILTERS, (Wind(1.0), 3), (MaxAtK(1.0, k=2, estimator="sum"), 4)])
def test_mean_gains_by_listing_all_groups(method, group):
    tuples = np.array(list(product(range(5), repeat=group)))
    chance = W.probs[tuples].prod(1)
    flat = torch.from_numpy(W.rewards[tuples].ravel())
    same = torch.full_like(flat, -1.0)  # under policy and reference, so that no KL is paid
    judged = Judged([""] * len(flat), [""] * len(flat), same, same, flat, group=group)
    gains = method.advantages(judged, method.returns(judged, None)).view(-1, group)[:, 0].numpy()
    listed = np.bincount(tuples[:, 0], weights=chance * gains) / W.probs
    found = mean_gain(method, W, group)
    np.testing.assert_allclose(found - W.probs @ found, listed - W.probs @ listed, atol=1e-14)


def test_a_rung_of_almost_no_mass_loses_no_digit():
    tiny, none = (Outcomes([0.5, mass, 0.5 - mass], [0, 1, 2]) for mass in (1e-15, 1e-300))
    weights = filter_weights(4, "best-worst")
    np.testing.assert_allclose(filtered_gain(tiny, weights), filtered_gain(none, weights), rtol=1e-13, atol=1e-13)


def test_rest_is_the_optimum_where_there_is_one():
    np.testing.assert_allclose(resting_point(Wind(0.2), W), wind_optimum(W, 0.2), atol=1e-12)
    np.testing.assert_allclose(resting_point(MaxAtK(0.5, k=4), W), best_of_optimum(W, 4, 0.5), atol=1e-12)


def test_of_two_a_filter_rests_where_kl_rl_does():
    np.testing.assert_allclose(resting_point(Filtered(0.7), W, group=2), W.tilt(0.7), atol=1e-12)


@pytest.mark.parametrize("kept", get_args(Kept))
def test_a_filter_rests_in_one_place(kept):
    method = Filtered(0.5, kept)
    rest = resting_point(method, W, group=4)
    for start in ([0.96, 0.01, 0.01, 0.01, 0.01], [0.01, 0.01, 0.01, 0.01, 0.96]):
        np.testing.assert_allclose(resting_point(method, W, group=4, start=start), rest, atol=1e-11)


def test_what_does_not_depend_on_other_draws_is_left_to_returns():
    assert mean_gain(Vbon(4), W) is None
    with pytest.raises(ValueError, match="its gain is the same whatever the policy"):
        resting_point(KlRl(1.0), W)
    with pytest.raises(ValueError, match="weights has 1 entry"):
        filtered_gain(W, [1.0])
