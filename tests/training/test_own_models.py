"""Models of any architecture, from their draws to a trained policy and its evaluation."""

import numpy as np
import pytest
import torch
import zoo

from bonlib.draws.rewards import FunctionReward
from bonlib.draws.samplers import SamplingSettings, TransformersSampler
from bonlib.draws.store import SampleStore
from bonlib.estimates import best_of_n_kl, best_of_n_reward, best_of_n_win_rate
from bonlib.evaluate import TestSet, evaluate
from bonlib.methods.dpo import Dpo
from bonlib.methods.vbon_bound import VbonBound
from bonlib.models.loaded import LoadedModel, load_language_model
from bonlib.training.reward_cdf import SampledCdf
from bonlib.training.settings import TrainingData, TrainSettings
from bonlib.training.trainer import train

PROMPTS = ["the film", "so bad that we", "a", "nobody knows why"]


VOWELS = FunctionReward(lambda _, text: sum(letter in "aeiou" for letter in text), name="vowels")


def loaded(name, **overrides):
    return LoadedModel(zoo.causal(name, **overrides).requires_grad_(False), zoo.tokenizer(), f"random {name}")


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma3_text", "phi3", "qwen3_5_text", "mamba", "bart"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_is_no_distance_from_itself(name, dtype):
    """Cases 6 and 12: drawn one way and read another, in bfloat16 too."""
    model = LoadedModel(zoo.CAUSAL[name]().to(dtype).requires_grad_(False), zoo.tokenizer(), name)
    test = TestSet(PROMPTS, np.zeros((4, 2)), SamplingSettings(8), responses=8)
    measured = evaluate(model, model, VOWELS, test)
    for figure in (measured.kl, measured.kl_k1, measured.kl_k3):
        assert (figure == 0).all()
    assert (measured.log_probs < 0).all()
    off = np.abs(measured.responses.log_probs.reshape(4, 8) - measured.log_probs)
    assert off.max() < (1e-4 if dtype == torch.float32 else 1.0)


@pytest.mark.parametrize("name", ["gemma2", "qwen3_5_text"])
def test_the_whole_way_of_ones_own_model(name, tmp_path):
    """Draws, the curve with its control, a trained policy, and its evaluation: the way of notebook 13."""
    zoo.save(zoo.CAUSAL[name](), tmp_path / "model")
    reference, sampling = load_language_model(tmp_path / "model", device="cpu"), SamplingSettings(6)
    draws = SampleStore(tmp_path / "store").draw(TransformersSampler(reference), PROMPTS, 64, sampling, seed=0)
    rewards = SampleStore(tmp_path / "store").score(VOWELS, draws)
    curve = [best_of_n_reward(rewards, n).value.mean() for n in (1, 4, 16)]
    assert curve[0] < curve[1] < curve[2]
    kls = [best_of_n_kl(rewards, n, log_probs=draws.log_probs, responses=draws.texts).mean() for n in (1, 4, 16)]
    assert abs(kls[0]) < 1e-9
    assert 0.3 < kls[1] < kls[2] < np.log(16)
    assert (best_of_n_win_rate(rewards, 4) > 0.6).all()
    data = TrainingData(PROMPTS, VOWELS, sampling, draws, rewards, SampledCdf(PROMPTS, rewards))
    settings = TrainSettings(steps=20, prompts=4, group=8, learning_rate=5e-3)
    policy = train(reference, VbonBound(4), data, settings, str(tmp_path / "policy"), show=False).policy
    test = TestSet(PROMPTS, rewards, sampling, responses=32)
    before, after = (evaluate(model, reference, VOWELS, test).summary() for model in (reference, policy))
    assert after["reward"] > before["reward"]
    assert before["kl"] == before["kl_k1"] == 0 < after["kl"]
    again = evaluate(load_language_model(tmp_path / "policy" / "policy", device="cpu"), reference, VOWELS, test)
    assert again.summary()["kl"] == pytest.approx(after["kl"], rel=1e-3)


def test_the_first_loss_of_dpo_is_log_2_and_draws_of_another_model_are_refused(tmp_path):
    """Case 3: what is learned from are draws of the reference, at its own temperature."""
    mine, other = loaded("llama"), loaded("llama", num_hidden_layers=3)
    store, sampling = SampleStore(tmp_path), SamplingSettings(6)
    settings = TrainSettings(steps=1, prompts=4, group=4, learning_rate=1e-6)

    def first_loss(draws, folder):
        data = TrainingData(PROMPTS, VOWELS, sampling, draws, store.score(VOWELS, draws))
        return train(mine, Dpo(0.1), data, settings, tmp_path / folder, show=False).curve[0]["loss"]

    draws = store.draw(TransformersSampler(mine), PROMPTS, 64, sampling, seed=0)
    assert first_loss(draws, "own") == pytest.approx(np.log(2), abs=1e-4)
    with pytest.raises(ValueError, match="draws are those of random llama, not of the reference"):
        first_loss(store.draw(TransformersSampler(other), PROMPTS, 64, sampling, seed=0), "other")
    with pytest.raises(ValueError, match=r"draws were drawn with .*temperature=0\.3"):
        first_loss(store.draw(TransformersSampler(mine), PROMPTS, 64, SamplingSettings(6, 0.3), seed=0), "cold")


def test_arguments_of_training_are_checked_by_kind(language_model, training_data, tmp_path):
    """Case 23: names, classes and paths where a model or settings are wanted."""
    settings = TrainSettings(steps=1, prompts=2, group=2)
    for arguments, message in (
        (("imdb-gpt2-tiny", VbonBound(4), training_data, settings), "reference is 'imdb-gpt2-tiny'; .*load_language"),
        (
            (language_model, "vbon", training_data, settings),
            "method is 'vbon'; it must be a TrainingMethod: give its settings, such as Vbon",
        ),
        (
            (language_model, VbonBound, training_data, settings),
            "method is <class .*; it must be a TrainingMethod: give its settings",
        ),
        ((language_model, VbonBound(4), PROMPTS, settings), "data is .*TrainingData"),
        ((language_model, VbonBound(4), training_data, 100), "settings is 100; .*TrainSettings"),
    ):
        with pytest.raises(ValueError, match=message):
            train(*arguments, str(tmp_path / "run"))
    test = TestSet(PROMPTS, np.zeros((4, 2)), SamplingSettings(4))
    with pytest.raises(ValueError, match="policy is 'my-policy'; load it"):
        evaluate("my-policy", language_model, VOWELS, test)
    with pytest.raises(ValueError, match="seed is -1"):
        TestSet(PROMPTS, np.zeros((4, 2)), SamplingSettings(4), seed=-1)
