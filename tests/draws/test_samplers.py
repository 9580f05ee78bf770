"""Draws against what the model itself says of them, and the choice among draws."""

import copy
import dataclasses
import os

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from bonlib.draws.samplers import Sampler, SamplingSettings, TransformersSampler
from bonlib.inference.best_of_n import best_of_n, random_of_n
from bonlib.inference.soft_best_of_n import soft_best_of_n
from bonlib.models.decoding import Law, inverse_cdf, next_token_probs
from bonlib.models.loaded import LoadedModel, chat_prompt, load_language_model
from bonlib.models.reading import response_log_probs

PROMPTS = ["the film", "I saw this with my mother", "a", "the film"]
# `make test-vllm` sets this in an environment that has vLLM, and the same tests then run on its engine.
CASES = (
    ["vllm imdb-gpt2-tiny", "vllm smollm2-135m-instruct"]
    if os.environ.get("BONLIB_TEST_VLLM")
    else ["random", "imdb-gpt2-tiny", "smollm2-135m-instruct"]
)


@dataclasses.dataclass
class Case:
    """A sampler, the same model in double precision to ask what draws should be like, and how far rounding may be off.

    In float32 a log-probability is right to some 1e-6 of itself, whatever the processor: measured are 1.6e-6 at most,
    over instruction sets from SSE 4.1 to AVX-512.
    """

    sampler: Sampler
    loaded: LoadedModel
    exact: torch.nn.Module
    prompts: list[str]
    rounding: float


@pytest.fixture(scope="module", params=CASES)
def case(request, language_model):
    name = request.param.split()[-1]
    loaded = language_model if name == "random" else load_language_model(name, device="cpu", dtype="float32")
    prompts = [chat_prompt(loaded.tokenizer, p) for p in PROMPTS] if loaded.tokenizer.chat_template else PROMPTS
    if request.param.startswith("vllm"):
        from bonlib.draws.vllm import VllmSampler

        sampler = VllmSampler(name, dtype="float32", engine={"max_model_len": 256, "enforce_eager": True})
    else:
        sampler = TransformersSampler(loaded)
    # vLLM's kernels for CPUs approximate functions: up to 1e-5 nats a token away from a pass in double precision.
    rounding = 1e-4 if request.param.startswith("vllm") else 1e-5
    yield Case(sampler, loaded, copy.deepcopy(loaded.model).double(), prompts, rounding)
    if request.param.startswith("vllm"):
        sampler.close()


@pytest.fixture(scope="module")
def sampler(language_model):
    return TransformersSampler(language_model)


def warped(logits, settings):
    """What `transformers` makes of logits under some settings."""
    warpers = [TemperatureLogitsWarper(settings.temperature)]
    warpers += [TopKLogitsWarper(settings.top_k)] if settings.top_k else []
    warpers += [TopPLogitsWarper(settings.top_p)] if settings.top_p < 1 else []
    warpers += [MinPLogitsWarper(settings.min_p)] if settings.min_p else []
    for warper in warpers:
        logits = warper(None, logits)
    return logits


def teacher_forced(case, prompt, response, settings):
    """Log-probabilities of a response under the model and under the sampling distribution, by a pass over it alone."""
    prompt_ids = case.loaded.tokenizer(prompt)["input_ids"]
    with torch.inference_mode():
        logits = case.exact(torch.tensor([prompt_ids + response])).logits[0, len(prompt_ids) - 1 : -1]
    picked = torch.tensor(response)[:, None]
    both = (logits, warped(logits, settings))
    return [float(scores.log_softmax(1).gather(1, picked).sum()) for scores in both]


SETTINGS = [
    SamplingSettings(24),
    SamplingSettings(24, temperature=0.6, top_p=0.8),
    SamplingSettings(24, temperature=1.3, top_k=20, min_p=0.05),
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_log_probs_equal_a_teacher_forced_pass(case, settings):
    responses = case.sampler.sample(case.prompts, settings, seed=3)
    for i, prompt in enumerate(case.prompts):
        ids = responses.token_ids[i][: responses.lengths[i]].tolist()
        plain, sampled = teacher_forced(case, prompt, ids, settings)
        assert responses.log_probs[i] == pytest.approx(plain, rel=case.rounding)
        assert responses.sampling_log_probs[i] == pytest.approx(sampled, rel=case.rounding, abs=case.rounding)


def test_towards_temperature_zero_the_likeliest_token_is_certain(sampler):
    tiny, small = (sampler.sample(PROMPTS, SamplingSettings(8, temperature=t), seed=0) for t in (1e-300, 1e-6))
    np.testing.assert_array_equal(tiny.token_ids, small.token_ids)
    np.testing.assert_array_equal(tiny.sampling_log_probs, 0.0)
    assert (tiny.log_probs < -1).all()


def test_a_response_stops_at_a_string(sampler):
    free = sampler.sample(["the film"] * 64, SamplingSettings(16), seed=0)
    stopped = sampler.sample(["the film"] * 64, SamplingSettings(16, stop=("a", "the")), seed=0)
    some = 0
    for row, text in enumerate(free.texts):
        begin = min((place for place in (text.find("a"), text.find("the")) if place >= 0), default=None)
        assert stopped.texts[row] == (text if begin is None else text[:begin])
        length = stopped.lengths[row]
        np.testing.assert_array_equal(stopped.token_ids[row, :length], free.token_ids[row, :length])
        some += length < free.lengths[row]
    assert some > 10
    assert (stopped.log_probs >= free.log_probs).all()
    again = response_log_probs(sampler.loaded, ["the film"] * 64, stopped)
    np.testing.assert_allclose(stopped.log_probs, again, rtol=1e-5)


@pytest.mark.parametrize("settings", [dataclasses.replace(each, max_new_tokens=1) for each in SETTINGS])
def test_next_tokens_follow_the_models_distribution(case, settings):
    prompt, count = PROMPTS[0], 20_000 if len(case.loaded.tokenizer) < 10_000 else 2_000
    responses = case.sampler.sample([prompt] * count, settings, seed=0)
    with torch.inference_mode():
        ids = torch.tensor([case.loaded.tokenizer(prompt)["input_ids"]])
        logits = case.loaded.model(ids).logits[:, -1]
    expected = count * warped(logits, settings).softmax(1)[0].numpy()
    observed = np.bincount(responses.token_ids[:, 0], minlength=len(expected))
    assert (observed[expected == 0] == 0).all()
    usual = expected >= 5
    assert chisquare(
        np.append(observed[usual], observed[~usual].sum() + 1e-9),
        np.append(expected[usual], count - expected[usual].sum() + 1e-9),
        sum_check=False,
    ).pvalue > 1e-3  # fmt: skip


def test_responses_end_where_the_end_token_comes(case):
    responses = case.sampler.sample([case.prompts[0]] * 200, SamplingSettings(30), seed=0)
    end, seen = case.loaded.tokenizer.eos_token_id, 0
    for row, length in zip(responses.token_ids, responses.lengths, strict=True):
        assert (row[:length] >= 0).all()
        assert (row[length:] == -1).all()
        assert end not in row[: length - 1]
        assert length == 30 or row[length - 1] == end
        seen += int(row[length - 1] == end)
    assert seen < 200
    assert seen > 0 or case.loaded.name == "imdb-gpt2-tiny"  # whose reviews are longer
    assert not any("<|" in text for text in responses.texts)


def test_the_same_seed_gives_the_same_draws_and_another_seed_others(case):
    first, again, other = (case.sampler.sample(case.prompts, SamplingSettings(12), seed=s) for s in (7, 7, 8))
    np.testing.assert_array_equal(first.token_ids, again.token_ids)
    np.testing.assert_array_equal(first.log_probs, again.log_probs)
    assert not np.array_equal(first.token_ids, other.token_ids)
    assert first.texts[0] != first.texts[3]  # the same prompt twice is two draws


def test_the_global_random_state_is_left_alone(case):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    case.sampler.sample(case.prompts, SamplingSettings(4), seed=1)
    assert torch.equal(before, torch.get_rng_state())


def test_a_response_is_text_after_its_prompt(case):
    responses = case.sampler.sample(case.prompts, SamplingSettings(12), seed=0)
    for prompt, text, row in zip(case.prompts, responses.texts, responses.token_ids, strict=True):
        head = case.loaded.tokenizer(prompt)["input_ids"]
        whole = case.loaded.tokenizer.decode(head + row[row >= 0].tolist(), skip_special_tokens=True)
        assert whole == case.loaded.tokenizer.decode(head, skip_special_tokens=True) + text


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
    probs = next_token_probs(torch.tensor([[1.0, 3.0, 2.0]]), Law(top_p=1e-6))
    assert probs.tolist() == [[0.0, 1.0, 0.0]]


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "at least one prompt"),
        ("the film", "list of at least one prompt"),
        (["the film", "the film " * 5000], r"prompts\[1\] .* has \d+ tokens; .* context of \d+ leaves \d+"),
    ],
)
def test_bad_prompts_are_named(case, prompts, message):
    with pytest.raises(ValueError, match=message):
        case.sampler.sample(prompts, SamplingSettings(12), seed=0)


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


def test_soft_best_of_n_keeps_each_as_often_as_its_softmax_says():
    rewards = np.tile([0.0, 1.0, 2.5], (1, 40_000))
    kept = soft_best_of_n(rewards, 3, 0.8, seed=0)
    shares = np.bincount(kept[0] % 3) / 40_000
    np.testing.assert_allclose(shares, np.exp(rewards[0, :3] / 0.8) / np.exp(rewards[0, :3] / 0.8).sum(), atol=0.01)
    np.testing.assert_array_equal(soft_best_of_n(rewards, 3, 1e-300, seed=1), best_of_n(rewards, 3))
    with pytest.raises(ValueError, match="temperature is 0"):
        soft_best_of_n(rewards, 3, 0, seed=0)


@pytest.mark.parametrize("choose", [best_of_n, lambda rewards, n: random_of_n(rewards, n, seed=0)])
def test_bad_choices_are_named(choose):
    with pytest.raises(ValueError, match=r"rewards\[1, 0\] is nan"):
        choose([[1.0, 2.0], [np.nan, 2.0]], 1)
    with pytest.raises(ValueError, match=r"shape \(2,\)"):
        choose([1.0, 2.0], 1)
    for n in (0, 3, 1.5):
        with pytest.raises(ValueError, match="n is"):
            choose([[1.0, 2.0]], n)
