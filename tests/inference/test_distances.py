"""Distances of texts are the share of words that they do not have in common."""

import numpy as np
import pytest

from bonlib.inference.distances import word_distances


def test_distances_of_texts_are_the_words_not_in_common():
    texts = [["a film", "A  film a", "the film", ""], ["x", "x y z", "q", "y z"]]
    found = word_distances(texts)
    np.testing.assert_allclose(found[0], [[0, 0, 2 / 3, 1], [0, 0, 2 / 3, 1], [2 / 3, 2 / 3, 0, 1], [1, 1, 1, 0]])
    np.testing.assert_allclose(found[1], [[0, 2 / 3, 1, 1], [2 / 3, 0, 1, 1 / 3], [1, 1, 0, 1], [1, 1 / 3, 1, 0]])
    np.testing.assert_array_equal(word_distances(texts[1]), found[1])
    assert word_distances(["", ""]).tolist() == [[0, 0], [0, 0]]


def test_bad_texts_are_named():
    for texts in ("a film", [1, 2], [], [["a", "b"], ["c"]]):
        with pytest.raises(ValueError, match="texts is"):
            word_distances(texts)
