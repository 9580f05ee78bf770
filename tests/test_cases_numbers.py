"""Small inputs that went wrong, with the right value: ties, laws, opponents, settings, rewards, texts."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bonlib.cdf import EmpiricalCdf, snapped
from bonlib.checks import flag, number, strings, whole
from bonlib.draws.rewards import ClassifierReward, FunctionReward, SentimentReward, checked_score
from bonlib.draws.samplers import SamplingSettings, TransformersSampler
from bonlib.draws.store import SampleStore, check_draws
from bonlib.estimates import best_of_n_kl, best_of_n_weights, best_of_n_win_rate
from bonlib.exact import Outcomes, kl_divergence
from bonlib.inference.best_of_n import best_of_n, random_of_n
from bonlib.methods.bon_sft import BonSft
from bonlib.methods.dpo import Dpo
from bonlib.methods.jbond import jbond_reward
from bonlib.methods.vbon import Vbon
from bonlib.methods.vbon_bound import VbonBound
from bonlib.metrics import win_probability
from bonlib.models.loaded import load_classifier, load_language_model
from bonlib.models.responses import Responses
from bonlib.training.quantile import leave_one_out_cdf
from bonlib.training.reward_cdf import SampledCdf
from bonlib.training.settings import Ppo, TrainingData, TrainSettings

PROBS, LEVELS = np.array([0.8, 0.1, 0.1]), np.array([0.5, 0.0, 1.0])
WHICH = np.random.default_rng(0).choice(3, p=PROBS, size=64)


def blurred(rewards, size=1e-8):
    """Every second reward a little higher, as from another batch."""
    rewards = np.array(rewards, dtype=np.float64)
    rewards[..., ::2] += size
    return rewards


# -- ties lost to rounding ---------------------------------------------------------------------------------------------


def test_ties_survive_rounding():
    rewards = blurred(LEVELS[WHICH])
    assert EmpiricalCdf(rewards, "none").weak(0.5 - 1e-8) == pytest.approx(59 / 64)
    assert win_probability([[0.5 - 1e-8]], [rewards])[0, 0] == pytest.approx(0.523, abs=1e-3)
    for options in ({}, {"responses": WHICH}):
        found = best_of_n_kl(rewards, 8, log_probs=np.log(PROBS)[WHICH], **options)
        assert found == pytest.approx(0.7240, abs=1e-4)
    exact = EmpiricalCdf(rewards, "none", rounding=0.0).weak(0.5 - 1e-8)
    assert exact == pytest.approx(8 / 64)  # who wants every digit has them


@given(
    st.lists(st.integers(1, 9), min_size=2, max_size=9),
    st.sampled_from([1e-9, 1.0, 1e9]),
    st.integers(0, 2**32),
    st.booleans(),
)
def test_rounding_changes_nothing_that_is_told_of_rewards_of_any_size(levels, scale, seed, outlier):
    clean = np.array([*levels, 2, 5, -1e9 if outlier else 9], dtype=np.float64) * scale
    noise = np.random.default_rng(seed).uniform(-2e-7, 2e-7, len(clean)) * scale
    noisy, other = clean + noise, clean + noise[::-1]
    for told in (
        lambda r, asked: EmpiricalCdf(r, "none").weak(asked),
        lambda r, asked: EmpiricalCdf(r, "none").strict(asked),
        lambda r, asked: win_probability([asked], [r]),
        lambda r, asked: best_of_n_weights(r, 2),
        lambda r, asked: best_of_n_kl(r, 2),
        lambda r, asked: best_of_n_win_rate(r, 2),
        lambda r, asked: leave_one_out_cdf([r]),
        lambda r, asked: Dpo(0.1, generations=3, pairs=3).examples(np.array([r]), seed=0)[1],
    ):
        np.testing.assert_allclose(told(noisy, other), told(clean, clean), rtol=1e-12)


def test_dense_rewards_do_not_hang_together():
    rewards = np.random.default_rng(0).random(1_000_000)
    found = snapped(rewards)
    assert (rewards - found).min() >= 0
    assert (rewards - found).max() <= 1e-6
    assert len(np.unique(found)) > 400_000
    np.testing.assert_array_equal(snapped([1.0, 1.0 + 1e-9], rounding=0.0), [1.0, 1.0 + 1e-9])
    with pytest.raises(ValueError, match="rounding is -1"):
        snapped([1.0, 2.0], rounding=-1)


def test_jbond_takes_rounding_for_a_tie():
    rewards = torch.tensor([0.5 - 1e-8, 0.4], dtype=torch.float64)
    anchor = torch.tensor([[0.5, 0.7], [0.5, 0.7]], dtype=torch.float64)
    assert jbond_reward(rewards, anchor).tolist() == [0.0, pytest.approx(-np.log(16))]


def test_a_text_is_judged_once_whatever_chunk_it_is_in(tmp_path):
    """The response " effects" is three of four draws: its F≤ must be told of it whenever it comes again."""
    store, sampler = SampleStore(tmp_path), TransformersSampler(load_language_model("imdb-gpt2-tiny", device="cpu"))
    judge = SentimentReward(load_classifier("imdb-sentiment-tiny", device="cpu"), batch_size=7)
    draws = store.draw(sampler, ["The special"], 256, SamplingSettings(1), seed=0, chunk_size=32)
    rewards = store.score(judge, draws)
    of_text = {text: set(rewards[0][draws.texts[0] == text]) for text in draws.texts[0]}
    assert all(len(given) == 1 for given in of_text.values())
    share = np.mean(draws.texts[0] == " effects")
    assert share == pytest.approx(0.777, abs=0.05)
    fresh = SentimentReward(judge.loaded, batch_size=3)
    again = fresh.score(["The special"] * 5, [" effects", " a", " case with it", " one", " effects"])[0]
    cdf = SampledCdf(["The special"], rewards, "none")
    worse = np.mean(rewards[0] < rewards[0][draws.texts[0] == " effects"][0])
    for reward in (again, judge.score(["The special"], [" effects"])[0]):
        assert np.exp(cdf.log_weak(["The special"], [""], [reward]))[0] == pytest.approx(share + worse)
    told = SentimentReward(judge.loaded)
    SampleStore(tmp_path).score(told, draws)
    told.score_tokens = None  # what the store holds it need not be asked
    assert told.score(["The special"], [" effects"])[0] in of_text[" effects"]


def test_a_classifier_forgets_when_its_weights_change(classifier):
    judge = SentimentReward(dataclasses.replace(classifier, model=load_copy(classifier.model)))
    first = judge.score(["the film"], [" was good"])
    assert judge.score(["the", "the film"], [" film was good", " was"])[0] == first[0]  # the same text
    with torch.no_grad():
        judge.loaded.model.score.weight += 1.0
    assert judge.score(["the film"], [" was good"])[0] != first[0]


def load_copy(model):
    import copy

    return copy.deepcopy(model)


# -- which draws are one response, and the law they come from ----------------------------------------------------------


def test_responses_of_one_reward_and_one_log_probability_are_not_one():
    rng = np.random.default_rng(0)
    die = rng.integers(6, size=(200, 128))
    even, log_probs = (die % 2 == 0).astype(float), np.full(die.shape, -np.log(6))
    np.testing.assert_allclose(best_of_n_kl(even, 8, log_probs=log_probs, responses=die), 0.6676, atol=1e-4)
    assert best_of_n_kl(even, 8, log_probs=log_probs).mean() == pytest.approx(0.6676, abs=0.02)
    answers = rng.integers(1000, size=(200, 128))
    names = np.array([[f"answer {number}" for number in row] for row in answers], dtype=object)
    for options in ({"responses": names}, {"responses": names.tolist()}, {}):
        found = best_of_n_kl(answers < 500, 8, log_probs=np.full(answers.shape, -np.log(1000)), **options)
        assert found.mean() == pytest.approx(0.668, abs=0.02)


@pytest.mark.parametrize("levels", [2, 5, 40, 300])
def test_known_responses_make_the_kl_more_accurate(levels):
    rng = np.random.default_rng(levels)
    probs, rewards = rng.dirichlet(np.full(300, 0.3)), rng.integers(levels, size=300)
    probs = probs[probs > 1e-12] / probs[probs > 1e-12].sum()
    rewards = rewards[: len(probs)]
    model = Outcomes(probs, rewards)
    drawn = rng.choice(len(probs), p=probs, size=(100, 128))
    for n in (2, 8, 32):
        exact = kl_divergence(model.best_of(n), model.probs)
        knowing = best_of_n_kl(rewards[drawn], n, log_probs=np.log(probs)[drawn], responses=drawn)
        counting = best_of_n_kl(rewards[drawn], n)
        assert knowing.mean() == pytest.approx(exact, abs=0.05)
        assert np.sqrt(np.mean((knowing - exact) ** 2)) < 1.05 * np.sqrt(np.mean((counting - exact) ** 2))


def test_responses_of_another_shape_and_log_probs_of_another_law_are_named():
    drawn = np.random.default_rng(0).choice(3, p=PROBS, size=128)
    for responses in (drawn[:5], [drawn.tolist()], 3, [[1]] * 128):
        with pytest.raises(ValueError, match=r"responses must have the shape \(128,\)"):
            best_of_n_kl(drawn, 8, log_probs=np.log(PROBS)[drawn], responses=responses)
    with pytest.raises(ValueError, match="log_probs are not those of the distribution"):
        best_of_n_kl(drawn, 8, log_probs=np.log([0.02, 0.49, 0.49])[drawn], responses=drawn)


def test_an_outlier_makes_no_ties_of_other_rewards():
    for penalty in (-1e3, -1e6, -1e9, 1e12):
        assert EmpiricalCdf([0.0, 1.0, penalty], "none").weak(0.5) == (np.array([0.0, 1.0, penalty]) <= 0.5).mean()
        assert len(np.unique(snapped([0.0, 1.0, 0.0, 1.0, penalty, penalty]))) == 3


@pytest.mark.parametrize("prompt", ["I don", "The special"])
def test_draws_know_their_law(tmp_path, prompt):
    sampler = TransformersSampler(load_language_model("imdb-gpt2-tiny", device="cpu"))
    cold = SamplingSettings(2, temperature=0.3)
    draws = SampleStore(tmp_path).draw(sampler, [prompt], 256, cold, seed=0)
    judge = FunctionReward(lambda prompt, response: float(len(response)), name="letters of a response")
    rewards = SampleStore(tmp_path).score(judge, draws)
    found = best_of_n_kl(rewards, 16, log_probs=draws.log_probs, responses=draws.texts)
    many = sampler.sample([prompt] * 4096, cold, seed=1)
    counted = best_of_n_kl(checked_score(judge, [prompt] * 4096, many), 16)
    assert found[0] == pytest.approx(counted, abs=0.1)
    with pytest.raises(ValueError, match=r"came .* times in 256: give draws"):
        best_of_n_kl(rewards, 16, log_probs=draws.model_log_probs, responses=draws.texts)
    assert (draws.sampler, draws.model, draws.settings) == (sampler.fingerprint, "imdb-gpt2-tiny", cold)
    with pytest.raises(ValueError, match=r"temperature=0\.3.*draw with temperature 1"):
        TrainingData([prompt], judge, SamplingSettings(2), draws, rewards)
    plain = SampleStore(tmp_path).draw(sampler, [prompt], 8, SamplingSettings(2), seed=0)
    np.testing.assert_array_equal(plain.log_probs, plain.model_log_probs)


def test_draws_of_another_model_are_refused(language_model, training_data):
    draws = training_data.draws
    check_draws(draws, language_model)
    for known in ({}, {"sampler": "of vLLM, say"}):
        check_draws(dataclasses.replace(draws, **known), language_model)
    other = dataclasses.replace(language_model, model=load_copy(language_model.model), name="another")
    with torch.no_grad():
        other.model.transformer.wte.weight.mul_(0.97)
    with pytest.raises(ValueError, match=r"draws are those of .*, not of the reference another"):
        check_draws(draws, other)


# -- opponents ---------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 3), min_size=2, max_size=7), st.data())
def test_the_win_rate_counts_every_opponent_that_does_not_compete(rewards, data):
    n = data.draw(st.integers(1, len(rewards) - 1))
    wins = [
        (max(chosen) > rewards[place]) + 0.5 * (max(chosen) == rewards[place])
        for place in range(len(rewards))
        for chosen in itertools.combinations(rewards[:place] + rewards[place + 1 :], n)
    ]
    assert best_of_n_win_rate(rewards, n) == pytest.approx(np.mean(wins))


def test_the_win_rate_is_unbiased():
    assert best_of_n_win_rate(np.random.default_rng(0).random((3, 16)), 8) == pytest.approx(8 / 9)
    model = Outcomes(PROBS, LEVELS)
    drawn = LEVELS[np.random.default_rng(0).choice(3, p=PROBS, size=(4000, 16))]
    for n in (1, 8, 15):
        found = best_of_n_win_rate(drawn, n)
        right = model.win_rate(model.best_of(n))
        assert found.mean() == pytest.approx(right, abs=5 * found.std() / np.sqrt(4000) + 1e-12)
    with pytest.raises(ValueError, match=r"n is 16; with 16 samples a prompt and 1 to play against .* from 1 to 15"):
        best_of_n_win_rate(drawn, 16)


# -- settings ----------------------------------------------------------------------------------------------------------

FOUR = [4, 4.0, np.int64(4), np.float32(4), np.array(4), torch.tensor(4), torch.tensor(4.0, requires_grad=True)]


@pytest.mark.parametrize("four", FOUR, ids=lambda four: type(four).__name__ + str(getattr(four, "dtype", "")))
def test_numbers_of_any_kind_are_python_numbers(four):
    assert SamplingSettings(four, temperature=four).described() == SamplingSettings(4, 4.0).described()
    made = [SamplingSettings(four, four, 1), TrainSettings(steps=four, prompts=four, seed=four), Vbon(four)]
    made += [BonSft(four), VbonBound(four), Dpo(four, generations=four, pairs=four), Ppo(epochs=four)]
    for each in made:
        json.dumps(dataclasses.asdict(each))
    assert random_of_n(np.zeros((1, 8)), four, seed=four).shape == (1, 2)
    assert best_of_n_kl(np.arange(8), four) == best_of_n_kl(np.arange(8), 4)


@pytest.mark.parametrize("bad", [4.5, "4", True, None, float("nan"), float("inf"), -1, [4], np.bool_(True), 4j])
def test_what_is_not_whole_is_named(bad, tmp_path):
    data = np.zeros((1, 8))
    for name, make in {
        "max_new_tokens": lambda: SamplingSettings(bad),
        "top_k": lambda: SamplingSettings(top_k=bad),
        "steps": lambda: TrainSettings(steps=bad),
        "lora_rank": lambda: TrainSettings(lora_rank=bad),
        "epochs": lambda: Ppo(epochs=bad),
        "seed": lambda: TrainSettings(seed=bad),
        "n": lambda: BonSft(bad),
        "generations": lambda: Dpo(0.1, generations=bad),
    }.items():
        with pytest.raises(ValueError, match=f"^{name} is .* must be a whole number"):
            make()
    with pytest.raises(ValueError, match="seed is"):
        random_of_n(data, 2, seed=bad)
    with pytest.raises(ValueError, match="n is"):
        best_of_n(data, bad)
    if bad != 4.5:
        with pytest.raises(ValueError, match="unused_days is"):
            SampleStore(tmp_path).prune(bad)


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
    first = store.draw(
        sampler, ["the film"], np.int64(4), SamplingSettings(4), seed=np.int64(0), chunk_size=np.int64(4)
    )
    second = store.draw(sampler, [np.str_("the film")], 4, SamplingSettings(4, temperature=1), seed=0, chunk_size=4)
    assert first.chunks == second.chunks


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


def test_the_checks_name_what_they_want():
    assert whole("n", 3, 1, 3) == 3
    assert number("x", np.float32(0.5), above=0) == 0.5
    assert flag("x", np.bool_(True)) is True
    assert strings("prompts", np.array(["a", "b"])) == ["a", "b"]
    for check, message in (
        (lambda: whole("n", 4, 1, 3), "n is 4; it must be a whole number from 1 to 3"),
        (lambda: number("x", 2, above=0, most=1), "x is 2; it must be a finite number above 0 and at most 1"),
        (lambda: flag("x", 1), "x is 1; it must be True or False"),
        (lambda: strings("prompts", "abc"), "prompts is 'abc'; it must be a list"),
        (lambda: strings("prompts", ["a", None]), r"prompts\[1\] is None"),
        (lambda: strings("prompts", ["a", "\ud800"]), r"prompts\[1\] is .*surrogate"),
        (lambda: strings("prompts", [], least=1), "at least one prompt"),
    ):
        with pytest.raises(ValueError, match=message):
            check()


# -- rewards -----------------------------------------------------------------------------------------------------------


class Given:
    """A reward model that returns what it was given."""

    fingerprint = "given"

    def __init__(self, rewards):
        self.rewards = rewards

    def score(self, prompts, responses):
        return self.rewards


PAIR = (["the film", "a bad"], [" was good", " one"])


@pytest.mark.parametrize(
    "rewards",
    [
        torch.tensor([1.0, 0.0], requires_grad=True),
        torch.tensor([1.0, 0.0], dtype=torch.bfloat16),
        torch.tensor([True, False]),
        [torch.tensor(1.0, requires_grad=True), torch.tensor([0.0])],
        [np.float32(1), np.int64(0)],
        [True, np.bool_(False)],
        np.array([1, 0], dtype=object),
        (1, 0),
    ],
    ids=repr,
)
def test_rewards_of_any_kind_of_number_are_taken(rewards):
    assert checked_score(Given(rewards), *PAIR).tolist() == [1.0, 0.0]
    each = dict(zip(PAIR[1], rewards, strict=True))
    name = f"each {rewards!r}"
    assert checked_score(FunctionReward(lambda p, r: each[r], name=name), *PAIR).tolist() == [1.0, 0.0]


@pytest.mark.parametrize("bad", ["good", None, {"score": 1}, (1.0, "text"), [1, 2], b"1", 1j, float("nan"), "1.0"])
def test_a_reward_that_is_no_number_names_prompt_and_response(bad):
    given = FunctionReward(lambda p, r: bad if r == " one" else 1.0, name=f"bad {bad!r}")
    for model in (given, Given([1.0, bad])):
        with pytest.raises(ValueError, match=r"prompt 'a bad', response ' one'") as caught:
            checked_score(model, *PAIR)
        assert "\n" not in str(caught.value)


def test_the_wrong_number_of_rewards_is_named():
    for bad in ([1.0], 1.0, None, "ab", {"a": 1}, torch.zeros(2, 2), np.zeros(3)):
        with pytest.raises(ValueError, match=r"for 2 responses, the first to prompt 'the film'; it must return one"):
            checked_score(Given(bad), *PAIR)


def test_what_is_no_reward_model_or_no_model_gets_the_remedy(classifier, language_model, training_data, tmp_path):
    for bad, message in (
        (lambda p, r: 1.0, r"FunctionReward\(function, name=NAME\)"),
        (len, r"FunctionReward\(function, name=NAME\)"),
        ("imdb-sentiment-tiny", "load_classifier"),
        (classifier, "load_classifier"),
        (classifier.model, "load_classifier"),
        (FunctionReward, "reward_model is <class"),
        (None, "reward_model is None"),
    ):
        for use in (
            lambda bad: checked_score(bad, *PAIR),
            lambda bad: SampleStore(tmp_path).score(bad, training_data.draws),
            lambda bad: TrainingData(["the film"], bad, SamplingSettings(4)),
        ):
            with pytest.raises(ValueError, match=message):
                use(bad)
    for make, message in (
        (lambda: TransformersSampler("imdb-gpt2-tiny"), "load_language_model"),
        (lambda: SentimentReward("imdb-sentiment-tiny"), "load_classifier"),
        (lambda: ClassifierReward(classifier.model), "load_classifier"),
        (lambda: SampleStore(tmp_path).draw(language_model, ["a"], 1, SamplingSettings(4), seed=0), "TransformersS"),
        (lambda: FunctionReward("good", name="x"), "function is 'good'"),
        (lambda: FunctionReward(len, name=3), "name is 3"),
    ):
        with pytest.raises(ValueError, match=message):
            make()


def test_two_functions_of_one_name_are_told_apart(language_model, tmp_path):
    def of(letter, weight=1.0):
        return lambda prompt, response: weight * response.count(letter)

    first = FunctionReward(of("e"), name="twice")
    FunctionReward(of("e"), name="twice")  # the same code again is no trouble
    for other in (of("a"), of("e", 2.0), lambda prompt, response: len(response)):
        with pytest.warns(UserWarning, match="two reward functions are called 'twice'"):
            FunctionReward(other, name="twice")
    draws = SampleStore(tmp_path).draw(TransformersSampler(language_model), ["a"], 4, SamplingSettings(4), seed=0)
    stored = SampleStore(tmp_path).score(first, draws)
    with pytest.warns(UserWarning, match="two reward"):
        other = FunctionReward(of("a"), name="twice")
    with pytest.warns(UserWarning, match="another function called 'twice' gave"):
        np.testing.assert_array_equal(SampleStore(tmp_path).score(other, draws), stored)


def test_only_what_was_asked_for_is_scored(language_model, tmp_path):
    calls = []
    costly = FunctionReward(lambda p, r: calls.append((p, r)) or float(len(r)), name="costly")
    store, sampler = SampleStore(tmp_path), TransformersSampler(language_model)
    prompts = ["the film", "a bad"]
    few = store.score(costly, store.draw(sampler, prompts, 4, SamplingSettings(4), seed=0))
    assert len(calls) == len(set(calls)) <= 8
    more = store.score(costly, store.draw(sampler, prompts, 100, SamplingSettings(4), seed=0))
    np.testing.assert_array_equal(more[:, :4], few)
    assert len(calls) == len(set(calls))
    scored = len(calls)
    np.testing.assert_array_equal(
        store.score(costly, store.draw(sampler, prompts, 70, SamplingSettings(4), seed=0)), more[:, :70]
    )
    assert len(calls) == scored


def test_rewards_stored_chunk_by_chunk_come_back_as_one_a_text(language_model, tmp_path):
    """A store filled when equal texts of two chunks were scored apart."""
    store, name = SampleStore(tmp_path), "chunk by chunk"
    reward = FunctionReward(lambda p, r: float(len(r)), name=name)
    draws = store.draw(TransformersSampler(language_model), ["a"], 64, SamplingSettings(1), seed=0, chunk_size=8)
    store.score(reward, draws)
    for place, file in enumerate(sorted(tmp_path.rglob("*.reward-*.npz"))):
        with np.load(file) as arrays:
            rewards = arrays["rewards"] + place * 1e-8
        np.savez(file, rewards=rewards)
    found = store.score(reward, draws)
    assert all(len(set(found[0][draws.texts[0] == text])) == 1 for text in draws.texts[0])


# -- texts -------------------------------------------------------------------------------------------------------------

TEXTS = st.text(st.characters(exclude_categories=[]) | st.sampled_from("\0\r\n\u2028\u202e\U0001f600א "), max_size=8)


class Writer:
    """A sampler that writes given texts."""

    fingerprint = name = "writer"

    def __init__(self, texts):
        self.texts = texts

    def sample(self, prompts, settings, *, seed):
        zeros = np.zeros(len(prompts))
        return Responses(self.texts, np.zeros((len(prompts), 1), dtype=np.int32), zeros, zeros)


@settings(max_examples=30)
@given(st.lists(TEXTS, min_size=4, max_size=4))
def test_texts_are_the_same_in_the_store_and_after_it(tmp_path_factory, texts):
    store = SampleStore(tmp_path_factory.mktemp("texts"))
    for _ in range(2):  # drawn, and read again
        draws = store.draw(Writer(texts), ["a"], 4, SamplingSettings(4), seed=0, chunk_size=4)
        assert draws.texts[0].tolist() == texts
        assert draws.responses[0][1:3].texts.tolist() == texts[1:3]


def test_files_from_before_are_read(tmp_path):
    store, texts = SampleStore(tmp_path), ["good\r\n", "", "ß…", "x"]
    draws = store.draw(Writer(texts), ["a"], 4, SamplingSettings(4), seed=0, chunk_size=4)
    ((path,),) = draws.chunks
    with np.load(path) as arrays:
        np.savez(path, **{**arrays, "texts": np.array(texts)})
    assert store.draw(Writer([]), ["a"], 4, SamplingSettings(4), seed=0, chunk_size=4).texts[0].tolist() == texts
