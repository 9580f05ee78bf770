"""Best-of-n and its control keep what they say of given draws."""

import numpy as np
import pytest

from bonlib.inference.best_of_n import best_of_n, random_of_n


def test_best_of_n_keeps_the_first_best_of_each_group():
    rewards = np.array([[1, 3, 3, 0, 5, 2, 9], [0, 0, 0, 0, 0, 1, 9]], dtype=float)
    assert best_of_n(rewards, 3).tolist() == [[1, 4], [0, 5]]
    assert best_of_n(rewards, 1).tolist() == [list(range(7))] * 2
    assert best_of_n(rewards, 7).tolist() == [[6], [6]]


def test_random_of_n_chooses_in_the_same_groups_whatever_the_reward():
    rewards = np.random.default_rng(0).normal(size=(500, 12))
    kept = random_of_n(rewards, 4, seed=1)
    assert kept.shape == best_of_n(rewards, 4).shape
    np.testing.assert_array_equal(kept // 4, np.tile([0, 1, 2], (500, 1)))
    np.testing.assert_array_equal(kept, random_of_n(-rewards, 4, seed=1))
    assert np.bincount(kept.ravel() % 4).min() > 300


@pytest.mark.parametrize("choose", [best_of_n, lambda rewards, n: random_of_n(rewards, n, seed=0)])
def test_bad_choices_are_named(choose):
    with pytest.raises(ValueError, match=r"rewards\[1, 0\] is nan"):
        choose([[1.0, 2.0], [np.nan, 2.0]], 1)
    with pytest.raises(ValueError, match=r"shape \(2,\)"):
        choose([1.0, 2.0], 1)
    for n in (0, 3, 1.5):
        with pytest.raises(ValueError, match="n is"):
            choose([[1.0, 2.0]], n)
