"""The store: nothing is drawn twice, nothing drawn is lost, and damage is named."""

import os
import time

import numpy as np
import pytest

from bonlib.draws.rewards import FunctionReward
from bonlib.draws.samplers import SamplingSettings, TransformersSampler
from bonlib.draws.store import DamagedFileError, SampleStore

PROMPTS = ["the film", "a bad", "I saw"]
SETTINGS = SamplingSettings(6)
LENGTH = FunctionReward(lambda prompt, response: float(len(response)), name="length")


class CountingSampler:
    """Draws like its inner sampler, counts the calls, and fails at one of them if asked to."""

    def __init__(self, inner, fail_at=None):
        self.inner, self.fail_at, self.calls = inner, fail_at, 0

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
        return self.inner.sample(prompts, settings, seed=seed)


@pytest.fixture
def sampler(language_model):
    return CountingSampler(TransformersSampler(language_model))


@pytest.fixture
def store(tmp_path):
    return SampleStore(tmp_path / "store")


def test_a_second_run_draws_nothing(store, sampler):
    first = store.draw(sampler, PROMPTS, 10, SETTINGS, seed=0, chunk_size=4)
    assert sampler.calls == 9
    again = SampleStore(store.root).draw(sampler, PROMPTS, 10, SETTINGS, seed=0, chunk_size=4)
    assert sampler.calls == 9
    np.testing.assert_array_equal(first.texts, again.texts)
    np.testing.assert_array_equal(first.log_probs, again.log_probs)
    assert first.texts.shape == first.log_probs.shape == first.lengths.shape == (3, 10)


def test_draws_are_nested_in_their_number_and_independent_of_the_other_prompts(store, sampler):
    many = store.draw(sampler, PROMPTS, 12, SETTINGS, seed=0, chunk_size=4)
    few = store.draw(sampler, PROMPTS[1:2], 5, SETTINGS, seed=0, chunk_size=4)
    assert sampler.calls == 9
    np.testing.assert_array_equal(few.texts[0], many.texts[1, :5])
    assert len({tuple(row) for row in many.texts.reshape(9, 4)}) == 9  # every chunk has its own random numbers


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"chunk_size": 2}, {"settings": SamplingSettings(7)}, {"settings": SamplingSettings(6, 0.9)}],
)
def test_whatever_affects_a_draw_is_part_of_its_key(store, sampler, change):
    arguments = {"settings": SETTINGS, "seed": 0, "chunk_size": 4}
    store.draw(sampler, PROMPTS, 4, **arguments)
    before = sampler.calls
    store.draw(sampler, PROMPTS, 4, **{**arguments, **change})
    assert sampler.calls > before


def test_weights_are_part_of_the_key(store, sampler, language_model_folder):
    from bonlib.models.loaded import load_language_model

    other = load_language_model(language_model_folder, device="cpu")
    assert other.fingerprint == sampler.inner.loaded.fingerprint  # asked for before the weights change, as in training
    other.model.transformer.wte.weight.data[0, 0] += 1e-3
    store.draw(sampler, PROMPTS, 4, SETTINGS, seed=0, chunk_size=4)
    changed = CountingSampler(TransformersSampler(other))
    store.draw(changed, PROMPTS, 4, SETTINGS, seed=0, chunk_size=4)
    assert changed.calls == 3


def test_an_interrupted_run_resumes_to_the_same_draws(store, sampler, tmp_path):
    whole = SampleStore(tmp_path / "other").draw(sampler, PROMPTS, 8, SETTINGS, seed=0, chunk_size=4)
    broken = CountingSampler(sampler.inner, fail_at=5)
    with pytest.raises(KeyboardInterrupt):
        store.draw(broken, PROMPTS, 8, SETTINGS, seed=0, chunk_size=4)
    rest = CountingSampler(sampler.inner)
    resumed = store.draw(rest, PROMPTS, 8, SETTINGS, seed=0, chunk_size=4)
    assert rest.calls == 2
    np.testing.assert_array_equal(whole.texts, resumed.texts)
    np.testing.assert_array_equal(whole.log_probs, resumed.log_probs)
    assert not list(store.root.rglob("*.part"))


def test_rewards_are_stored_too(store, sampler):
    calls = []
    reward = FunctionReward(lambda p, r: calls.append(r) or float(len(r)), name="counted length")
    draws = store.draw(sampler, PROMPTS, 6, SETTINGS, seed=0, chunk_size=4)
    rewards = store.score(reward, draws)
    np.testing.assert_array_equal(rewards, [[len(text) for text in row] for row in draws.texts])
    scored = len(calls)
    np.testing.assert_array_equal(store.score(reward, draws), rewards)
    assert len(calls) == scored
    store.score(LENGTH, draws)  # another reward model has its own


def test_a_reward_model_that_fails_loses_no_draw(store, sampler):
    draws = store.draw(sampler, PROMPTS, 4, SETTINGS, seed=0, chunk_size=4)
    bad = FunctionReward(lambda p, r: float("nan") if p == "a bad" else 1.0, name="bad")
    with pytest.raises(ValueError, match="prompt 'a bad'"):
        store.score(bad, draws)
    before = sampler.calls
    again = store.draw(sampler, PROMPTS, 4, SETTINGS, seed=0, chunk_size=4)
    assert sampler.calls == before
    assert store.score(LENGTH, again).shape == (3, 4)


@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b[:60] + b"\xff" * 40 + b[100:]]
)
def test_a_damaged_file_is_named(store, sampler, damage):
    store.draw(sampler, PROMPTS, 4, SETTINGS, seed=0, chunk_size=4)
    victim = sorted(store.root.rglob("*.npz"))[0]
    victim.write_bytes(damage(victim.read_bytes()))
    with pytest.raises(DamagedFileError, match=str(victim)):
        store.draw(sampler, PROMPTS, 4, SETTINGS, seed=0, chunk_size=4)
    victim.unlink()
    store.draw(sampler, PROMPTS, 4, SETTINGS, seed=0, chunk_size=4)


def test_a_file_of_something_else_is_named(store, sampler):
    store.draw(sampler, PROMPTS, 4, SETTINGS, seed=0, chunk_size=4)
    victim = sorted(store.root.rglob("*.npz"))[0]
    np.savez(victim, other=np.zeros(3))
    with pytest.raises(DamagedFileError, match="in place of"):
        store.draw(sampler, PROMPTS, 4, SETTINGS, seed=0, chunk_size=4)


def test_the_store_can_be_inspected_and_pruned(store, sampler):
    store.draw(sampler, PROMPTS, 8, SETTINGS, seed=0, chunk_size=4)
    store.draw(sampler, PROMPTS[:1], 4, SamplingSettings(3), seed=0, chunk_size=4)
    rows = {row["max_new_tokens"]: row for row in store.describe()}
    assert (rows[6]["prompts"], rows[6]["files"], rows[3]["prompts"]) == (3, 6, 1)
    assert 0 < rows[3]["bytes"] < rows[6]["bytes"] < store.size()
    assert store.prune(unused_days=1) == 0
    old = time.time() - 10 * 86_400
    for about in store.root.rglob("about.json"):
        os.utime(about, (old, old))
    store.draw(sampler, PROMPTS[:1], 8, SETTINGS, seed=0, chunk_size=4)  # asked for again, so not old any more
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
    with pytest.raises(ValueError, match="chunk_size is 0"):
        store.draw(sampler, PROMPTS, 1, SETTINGS, seed=0, chunk_size=0)


def test_reward_models_with_long_names_alike_are_told_apart(store, sampler):
    class Version:
        def __init__(self, number):
            self.number = number
            self.fingerprint = f"my reward model / with a long name, version {number}"

        def score(self, prompts, responses):
            return np.full(len(responses), float(self.number))

    draws = store.draw(sampler, PROMPTS, 4, SETTINGS, seed=0, chunk_size=4)
    for number in (1, 2):
        assert (store.score(Version(number), draws) == number).all()


def test_broken_draws_are_refused_and_not_kept(store, sampler):
    class Broken(CountingSampler):
        def sample(self, prompts, settings, *, seed):
            responses = super().sample(prompts, settings, seed=seed)
            responses.log_probs[0] = np.nan
            return responses

    with pytest.raises(ValueError, match="not finite: the model is broken"):
        store.draw(Broken(sampler.inner), PROMPTS, 4, SETTINGS, seed=0, chunk_size=4)
    assert not list(store.root.rglob("*.npz"))
    assert np.isfinite(store.draw(sampler, PROMPTS, 4, SETTINGS, seed=0, chunk_size=4).log_probs).all()


def test_a_reward_file_of_something_else_is_named(store, sampler):
    draws = store.draw(sampler, PROMPTS, 4, SETTINGS, seed=0, chunk_size=4)
    store.score(LENGTH, draws)
    victim = sorted(store.root.rglob("*.reward-*.npz"))[0]
    np.savez(victim, other=np.zeros(3))
    with pytest.raises(DamagedFileError, match=str(victim)):
        store.score(LENGTH, draws)
