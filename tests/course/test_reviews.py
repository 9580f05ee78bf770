"""The reviews, their split and the prompts."""

import pytest

from bonlib.course.making.reviews import clean, is_heldout, load_reviews, review_prompts


def test_the_split_is_a_tenth_without_overlap_or_duplicates():
    train, heldout = load_reviews("train"), load_reviews("heldout")
    texts = {review.text for review in train} | {review.text for review in heldout}
    assert len(texts) == len(train) + len(heldout) == 24_902
    assert 0.09 < len(heldout) / len(texts) < 0.11
    assert all(is_heldout(review.text) for review in heldout)
    assert not any(is_heldout(review.text) for review in train)
    assert 0.45 < sum(review.label for review in train) / len(train) < 0.55


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
