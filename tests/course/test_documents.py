"""Documents, prompts and ROUGE, against counts by hand and the package that defines it."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bonlib.course.making.documents import (
    Document,
    load_abstracts,
    load_reddit,
    load_scitldr,
    review_documents,
    rouge,
    summary_prompt,
)


class Words:
    """A tokenizer of words."""

    def __call__(self, text):
        return {"input_ids": text.split()}


POST = Document("First one. Second is here! Third?\nLast line", ("a summary",), "A title", "AskReddit")


def test_a_post_has_the_form_that_the_checkpoints_know():
    whole = "SUBREDDIT: r/AskReddit\n\nTITLE: A title\n\nPOST: First one. Second is here! Third?\nLast line\n\nTL;DR:"
    assert summary_prompt(Words(), POST, 100) == whole


@pytest.mark.parametrize(
    ("max_tokens", "kept"),
    [
        (15, "First one. Second is here! Third?\nLast line"),
        (14, "First one. Second is here! Third?"),
        (13, "First one. Second is here! Third?"),
        (12, "First one. Second is here!"),
        (9, "First one."),
        (8, "First"),
    ],
)
def test_a_long_text_is_cut_where_a_sentence_ends_and_in_need_between_words(max_tokens, kept):
    assert f"POST: {kept}\n\nTL;DR:" in summary_prompt(Words(), POST, max_tokens)


def test_a_request_without_room_for_a_word_is_refused():
    with pytest.raises(ValueError, match="max_tokens is 6; the request alone"):
        summary_prompt(Words(), POST, 6)


@given(st.lists(st.sampled_from(["word", "end.", "so!", "(well)."]), min_size=1, max_size=30), st.integers(2, 40))
def test_the_longest_whole_sentences_that_fit_are_kept(words, max_tokens):
    prompt = summary_prompt(Words(), Document(" ".join(words)), max_tokens)
    kept = prompt.removesuffix("\n\nTL;DR:").split()
    assert kept == words[: len(kept)]
    assert len(kept) + 1 <= max_tokens
    if len(kept) < len(words):
        ends = [place + 1 for place, word in enumerate(words) if word[-1] in ".!" or word.endswith(").")]
        fitting = [end for end in ends if end + 1 <= max_tokens]
        assert len(kept) == (max(fitting) if fitting else max_tokens - 1)


def test_abstracts_come_with_three_summaries_and_none_is_in_two_splits():
    splits = {split: load_abstracts(split) for split in ("train", "validation", "test")}
    assert {split: len(documents) for split, documents in splits.items()} == {
        "train": 100,
        "validation": 50,
        "test": 100,
    }
    everything = [document for documents in splits.values() for document in documents]
    assert len({document.text for document in everything}) == 250
    assert all(len(document.summaries) == 3 for document in everything)
    assert not any(" ," in document.text or " . " in document.text for document in everything)
    with pytest.raises(ValueError, match="split is 'dev'"):
        load_abstracts("dev")


def test_reviews_are_held_out_and_long_enough():
    documents = review_documents()
    assert len(documents) > 1000
    assert min(len(document.text.split()) for document in documents) >= 80
    assert not any(document.summaries for document in documents)


def test_scitldr_is_read_from_a_folder(tmp_path):
    rows = [{"source": ["One.", "Two ."], "target": ["first  short", "other"]}, {"source": ["Three."], "target": ["x"]}]
    (tmp_path / "dev.jsonl").write_text("\n".join(map(json.dumps, rows)))
    documents = load_scitldr("validation", str(tmp_path))
    assert set(documents) == {Document("One. Two .", ("first short", "other")), Document("Three.", ("x",))}
    with pytest.raises(ValueError, match="split is 'dev'"):
        load_scitldr("dev", str(tmp_path))


def test_reddit_is_divided_by_subreddit(tmp_path):
    rows = [
        {"subreddit": subreddit, "title": f"title {place} ", "post": f"post {place}", "summary": " short"}
        for place, subreddit in enumerate(["relationships", "r/relationship_advice", "AskReddit"])
    ]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    inside, outside = (load_reddit("train", relationships=within, source=str(tmp_path)) for within in (True, False))
    assert {document.subreddit for document in inside} == {"relationships", "relationship_advice"}
    assert outside == (Document("post 2", ("short",), "title 2", "AskReddit"),)


def test_rouge_by_hand():
    # unigrams 2 of 3, bigrams 1 of 2, longest common run 2 of 3; each side has three words
    assert rouge(["a cat sat"], [["the cat sat"]]) == pytest.approx([(2 / 3 + 1 / 2 + 2 / 3) / 3])
    assert rouge(["the cat sat"], [["dogs run", "the cat sat"]]) == pytest.approx([1.0])
    with pytest.raises(ValueError, match="give each summary a list"):
        rouge(["a"], [[]])
