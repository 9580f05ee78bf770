"""Reward models: against the plain pass, in any batch, and with bad values."""

import numpy as np
import pytest
import torch

from bonlib.draws.rewards import ClassifierReward, CutPenalty, FunctionReward, SentimentReward, checked_score
from bonlib.draws.samplers import SamplingSettings, TransformersSampler
from bonlib.draws.store import SampleStore
from bonlib.models.loaded import LoadedModel

PROMPTS = ["the film", "a bad", "I saw this with my", "nobody"]
RESPONSES = [" was good", " film, a very bad film indeed", " mother", " knows why this was made and we laughed"]


def test_scores_equal_a_pass_without_padding(classifier):
    logits = SentimentReward(classifier, output="logit").score(PROMPTS, RESPONSES)
    for logit, prompt, response in zip(logits, PROMPTS, RESPONSES, strict=True):
        with torch.inference_mode():
            ids = torch.tensor([classifier.tokenizer(prompt + response)["input_ids"]])
            negative, positive = classifier.model(ids).logits[0].tolist()
        assert logit == pytest.approx(positive - negative, abs=1e-4)
    np.testing.assert_allclose(SentimentReward(classifier).score(PROMPTS, RESPONSES), 1 / (1 + np.exp(-logits)))


def test_the_batch_does_not_matter(classifier):
    together = SentimentReward(classifier).score(PROMPTS, RESPONSES)
    apart = SentimentReward(classifier, batch_size=1).score(PROMPTS, RESPONSES)
    np.testing.assert_allclose(together, apart, atol=1e-6)


def test_the_bundled_judge_tells_praise_from_blame():
    from bonlib.models.loaded import load_classifier

    judge = SentimentReward(load_classifier("imdb-sentiment-tiny", device="cpu"))
    praise, blame = judge.score_texts(
        ["A wonderful film, I loved every minute of it.", "A terrible film, boring and badly acted. Avoid."]
    )
    assert praise > 0.8
    assert blame < 0.2


def test_output_kinds_have_their_own_fingerprint(classifier):
    prints = {SentimentReward(classifier, output=output).fingerprint for output in ("probability", "logit")}
    assert len(prints) == 2


def test_any_function_is_a_reward_model():
    reward = FunctionReward(lambda prompt, response: len(response), name="length")
    assert reward.score(PROMPTS, RESPONSES).tolist() == [len(response) for response in RESPONSES]
    assert reward.fingerprint != FunctionReward(len, name="length 2").fingerprint


def test_a_bad_score_names_prompt_response_and_remedy():
    reward = FunctionReward(lambda p, r: float("nan") if r == " mother" else 1.0, name="gap")
    with pytest.raises(ValueError, match=r"nan to 1 of 4 .* prompt 'I saw this with my', response ' mother'"):
        checked_score(reward, PROMPTS, RESPONSES)


def test_a_bad_shape_is_named(classifier):
    class Wrong:
        fingerprint = "wrong"

        def score(self, prompts, responses):
            return np.zeros((len(responses), 2))

    with pytest.raises(ValueError, match=r"shape \(4, 2\) for 4 responses"):
        checked_score(Wrong(), PROMPTS, RESPONSES)
    with pytest.raises(ValueError, match="output is 'both'"):
        SentimentReward(classifier, output="both")
    with pytest.raises(ValueError, match=r"text 1 has \d+ tokens"):
        SentimentReward(classifier).score_texts(["short", "film " * 60])
    with pytest.raises(ValueError, match="argument 2"):
        SentimentReward(classifier).score(["a", "b"], ["c"])


def test_nothing_to_score_gives_no_scores(classifier):
    judge = SentimentReward(classifier)
    assert judge.score([], []).shape == judge.score_texts([]).shape == (0,)
    with pytest.raises(ValueError, match="batch_size is 0"):
        SentimentReward(classifier, batch_size=0)


def test_a_classifier_with_an_encoder_is_read_whole(language_model):
    from transformers import BartConfig, BartForSequenceClassification

    torch.manual_seed(0)
    config = BartConfig(
        vocab_size=300, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, num_labels=1,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, eos_token_id=0, pad_token_id=1,
        max_position_embeddings=64,
    )  # fmt: skip
    loaded = LoadedModel(BartForSequenceClassification(config).eval(), language_model.tokenizer, "random bart")
    rewards = ClassifierReward(loaded, batch_size=2).score(["the film"] * 3, [" was good", " was", " and sad"])
    for response, reward in zip([" was good", " was", " and sad"], rewards, strict=True):
        ids = torch.tensor([loaded.tokenizer("the film" + response)["input_ids"]])
        with torch.inference_mode():
            assert reward == pytest.approx(float(loaded.model(ids).logits[0, 0]), abs=1e-4)


def test_a_cut_response_loses_the_penalty_wherever_it_is_scored(language_model, tmp_path):
    class Judge(FunctionReward):
        loaded = language_model

    judge = Judge(lambda prompt, response: len(response) / 10, name="length")
    ends = language_model.end_token_ids
    reward_model, sampler = CutPenalty(judge, ends, penalty=2.0), TransformersSampler(language_model)
    draws = SampleStore(tmp_path).draw(sampler, ["the film"], 256, SamplingSettings(12), seed=0)
    (responses,) = draws.responses
    is_cut = np.array([row[row >= 0][-1] not in ends for row in responses.token_ids])
    assert 0 < is_cut.sum() < 256
    expected = judge.score(["the film"] * 256, responses.texts.tolist()) - 2.0 * is_cut
    assert np.array_equal(SampleStore(tmp_path).score(reward_model, draws)[0], expected)
    assert np.array_equal(checked_score(reward_model, ["the film"] * 256, responses), expected)
    assert reward_model.fingerprint != CutPenalty(judge, ends, penalty=1.0).fingerprint
    with pytest.raises(ValueError, match="penalty is -1"):
        CutPenalty(judge, ends, penalty=-1)
