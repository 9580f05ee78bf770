"""The reference and the judge of movie reviews that are adapters: made on a small scale, loaded, measured."""

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from corpus import TEXTS
from scipy.special import expit

from bonlib.course.making import film_adapters
from bonlib.course.making.film_adapters import (
    EqualPieces,
    JudgeRecipe,
    ReferenceRecipe,
    calibration,
    calibration_error,
    make_judge,
    make_reference,
)
from bonlib.course.making.pretrain import TextBlocks, perplexity
from bonlib.course.making.reviews import Review
from bonlib.draws.rewards import ClassifierReward
from bonlib.models.loaded import load_classifier, load_language_model

REVIEWS = tuple(Review(f"{text} {index}", index % 2) for index, text in enumerate(TEXTS))


@pytest.fixture(autouse=True)
def few_reviews(monkeypatch):
    AcceleratorState._reset_state(reset_partial_state=True)
    # So few that what is learned can be seen only on some of them.
    parts = {"seen_films": REVIEWS[:24], "unseen_films": REVIEWS[:8], "heldout": REVIEWS[24:]}
    monkeypatch.setattr(film_adapters, "load_reviews", parts.__getitem__)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_the_reference_learns_reviews_and_its_card_says_so(llama_folder, tmp_path, monkeypatch):
    base = str(llama_folder)
    monkeypatch.setattr(ReferenceRecipe, "base", base)
    monkeypatch.setattr(film_adapters, "review_prompts", lambda *_, **__: ["the film", "a"])
    recipe = ReferenceRecipe(
        context=40, steps=40, batch_size=8, learning_rate=1e-2, warmup_steps=2, rank=8, base=base
    )  # fmt: skip
    make_reference(tmp_path / "made", tmp_path / "scratch", recipe)
    texts = [review.text for review in REVIEWS[:8]]
    before, after = (
        perplexity(load_language_model(name, dtype="bfloat16"), texts)["perplexity_per_word"]
        for name in (base, tmp_path / "made")
    )
    assert after < 0.8 * before
    card = (tmp_path / "made" / "README.md").read_text()
    assert f"| {after:.3f} |" in card
    assert f"| {before:.3f} |" in card
    assert "| sample 2 | **a**" in card


def test_the_judge_learns_is_calibrated_and_loads(tmp_path):
    recipe = JudgeRecipe(context=24, steps=3, pieces=4, warmup_steps=1, rank=2)
    make_judge(tmp_path / "made", tmp_path / "scratch", recipe)
    loaded = load_classifier(tmp_path / "made")
    assert loaded.model.config.num_labels == 1
    held = REVIEWS[24:]
    logits = ClassifierReward(loaded).score_texts([review.text for review in held])
    labels = np.array([review.label for review in held], float)
    assert calibration(logits, labels) == pytest.approx((1.0, 0.0), abs=0.1)
    card = (tmp_path / "made" / "README.md").read_text()
    assert "accuracy first 32 words" in card
    assert "calibration error first 256 tokens" in card


def test_pieces_of_a_set_are_equally_long_and_depend_on_seed_and_index_only():
    tokenizer = load_classifier("all-minilm-l6-v2", outputs=1).tokenizer
    sets = EqualPieces(REVIEWS, tokenizer, JudgeRecipe(context=16, pieces=6, shortest=3))
    again = EqualPieces(REVIEWS, tokenizer, JudgeRecipe(context=16, pieces=6, shortest=3))
    for index in range(20):
        pieces, labels = sets[index]
        assert (pieces, labels) == again[index]
        assert len(pieces) == len(labels) == 6
        longest = max(map(len, pieces))
        assert 5 <= longest <= 16
        for piece, label in zip(pieces, labels, strict=True):
            assert tokenizer.decode([piece[0], piece[-1]]) == "[CLS] [SEP]"
            text = tokenizer.decode(piece[1:-1])
            assert any(text.replace("##", "") in review.text.lower() for review in REVIEWS if review.label == label)


def test_texts_without_a_first_token_of_their_own_are_parted_by_end_tokens(language_model):
    class Plain:
        eos_token_id = 7

        def __call__(self, texts):
            return {"input_ids": [] if texts == "" else [[5] * len(text.split()) for text in texts]}

    blocks = TextBlocks(REVIEWS[:3], Plain(), context=4, size=50, seed=0, openings=1.0)
    assert np.flatnonzero(blocks.tokens == 7).tolist() == [start - 1 for start in blocks.starts[1:]] + [
        len(blocks.tokens) - 1
    ]
    assert all(torch.equal(block["labels"], block["input_ids"]) for block in map(blocks.__getitem__, range(50)))


def test_calibration_finds_scale_and_shift_and_its_error_is_that_of_the_definition():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=40_000) * 2
    labels = (rng.random(40_000) < expit(truth)).astype(float)
    scale, shift = calibration(truth / 3 + 1, labels)
    assert scale == pytest.approx(3, abs=0.1)
    assert shift == pytest.approx(-3, abs=0.1)
    assert calibration_error(truth, labels) < 0.01
    assert calibration_error(np.full(10, 100.0), np.array([1.0] * 7 + [0.0] * 3), bins=1) == pytest.approx(0.3)
