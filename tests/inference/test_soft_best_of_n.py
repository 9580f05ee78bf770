"""Soft best-of-n keeps a draw as often as its softmax says."""

import numpy as np
import pytest

from bonlib.inference.best_of_n import best_of_n
from bonlib.inference.soft_best_of_n import soft_best_of_n


def test_soft_best_of_n_keeps_each_as_often_as_its_softmax_says():
    rewards = np.tile([0.0, 1.0, 2.5], (1, 40_000))
    kept = soft_best_of_n(rewards, 3, 0.8, seed=0)
    shares = np.bincount(kept[0] % 3) / 40_000
    np.testing.assert_allclose(shares, np.exp(rewards[0, :3] / 0.8) / np.exp(rewards[0, :3] / 0.8).sum(), atol=0.01)
    np.testing.assert_array_equal(soft_best_of_n(rewards, 3, 1e-300, seed=1), best_of_n(rewards, 3))
    with pytest.raises(ValueError, match="temperature is 0"):
        soft_best_of_n(rewards, 3, 0, seed=0)
