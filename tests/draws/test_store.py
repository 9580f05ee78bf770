"""The store: nothing is drawn twice, nothing drawn is lost, and damage is named."""

import copy
import dataclasses
import hashlib
import json
import os
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bonlib.draws.rewards import FunctionReward, checked_score
from bonlib.draws.samplers import SamplingSettings, TransformersSampler
from bonlib.draws.segments import DamagedFileError, DrawRows, RewardRows, add, merge
from bonlib.draws.store import SampleStore, check_draws
from bonlib.estimates import best_of_n_kl
from bonlib.models.loaded import load_language_model
from bonlib.models.responses import Responses
from bonlib.training.settings import TrainingData

PROMPTS = ["the film", "a bad", "I saw"]
SETTINGS = SamplingSettings(6)
LENGTH = FunctionReward(lambda prompt, response: float(len(response)), name="length")


class CountingSampler:
    """Draws like its inner sampler, four at once, notes what it is asked for, and fails at a call if it shall."""

    batch_size = 4

    def __init__(self, inner, fail_at=None):
        self.inner, self.fail_at, self.calls, self.asked = inner, fail_at, 0, []

    @property
    def fingerprint(self):
        return self.inner.fingerprint

    @property
    def name(self):
        return self.inner.name

    def sample(self, prompts, settings, *, seed):
        self.calls += 1
        if self.calls == self.fail_at:
            raise KeyboardInterrupt
        self.asked += zip(prompts, seed, strict=True)
        return self.inner.sample(prompts, settings, seed=seed)


class Letters:
    """Random letters, each response from its seed alone."""

    fingerprint = name = "letters"

    def sample(self, prompts, settings, *, seed):
        ids = [np.random.default_rng(each).integers(97, 123, size=each % 4 + 1) for each in seed]
        token_ids = np.full((len(prompts), 8), -1, dtype=np.int32)
        for row, letters in zip(token_ids, ids, strict=True):
            row[: len(letters)] = letters
        log_probs = np.array([-letters.sum() / 100.0 for letters in ids])
        return Responses(["".join(map(chr, letters)) for letters in ids], token_ids, log_probs, log_probs - 1.0)


@pytest.fixture
def sampler(language_model):
    return CountingSampler(TransformersSampler(language_model))


@pytest.fixture
def store(tmp_path):
    return SampleStore(tmp_path / "store")


def test_a_second_run_draws_nothing(store, sampler):
    first = store.draw(sampler, PROMPTS, 10, SETTINGS, seed=0)
    assert len(sampler.asked) == 30  # as many as were asked for
    again = SampleStore(store.root).draw(sampler, PROMPTS, 10, SETTINGS, seed=0)
    assert len(sampler.asked) == 30
    np.testing.assert_array_equal(first.texts, again.texts)
    np.testing.assert_array_equal(first.log_probs, again.log_probs)
    assert first.texts.shape == first.log_probs.shape == first.lengths.shape == (3, 10)


def test_draws_are_nested_in_their_number_and_independent_of_the_other_prompts(store, sampler, tmp_path):
    few = store.draw(sampler, PROMPTS[1:2], 5, SETTINGS, seed=0)
    more = store.draw(sampler, PROMPTS, 12, SETTINGS, seed=0)
    assert len(sampler.asked) == len(set(sampler.asked)) == 36  # each draw has a seed of its own
    np.testing.assert_array_equal(few.texts[0], more.texts[1, :5])
    for size in (3, 256):  # whatever they are drawn with
        sampler.batch_size = size
        alone = SampleStore(tmp_path / str(size)).draw(sampler, PROMPTS[::-1], 12, SETTINGS, seed=0)
        np.testing.assert_array_equal(alone.texts[::-1], more.texts)
        np.testing.assert_allclose(alone.log_probs[::-1], more.log_probs, rtol=1e-5)
    assert len(set(map(tuple, more.texts))) == 3


def test_prompts_of_one_length_are_drawn_together(language_model, tmp_path):
    class Listing(TransformersSampler):
        def sample_tokens(self, encoded, settings, *, seed):
            lengths.extend(map(len, encoded))
            return super().sample_tokens(encoded, settings, seed=seed)

    lengths, prompts = [], ["the", "the film was", "a", "a film was", "I", "I film was"]
    SampleStore(tmp_path).draw(Listing(language_model, batch_size=6), prompts, 4, SETTINGS, seed=0)
    assert len(set(lengths)) > 1
    assert lengths == sorted(lengths)


def test_many_prompts_make_few_files(store):
    prompts = [f"prompt {i}" for i in range(500)]
    for count in (2, 3, 8):
        draws = store.draw(Letters(), prompts, count, SETTINGS, seed=0)
        rewards = store.score(LENGTH, draws)
    assert len(list(store.root.rglob("*.npz"))) <= 4
    again = store.draw(Letters(), prompts[::7], 5, SETTINGS, seed=0)
    np.testing.assert_array_equal(again.texts, draws.texts[::7, :5])
    silent = SimpleNamespace(fingerprint=LENGTH.fingerprint, score=None)
    np.testing.assert_array_equal(store.score(silent, again), rewards[::7, :5])


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"settings": SamplingSettings(7)}, {"settings": SamplingSettings(6, 0.9)}]
)
def test_whatever_affects_a_draw_is_part_of_its_key(store, sampler, change):
    arguments = {"settings": SETTINGS, "seed": 0}
    store.draw(sampler, PROMPTS, 4, **arguments)
    before = sampler.calls
    store.draw(sampler, PROMPTS, 4, **{**arguments, **change})
    assert sampler.calls > before


def test_weights_are_part_of_the_key(store, sampler, language_model_folder):

    other = load_language_model(language_model_folder, device="cpu")
    assert other.fingerprint == sampler.inner.loaded.fingerprint  # asked for before the weights change, as in training
    other.model.transformer.wte.weight.data[0, 0] += 1e-3
    store.draw(sampler, PROMPTS, 4, SETTINGS, seed=0)
    changed = CountingSampler(TransformersSampler(other))
    store.draw(changed, PROMPTS, 4, SETTINGS, seed=0)
    assert len(changed.asked) == 12


def test_an_interrupted_run_resumes_to_the_same_draws(store, sampler, tmp_path):
    whole = SampleStore(tmp_path / "other").draw(sampler, PROMPTS, 8, SETTINGS, seed=0)
    broken = CountingSampler(sampler.inner, fail_at=5)
    with pytest.raises(KeyboardInterrupt):
        store.draw(broken, PROMPTS, 8, SETTINGS, seed=0)
    rest = CountingSampler(sampler.inner)
    resumed = store.draw(rest, PROMPTS, 8, SETTINGS, seed=0)
    assert len(rest.asked) == 8  # four batches were kept
    np.testing.assert_array_equal(whole.texts, resumed.texts)
    np.testing.assert_array_equal(whole.log_probs, resumed.log_probs)
    assert not list(store.root.rglob("*.part"))


def test_rewards_are_stored_too(store, sampler):
    calls = []
    reward = FunctionReward(lambda p, r: calls.append(r) or float(len(r)), name="counted length")
    draws = store.draw(sampler, PROMPTS, 6, SETTINGS, seed=0)
    rewards = store.score(reward, draws)
    np.testing.assert_array_equal(rewards, [[len(text) for text in row] for row in draws.texts])
    scored = len(calls)
    np.testing.assert_array_equal(store.score(reward, draws), rewards)
    assert len(calls) == scored
    store.score(LENGTH, draws)  # another reward model has its own


def test_a_reward_model_that_fails_loses_no_draw(store, sampler):
    draws = store.draw(sampler, PROMPTS, 4, SETTINGS, seed=0)
    bad = FunctionReward(lambda p, r: float("nan") if p == "a bad" else 1.0, name="bad")
    with pytest.raises(ValueError, match="prompt 'a bad'"):
        store.score(bad, draws)
    before = sampler.calls
    again = store.draw(sampler, PROMPTS, 4, SETTINGS, seed=0)
    assert sampler.calls == before
    assert store.score(LENGTH, again).shape == (3, 4)


@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b[:60] + b"\xff" * 40 + b[100:]]
)
def test_a_damaged_file_is_named(store, sampler, damage):
    store.draw(sampler, PROMPTS, 4, SETTINGS, seed=0)
    victim = sorted(store.root.rglob("*.npz"))[0]
    victim.write_bytes(damage(victim.read_bytes()))
    with pytest.raises(DamagedFileError, match=str(victim)):
        store.draw(sampler, PROMPTS, 4, SETTINGS, seed=0)
    victim.unlink()
    store.draw(sampler, PROMPTS, 4, SETTINGS, seed=0)


def test_a_file_of_something_else_is_named(store, sampler):
    store.draw(sampler, PROMPTS, 4, SETTINGS, seed=0)
    victim = sorted(store.root.rglob("*.npz"))[0]
    np.savez(victim, other=np.zeros(3))
    with pytest.raises(DamagedFileError, match="in place of"):
        store.draw(sampler, PROMPTS, 4, SETTINGS, seed=0)


def test_the_store_can_be_inspected_and_pruned(store, sampler):
    store.draw(sampler, PROMPTS, 8, SETTINGS, seed=0)
    store.draw(sampler, PROMPTS[:1], 4, SamplingSettings(3), seed=0)
    rows = {row["max_new_tokens"]: row for row in store.describe()}
    assert (rows[6]["prompts"], rows[6]["files"], rows[3]["prompts"]) == (3, 1, 1)
    assert 0 < rows[3]["bytes"] < rows[6]["bytes"] < store.size()
    assert store.prune(unused_days=1) == 0
    old = time.time() - 10 * 86_400
    for about in store.root.rglob("about.json"):
        os.utime(about, (old, old))
    store.draw(sampler, PROMPTS[:1], 4, SamplingSettings(3), seed=0)  # asked for again, so not old any more
    assert store.prune(unused_days=1) > 0
    assert [row["prompts"] for row in store.describe()] == [1]
    assert store.prune() > 0
    assert store.describe() == []


def test_the_place_can_be_chosen(tmp_path, monkeypatch):
    monkeypatch.setenv("BONLIB_STORE", str(tmp_path / "chosen"))
    assert SampleStore().root == tmp_path / "chosen"
    monkeypatch.delenv("BONLIB_STORE")
    assert "bonlib" in str(SampleStore().root)


def test_bad_arguments_are_named(store, sampler):
    for prompts, message in (([], "at least one"), ("the film", "list"), (["a", "b", "a"], "'a' 2 times")):
        with pytest.raises(ValueError, match=message):
            store.draw(sampler, prompts, 4, SETTINGS, seed=0)
    with pytest.raises(ValueError, match="count is 0"):
        store.draw(sampler, PROMPTS, 0, SETTINGS, seed=0)


def test_reward_models_with_long_names_alike_are_told_apart(store, sampler):
    class Version:
        def __init__(self, number):
            self.number = number
            self.fingerprint = f"my reward model / with a long name, version {number}"

        def score(self, prompts, responses):
            return np.full(len(responses), float(self.number))

    draws = store.draw(sampler, PROMPTS, 4, SETTINGS, seed=0)
    for number in (1, 2):
        assert (store.score(Version(number), draws) == number).all()


def test_broken_draws_are_refused_and_not_kept(store, sampler):
    class Broken(CountingSampler):
        def sample(self, prompts, settings, *, seed):
            responses = super().sample(prompts, settings, seed=seed)
            responses.log_probs[0] = np.nan
            return responses

    with pytest.raises(ValueError, match="not finite: the model is broken"):
        store.draw(Broken(sampler.inner), PROMPTS, 4, SETTINGS, seed=0)
    assert not list(store.root.rglob("*.npz"))
    assert np.isfinite(store.draw(sampler, PROMPTS, 4, SETTINGS, seed=0).log_probs).all()


def test_a_reward_file_of_something_else_is_named(store, sampler):
    draws = store.draw(sampler, PROMPTS, 4, SETTINGS, seed=0)
    store.score(LENGTH, draws)
    victim = sorted(store.root.rglob("rewards-*.npz"))[0]
    np.savez(victim, other=np.zeros(3))
    with pytest.raises(DamagedFileError, match=str(victim)):
        store.score(LENGTH, draws)


@pytest.mark.parametrize("prompt", ["I don", "The special"])
def test_draws_know_their_law(bundled_model, tmp_path, prompt):
    sampler = TransformersSampler(bundled_model)
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
    other = dataclasses.replace(language_model, model=copy.deepcopy(language_model.model), name="another")
    with torch.no_grad():
        other.model.transformer.wte.weight.mul_(0.97)
    with pytest.raises(ValueError, match=r"draws are those of .*, not of the reference another"):
        check_draws(draws, other)


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


TEXTS = st.text(st.characters(exclude_categories=[]) | st.sampled_from("\0\r\n\u2028\u202e\U0001f600א "), max_size=8)


class Writer:
    """A sampler that writes given texts."""

    fingerprint = name = "writer"

    def __init__(self, texts):
        self.texts = texts

    def sample(self, prompts, settings, *, seed):
        zeros = np.zeros(len(prompts))
        return Responses(self.texts[: len(prompts)], np.zeros((len(prompts), 1), dtype=np.int32), zeros, zeros)


@settings(max_examples=30)
@given(st.lists(TEXTS, min_size=4, max_size=4))
def test_texts_are_the_same_in_the_store_and_after_it(tmp_path_factory, texts):
    store = SampleStore(tmp_path_factory.mktemp("texts"))
    for _ in range(2):  # drawn, and read again
        draws = store.draw(Writer(texts), ["a"], 4, SamplingSettings(4), seed=0)
        assert draws.texts[0].tolist() == texts
        assert draws.responses[0][1:3].texts.tolist() == texts[1:3]


def test_draws_that_two_processes_made_at_once_count_once(store, sampler):
    """The draws of the file that was written first, and so do rewards."""
    draws = store.draw(sampler, PROMPTS, 6, SETTINGS, seed=0)
    rewards = store.score(LENGTH, draws)
    (file,) = draws.folder.glob("draws-*.npz")
    rows = DrawRows.read(file)
    others = dataclasses.replace(rows.responses, log_probs=rows.responses.log_probs - 1)
    add(draws.folder, "draws", dataclasses.replace(rows, responses=others))
    (file,) = draws.folder.glob("rewards-*.npz")
    kind, rows = file.stem.rsplit("-", 2)[0], RewardRows.read(file)
    add(draws.folder, kind, dataclasses.replace(rows, reward=rows.reward + 1))
    assert len(list(draws.folder.glob("*.npz"))) == 4
    for _ in range(2):  # in two files, and in one
        again = store.draw(sampler, PROMPTS, 6, SETTINGS, seed=0)
        np.testing.assert_array_equal(again.model_log_probs, draws.model_log_probs)
        np.testing.assert_array_equal(store.score(LENGTH, draws), rewards)
        merge(draws.folder, "draws", DrawRows)
        merge(draws.folder, kind, RewardRows)
        assert len(list(draws.folder.glob("*.npz"))) == 2


def write_former(root, chunk_size, prompt, texts, rewards, reward_model, sampler="writer"):
    """A folder as stores had it: files of `chunk_size` draws to one prompt, and rewards of the first draws of each."""
    identity = {"sampler": sampler, "settings": SamplingSettings(4).described(), "seed": 0, "chunk_size": chunk_size}
    identity |= {"format": 2, "prompt": prompt}
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    folder = root / key[:2] / key
    folder.mkdir(parents=True)
    (folder / "about.json").write_text(json.dumps({"model": "writer", **identity}))
    kind = hashlib.sha256(json.dumps(reward_model.fingerprint).encode()).hexdigest()[:20]
    for number, start in enumerate(range(0, len(texts), chunk_size)):
        some = texts[start : start + chunk_size]
        log_probs = -np.arange(start, start + len(some), dtype=float)
        token_ids = np.array([[start + place, -1] for place in range(len(some))], dtype=np.int32)
        # older files have NumPy's strings
        written = np.array(some) if number else np.frombuffer(json.dumps(some).encode(), dtype=np.uint8)
        columns = {"texts": written, "token_ids": token_ids, "log_probs": log_probs, "sampling_log_probs": log_probs}
        np.savez_compressed(folder / f"{number:05d}.npz", **columns)
        said = np.array(rewards[start : start + chunk_size])
        if len(said):
            source = np.array("3.0 other code")
            np.savez_compressed(folder / f"{number:05d}.reward-{kind}.npz", rewards=said, source=source)
    return folder


@pytest.mark.parametrize("by_tokens", [False, True])
def test_draws_and_rewards_of_the_former_layout_are_the_first_ones(tmp_path, by_tokens):
    class Judge:
        fingerprint = "judge"

        def score(self, prompts, responses):
            asked.extend(responses)
            return np.full(len(responses), 7.0)

    judge, asked = Judge(), []
    if by_tokens:
        judge.score_responses = lambda prompts, responses: judge.score(prompts, responses.texts.tolist())
    texts = ["good\r\n", "", "ß…", "x", "y", "good\r\n"]
    old = [write_former(tmp_path, 4, prompt, texts, [0.1, 0.2, 0.3, 0.4, 0.5], judge) for prompt in "ab"]
    fewer = write_former(tmp_path, 2, "a", ["z", "z"], [], judge)
    other = write_former(tmp_path, 4, "a", texts, [], judge, sampler="another")
    store = SampleStore(tmp_path)
    assert [row["prompts"] for row in store.describe()] in ([3, 1], [1, 3])
    draws = store.draw(Writer([]), ["a"], 5, SamplingSettings(4), seed=0)
    assert draws.texts[0].tolist() == texts[:5]
    assert draws.log_probs[0].tolist() == [0, -1, -2, -3, -4]
    assert [folder.exists() for folder in (*old, fewer, other)] == [False, True, True, True]
    np.testing.assert_array_equal(store.score(judge, draws), [[0.1, 0.2, 0.3, 0.4, 0.5]])
    assert asked == []
    both = store.draw(Writer([f"new {i}" for i in range(6)]), ["b", "a"], 9, SamplingSettings(4), seed=0)
    assert both.texts[:, :6].tolist() == [texts, texts]
    last = 7.0 if by_tokens else 0.1  # a text has one reward; the same text of other tokens may have another
    np.testing.assert_array_equal(store.score(judge, both), [[0.1, 0.2, 0.3, 0.4, 0.5, last, 7.0, 7.0, 7.0]] * 2)
    assert len(list((tmp_path / "draws").rglob("draws-*.npz"))) == 1
