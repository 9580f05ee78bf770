"""The judge of reviews that counts words: better than chance on reviews that it has not seen, the same each time."""

import numpy as np
import pytest

from bonlib.course.making import words
from bonlib.course.making.reviews import load_reviews
from bonlib.course.making.words import WordsReward


@pytest.fixture(scope="module")
def judge():
    """Fitted to two thousand reviews."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(words, "load_reviews", lambda split: load_reviews(split)[:2000])
        patch.setattr(WordsReward, "features", 1 << 14)
        found = WordsReward()
        assert found.weights.shape == (found.features + 1,)
        found.features = 1 << 14
    return found


def test_it_tells_reviews_apart_that_it_has_not_seen(judge):
    reviews = load_reviews("heldout")[:400]
    said = judge.score([""] * len(reviews), [review.text for review in reviews])
    assert ((said > 0) & (said < 1)).all()
    assert np.mean((said > 0.5) == [review.label for review in reviews]) > 0.75


def test_it_reads_prompt_and_response_as_one_text(judge):
    split = judge.score(["I hated", "A wonderful"], [" this awful film", " film!"])
    assert split.tolist() == judge.score(["", ""], ["I hated this awful film", "A wonderful film!"]).tolist()
    assert split[0] < 0.5 < split[1]


def test_a_text_without_words_is_judged_by_the_constant_alone_and_none_gives_none(judge):
    constant = judge.weights[-1]
    assert judge.score([""], ["…"]) == pytest.approx(1 / (1 + np.exp(-constant)))
    assert judge.score([], []).shape == (0,)


def test_its_fingerprint_is_of_its_weights(judge):
    other = WordsReward()
    other.weights = judge.weights
    assert other.fingerprint == judge.fingerprint
    other.weights = judge.weights + 1
    assert other.fingerprint != judge.fingerprint
