"""Soft best-of-n keeps a draw as often as its softmax says."""

import numpy as np
import pytest

from bonlib.inference.best_of_n import best_of_n
from bonlib.inference.rules import choose_in_groups
from bonlib.inference.soft_best_of_n import SoftBestOfN


def test_soft_best_of_n_keeps_each_as_often_as_its_softmax_says():
    rewards = np.tile([0.0, 1.0, 2.5], (1, 40_000))
    kept = choose_in_groups(SoftBestOfN(3, 0.8), rewards).kept
    shares = np.bincount(kept[0] % 3) / 40_000
    np.testing.assert_allclose(shares, np.exp(rewards[0, :3] / 0.8) / np.exp(rewards[0, :3] / 0.8).sum(), atol=0.01)
    np.testing.assert_array_equal(choose_in_groups(SoftBestOfN(3, 1e-300), rewards, seed=1).kept, best_of_n(rewards, 3))
    with pytest.raises(ValueError, match="temperature is 0"):
        SoftBestOfN(3, 0)
