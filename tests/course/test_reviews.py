"""The reviews, their split and the prompts."""

import re

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from bonlib.course.making.reviews import clean, is_heldout, load_reviews, review_prompts


def test_the_split_is_a_tenth_without_overlap_or_duplicates():
    train, heldout = load_reviews("train"), load_reviews("heldout")
    texts = {review.text for review in train} | {review.text for review in heldout}
    assert len(texts) == len(train) + len(heldout) == 24_902
    assert 0.09 < len(heldout) / len(texts) < 0.11
    assert all(is_heldout(review.text) for review in heldout)
    assert not any(is_heldout(review.text) for review in train)
    assert 0.45 < sum(review.label for review in train) / len(train) < 0.55


def of_one_film(split, others):
    """The share of a split's reviews of which another split has one, of the same label, with the same rare names."""
    reviews = [*load_reviews(split), *load_reviews(others)]
    names = [sorted(set(re.findall(r"\b[A-Z][a-z]+\b", review.text))) for review in reviews]
    known = {name: place for place, name in enumerate(sorted({name for each in names for name in each}))}
    columns = np.array([known[name] for each in names for name in each])
    rows = np.repeat(np.arange(len(names)), [len(each) for each in names])
    table = csr_matrix((np.ones(len(columns), np.float32), (rows, columns)))
    often = np.asarray(table.sum(0)).ravel()
    table = table[:, (often > 1) & (often <= 60)]
    table = table.multiply(1 / np.sqrt(np.maximum(table.sum(1), 1))).tocsr()
    labels = np.array([review.label for review in reviews])
    count, found = len(load_reviews(split)), np.zeros(len(load_reviews(split)))
    for label in (0, 1):
        ours, theirs = np.flatnonzero(labels[:count] == label), count + np.flatnonzero(labels[count:] == label)
        found[ours] = (table[ours] @ table[theirs].T).max(1).toarray().ravel()
    return float((found > 0.5).mean())


def test_unseen_films_are_those_that_training_has_no_review_of():
    seen, unseen = ({review.text for review in load_reviews(f"{kind}_films")} for kind in ("seen", "unseen"))
    assert seen < {review.text for review in load_reviews("train")}
    assert not seen & unseen
    assert (len(seen), len(unseen)) == (19_669, 2_495)
    # Other films share names as well: actors, directors, places.
    assert of_one_film("heldout", "train") > 2 * of_one_film("unseen_films", "seen_films")


def test_line_breaks_become_spaces():
    assert clean("good.<br /><br />Bad.\n\n <br/>End ") == "good. Bad. End"
    assert not any("<br" in review.text for review in load_reviews("heldout"))


def test_prompts_are_different_openings_of_the_asked_length(language_model):
    tokenizer = language_model.tokenizer
    prompts = review_prompts(tokenizer, 50, seed=0, lengths=(2, 8))
    openings = {review.text for review in load_reviews("heldout")}
    assert len(set(prompts)) == 50
    assert all(any(text.startswith(prompt) for text in openings) for prompt in prompts)
    assert all(1 <= len(tokenizer(p, add_special_tokens=False)["input_ids"]) <= 8 for p in prompts)
    assert prompts == review_prompts(tokenizer, 50, seed=0)
    assert prompts[:20] == review_prompts(tokenizer, 20, seed=0)
    assert prompts != review_prompts(tokenizer, 50, seed=1)


def test_bad_arguments_are_named(language_model):
    with pytest.raises(ValueError, match="split is 'test'"):
        load_reviews("test")
    with pytest.raises(ValueError, match="lengths is"):
        review_prompts(language_model.tokenizer, 5, seed=0, lengths=(4, 2))
    for count in (0, 10**6):
        with pytest.raises(ValueError, match=f"count is {count}"):
            review_prompts(language_model.tokenizer, count, seed=0)
