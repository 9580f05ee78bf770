"""Training of the bundled models, on a scale that fits a test, and the measurement of what was trained."""

import math

import numpy as np
import pytest
import torch
from corpus import TEXTS
from safetensors.torch import load_file

from bonlib.course.making import pretrain
from bonlib.course.making.reviews import Review
from bonlib.draws.rewards import SentimentReward
from bonlib.models.loaded import load_classifier

REVIEWS = tuple(Review(text, index % 2) for index, text in enumerate(TEXTS))


@pytest.fixture
def few_reviews(monkeypatch):
    monkeypatch.setattr(pretrain, "load_reviews", lambda split, *source: REVIEWS)


@pytest.mark.slow
def test_both_models_train_resume_and_load(few_reviews, tmp_path, monkeypatch):
    recipe = pretrain.LanguageModelRecipe(
        context=256, steps=6, batch_size=2, warmup_steps=1, vocab_size=300, layers=2, width=32, heads=2
    )
    lm, judge = tmp_path / "lm", tmp_path / "judge"
    drawn = []

    class Interrupted(pretrain.TextBlocks):
        def __getitem__(self, index):
            drawn.append(index)
            if len(drawn) == 9:
                raise KeyboardInterrupt
            return super().__getitem__(index)

    blocks = pretrain.TextBlocks
    monkeypatch.setattr(pretrain, "TextBlocks", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        pretrain.pretrain_language_model(lm, tmp_path / "scratch", recipe)
    assert list((tmp_path / "scratch").glob("*/checkpoint-*"))
    pretrain.pretrain_language_model(lm, tmp_path / "scratch", recipe)  # goes on from the checkpoint
    assert len(set(drawn)) == 12  # every block once, in the order of an uninterrupted run
    assert not list((tmp_path / "scratch").glob("*/checkpoint-*"))
    monkeypatch.setattr(pretrain, "TextBlocks", blocks)
    pretrain.pretrain_language_model(tmp_path / "whole", tmp_path / "scratch", recipe)
    assert load_file(lm / "model.safetensors").keys() == load_file(tmp_path / "whole" / "model.safetensors").keys()
    for name, tensor in load_file(lm / "model.safetensors").items():
        assert torch.equal(tensor, load_file(tmp_path / "whole" / "model.safetensors")[name]), name
    pretrain.pretrain_reward_model(
        judge, tmp_path / "scratch-judge", lm, pretrain.RewardModelRecipe(steps=2, batch_size=2, layers=1)
    )
    assert set(pretrain.evaluate(lm)) == {"perplexity_per_token", "perplexity_per_word"}
    assert set(pretrain.evaluate(judge)) == {
        "accuracy_first_256_tokens", "accuracy_first_32_words", "accuracy_first_8_words"
    }  # fmt: skip
    for folder in (lm, judge):
        assert "held out" in (folder / "README.md").read_text()
        assert (folder / "model.safetensors").exists()


def test_perplexity_counts_every_token_once(language_model):
    texts = ["the film was good", "nobody knows why this was made and we laughed " * 4]
    nll, words = 0.0, 0
    for text in texts:
        ids = [*language_model.tokenizer(text)["input_ids"], language_model.tokenizer.eos_token_id]
        words += len(text.split())
        for place in range(1, len(ids)):  # each token from as much context as the window has at that place
            begin = 0 if place < 48 else max(0, 48 + math.ceil((place - 47) / 16) * 16 - 48)
            begin = min(begin, max(0, len(ids) - 48)) if place >= 48 else 0
            with torch.inference_mode():
                logits = language_model.model(torch.tensor([ids[begin:place]])).logits[0, -1]
            nll -= float(logits.log_softmax(0)[ids[place]])
    figures = pretrain.perplexity(language_model, texts, stride=16)
    assert figures["perplexity_per_word"] == pytest.approx(math.exp(nll / words), rel=1e-3)
    with pytest.raises(ValueError, match="texts is empty"):
        pretrain.perplexity(language_model, [])


def test_training_data_depend_on_seed_and_index_only(language_model):
    tokenizer = language_model.tokenizer

    def blocks(seed):
        return pretrain.TextBlocks(REVIEWS, tokenizer, context=16, size=40, seed=seed)

    first, again, other = blocks(0), blocks(0), blocks(1)
    same = [torch.equal(first[i]["input_ids"], again[i]["input_ids"]) for i in reversed(range(40))]
    assert all(same)
    assert not all(torch.equal(first[i]["input_ids"], other[i]["input_ids"]) for i in range(40))
    at_start = np.mean([int(first[i]["input_ids"][0]) == tokenizer.bos_token_id for i in range(40)])
    assert 0.3 < at_start < 0.9


def test_crops_are_labelled_pieces_of_the_asked_lengths(language_model):
    recipe = pretrain.RewardModelRecipe(context=12, steps=20, batch_size=5, shortest_crop=3)
    crops = pretrain.LabelledCrops(REVIEWS, language_model.tokenizer, recipe=recipe)
    assert len(crops) == 100
    for i in range(100):
        crop = crops[i]
        text = language_model.tokenizer.decode(crop["input_ids"], skip_special_tokens=True)
        assert 2 <= len(crop["input_ids"]) <= 12
        assert any(text in review.text and review.label == crop["labels"] for review in REVIEWS)


def test_balancing_shifts_every_logit_by_the_fitted_constant(classifier_folder):
    loaded = load_classifier(classifier_folder, device="cpu")
    judge = SentimentReward(loaded, output="logit")
    before = judge.score_texts(TEXTS[:4])
    reviews = [Review(text, int(index % 4 > 0)) for index, text in enumerate(TEXTS)]
    shift = pretrain.balance_judge(loaded.model, loaded.tokenizer, reviews)
    after = judge.score_texts(TEXTS[:4])
    np.testing.assert_allclose(after, before + shift, atol=1e-4)
    odds = 1 / (1 + np.exp(-judge.score_texts(TEXTS)))
    assert odds.mean() == pytest.approx(0.75, abs=0.01)  # the best constant matches the share of positive labels
