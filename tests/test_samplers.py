"""Draws against what the model itself says of them, and the choice among draws."""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers import TemperatureLogitsWarper, TopPLogitsWarper

from bonlib.lm.decoding import inverse_cdf, next_token_probs
from bonlib.lm.models import load_language_model
from bonlib.lm.samplers import SamplingSettings, TransformersSampler, best_of_n, random_of_n

PROMPTS = ["the film", "I saw this with my mother", "a", "the film"]


@pytest.fixture(scope="module")
def sampler(language_model):
    return TransformersSampler(language_model)


def teacher_forced(loaded, prompt, response, settings):
    """Log-probabilities of a response under the model and under the sampling distribution, unpadded, by the warpers."""
    prompt_ids = loaded.tokenizer(prompt)["input_ids"]
    ids = torch.tensor([prompt_ids + response])
    with torch.inference_mode():
        logits = loaded.model(ids).logits[0, len(prompt_ids) - 1 : -1].double()
    warped = TemperatureLogitsWarper(settings.temperature)(None, logits)
    if settings.top_p < 1:
        warped = TopPLogitsWarper(settings.top_p)(None, warped)
    picked = torch.tensor(response)[:, None]
    return [float(scores.log_softmax(1).gather(1, picked).sum()) for scores in (logits, warped)]


@pytest.mark.parametrize("settings", [SamplingSettings(12), SamplingSettings(12, temperature=0.6, top_p=0.8)])
def test_log_probs_equal_a_teacher_forced_pass(sampler, settings):
    responses = sampler.sample(PROMPTS, settings, seed=3)
    for i, prompt in enumerate(PROMPTS):
        ids = responses.token_ids[i][: responses.lengths[i]].tolist()
        plain, warped = teacher_forced(sampler.loaded, prompt, ids, settings)
        assert responses.log_probs[i] == pytest.approx(plain, abs=1e-4)
        assert responses.sampling_log_probs[i] == pytest.approx(warped, abs=1e-4)


def test_log_probs_equal_a_teacher_forced_pass_on_the_bundled_model():
    loaded = load_language_model("imdb-gpt2-tiny", device="cpu")
    prompts = ["I watched this film with", "The"]
    responses = TransformersSampler(loaded).sample(prompts, SamplingSettings(24), seed=0)
    for i, prompt in enumerate(prompts):
        ids = responses.token_ids[i][: responses.lengths[i]].tolist()
        assert responses.log_probs[i] == pytest.approx(
            teacher_forced(loaded, prompt, ids, SamplingSettings())[0], abs=1e-4
        )


@pytest.mark.parametrize("settings", [SamplingSettings(1), SamplingSettings(1, temperature=0.5, top_p=0.7)])
def test_next_tokens_follow_the_models_distribution(sampler, settings):
    count = 20_000
    responses = TransformersSampler(sampler.loaded, batch_size=5000).sample(["the film"] * count, settings, seed=0)
    with torch.inference_mode():
        ids = torch.tensor([sampler.loaded.tokenizer("the film")["input_ids"]])
        logits = sampler.loaded.model(ids).logits[:, -1]
    warped = TopPLogitsWarper(settings.top_p)(None, TemperatureLogitsWarper(settings.temperature)(None, logits))
    expected = count * warped.softmax(1)[0].numpy()
    observed = np.bincount(responses.token_ids[:, 0], minlength=len(expected))
    assert (observed[expected == 0] == 0).all()
    usual = expected >= 5
    assert chisquare(
        np.append(observed[usual], observed[~usual].sum() + 1e-9),
        np.append(expected[usual], count - expected[usual].sum() + 1e-9),
        sum_check=False,
    ).pvalue > 1e-3  # fmt: skip


def test_responses_end_where_the_end_token_comes(sampler):
    responses = sampler.sample(["the film"] * 200, SamplingSettings(30), seed=0)
    end, seen = sampler.loaded.tokenizer.eos_token_id, 0
    for row, length in zip(responses.token_ids, responses.lengths, strict=True):
        assert (row[:length] >= 0).all()
        assert (row[length:] == -1).all()
        assert end not in row[: length - 1]
        assert length == 30 or row[length - 1] == end
        seen += int(row[length - 1] == end)
    assert 0 < seen < 200
    assert not any("<|" in text for text in responses.texts)


def test_the_same_seed_gives_the_same_draws_and_another_seed_others(sampler):
    first, again, other = (sampler.sample(PROMPTS, SamplingSettings(12), seed=s) for s in (7, 7, 8))
    np.testing.assert_array_equal(first.token_ids, again.token_ids)
    np.testing.assert_array_equal(first.log_probs, again.log_probs)
    assert not np.array_equal(first.token_ids, other.token_ids)
    assert first.texts[0] != first.texts[3]  # the same prompt twice is two draws


def test_the_global_random_state_is_left_alone(sampler):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    sampler.sample(PROMPTS, SamplingSettings(4), seed=1)
    assert torch.equal(before, torch.get_rng_state())


def test_batches_are_joined(sampler):
    responses = TransformersSampler(sampler.loaded, batch_size=3).sample(PROMPTS * 2, SamplingSettings(6), seed=0)
    assert len(responses) == 8
    assert responses.token_ids.shape == (8, 6)


def test_inverse_cdf_never_picks_what_cannot_be():
    probs = torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0]]).repeat(4, 1)
    uniforms = torch.tensor([0.0, 0.2499, 0.25, 1.0 - 2**-24])
    for block in (1, 2, 64):
        drawn, total = inverse_cdf(probs, uniforms, block)
        assert drawn.tolist() == [1, 1, 3, 3]
        assert total.tolist() == [1] * 4
        assert inverse_cdf(probs, torch.ones(4), block)[0].tolist() == [3] * 4


def test_inverse_cdf_draws_as_often_as_the_weights_say():
    weights = torch.rand(1, 1000, generator=torch.Generator().manual_seed(0)) ** 8 * 7
    uniforms = (torch.arange(200_000) + 0.5) / 200_000
    drawn, _ = inverse_cdf(weights.expand(200_000, -1), uniforms)
    counts = torch.bincount(drawn, minlength=1000).double()
    expected = weights[0].double() / weights.double().sum() * 200_000
    assert (counts - expected).abs().max() < 2  # no noise: the uniform numbers are a grid
    assert (drawn.diff() >= 0).all()


def test_top_p_keeps_at_least_one_token():
    probs = next_token_probs(torch.tensor([[1.0, 3.0, 2.0]]), temperature=1.0, top_p=1e-6)
    assert probs.tolist() == [[0.0, 1.0, 0.0]]


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "at least one prompt"),
        ("the film", "list of at least one prompt"),
        (["the film", "the film " * 40], r"prompts\[1\] .* has \d+ tokens; .* context of 48 leaves 36"),
    ],
)
def test_bad_prompts_are_named(sampler, prompts, message):
    with pytest.raises(ValueError, match=message):
        sampler.sample(prompts, SamplingSettings(12), seed=0)


@pytest.mark.parametrize(
    "bad", [{"max_new_tokens": 0}, {"temperature": 0}, {"temperature": np.inf}, {"top_p": 0}, {"top_p": 1.1}]
)
def test_bad_settings_are_named(bad):
    with pytest.raises(ValueError, match=f"{next(iter(bad))} is"):
        SamplingSettings(**bad)


def test_best_of_n_keeps_the_first_best_of_each_group():
    rewards = np.array([[1, 3, 3, 0, 5, 2, 9], [0, 0, 0, 0, 0, 1, 9]], dtype=float)
    assert best_of_n(rewards, 3).tolist() == [[1, 4], [0, 5]]
    assert best_of_n(rewards, 1).tolist() == [list(range(7))] * 2
    assert best_of_n(rewards, 7).tolist() == [[6], [6]]


def test_random_of_n_chooses_in_the_same_groups_whatever_the_reward():
    rewards = np.random.default_rng(0).normal(size=(500, 12))
    kept = random_of_n(rewards, 4, seed=1)
    assert kept.shape == best_of_n(rewards, 4).shape
    np.testing.assert_array_equal(kept // 4, np.tile([0, 1, 2], (500, 1)))
    np.testing.assert_array_equal(kept, random_of_n(-rewards, 4, seed=1))
    assert np.bincount(kept.ravel() % 4).min() > 300


@pytest.mark.parametrize("choose", [best_of_n, lambda rewards, n: random_of_n(rewards, n, seed=0)])
def test_bad_choices_are_named(choose):
    with pytest.raises(ValueError, match=r"rewards\[1, 0\] is nan"):
        choose([[1.0, 2.0], [np.nan, 2.0]], 1)
    with pytest.raises(ValueError, match=r"shape \(2,\)"):
        choose([1.0, 2.0], 1)
    for n in (0, 3, 1.5):
        with pytest.raises(ValueError, match="n is"):
            choose([[1.0, 2.0]], n)
