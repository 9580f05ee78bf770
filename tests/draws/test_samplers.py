"""Draws against what the model itself says of them."""

import copy
import dataclasses
import os

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from bonlib.draws.samplers import Sampler, SamplingSettings, TransformersSampler, split_mix
from bonlib.draws.store import SampleStore
from bonlib.models.loaded import LoadedModel, load_language_model
from bonlib.models.reading import response_log_probs
from bonlib.models.texts import chat_prompt

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
def case(request, language_model, bundled_model):
    name = request.param.split()[-1]
    at_hand = {"random": language_model, "imdb-gpt2-tiny": bundled_model}
    loaded = at_hand.get(name) or load_language_model(name, device="cpu", dtype="float32")
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


def test_a_bad_seed_is_refused_before_anything_is_drawn(language_model, tmp_path):
    sampler = TransformersSampler(language_model)
    for draw in (
        lambda seed: sampler.sample(["the film"], SamplingSettings(4), seed=seed),
        lambda seed: SampleStore(tmp_path).draw(sampler, ["the film"], 4, SamplingSettings(4), seed=seed),
    ):
        for bad in (-1, 1.5, "0", None):
            with pytest.raises(ValueError, match="seed is"):
                draw(bad)
    assert not list(tmp_path.rglob("*"))
    store = SampleStore(tmp_path)
    first = store.draw(sampler, ["the film"], np.int64(4), SamplingSettings(4), seed=np.int64(0))
    second = store.draw(sampler, [np.str_("the film")], 4, SamplingSettings(4, temperature=1), seed=0)
    assert first.folder == second.folder


def test_late_settings_leave_older_draws_their_key_and_tell_new_ones_apart():
    assert SamplingSettings(6).described() == {"max_new_tokens": 6, "temperature": 1.0, "top_p": 1.0}
    given = SamplingSettings(6, top_k=5, min_p=0.1, stop=["\n", "###"])
    assert given.described()["stop"] == ("\n", "###") == given.stop
    assert not given.plain
    assert SamplingSettings(stop="\n").stop == ("\n",)
    assert SamplingSettings(stop="\n").plain
    for bad, message in (
        ({"top_k": -1}, "top_k is -1"),
        ({"min_p": 1.0}, "min_p is 1"),
        ({"stop": ["a", 3]}, r"stop\[1\] is 3"),
        ({"stop": [""]}, "an empty string"),
        ({"temperature": float("nan")}, "temperature is nan"),
    ):
        with pytest.raises(ValueError, match=message):
            SamplingSettings(**bad)


def test_a_response_with_a_seed_of_its_own_is_the_same_in_any_company(language_model):
    prompts, seeds = PROMPTS * 4, [seed * 2**58 + 1 for seed in range(16)]
    together = TransformersSampler(language_model).sample(prompts, SamplingSettings(8), seed=seeds)
    for size in (1, 5):
        sampler = TransformersSampler(language_model, batch_size=size)
        apart = sampler.sample(prompts[::-1], SamplingSettings(8), seed=seeds[::-1])
        np.testing.assert_array_equal(apart.token_ids[::-1], together.token_ids)
        np.testing.assert_allclose(apart.log_probs[::-1], together.log_probs, rtol=1e-5)
    for bad, message in (([1, 2], "seed has 2 numbers for 16 prompts"), ([-1] * 16, "seed is -1")):
        with pytest.raises(ValueError, match=message):
            sampler.sample(prompts, SamplingSettings(8), seed=bad)


def test_rows_of_random_numbers_are_uniform_and_independent():
    seeds = np.random.default_rng(0).integers(0, 2**63, 4000).tolist()
    uniforms = split_mix(seeds, 64)
    assert uniforms.dtype == np.float32
    assert uniforms.min() >= 0
    assert uniforms.max() < 1
    counts = np.bincount((uniforms.ravel() * 256).astype(int), minlength=256)
    assert chisquare(counts).pvalue > 1e-3
    pairs = np.bincount(((uniforms[:, :-1] * 16).astype(int) * 16 + (uniforms[:, 1:] * 16).astype(int)).ravel())
    assert chisquare(pairs).pvalue > 1e-3
    assert np.abs(np.corrcoef(uniforms.T) - np.eye(64)).max() < 0.08  # 5 standard errors
    np.testing.assert_array_equal(split_mix(seeds[5:6], 10)[0], uniforms[5, :10])
    assert split_mix([0], 1)[0, 0] == np.float32(0xE220A8397B1DCDAF / 2**64)  # the first number of the reference code
