"""The reference draws that come with the project: what is read is what these models said, or nothing."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from bonlib.course.experiments.imdb_draws import bundled_draws
from bonlib.course.experiments.sentiment import Harness
from bonlib.course.experiments.setting import Setting
from bonlib.course.making.reviews import review_prompts
from bonlib.course.profiles import get_profile
from bonlib.draws.rewards import SentimentReward
from bonlib.draws.samplers import SamplingSettings, TransformersSampler
from bonlib.draws.store import SampleStore, check_draws

QUICK = get_profile("quick")


@pytest.fixture(scope="module")
def setting(bundled_model, bundled_classifier):
    prompts = review_prompts(bundled_model.tokenizer, QUICK.imdb.test_prompts, seed=QUICK.seed)
    sampler, law = TransformersSampler(bundled_model), SamplingSettings(QUICK.imdb.max_new_tokens)
    return Setting(bundled_model, sampler, SentimentReward(bundled_classifier), prompts, QUICK.reviews, law)


def test_the_models_say_again_what_is_stored(setting):
    draws, rewards = bundled_draws(setting, setting.prompts[:4], 8, QUICK.seed)
    check_draws(draws, setting.reference)
    assert draws.texts.shape == rewards.shape == (4, 8)
    for prompt, drawn, row in zip(draws.prompts, draws.responses, rewards, strict=True):
        assert np.allclose(setting.reward_model.score([prompt] * 8, drawn.texts), row, atol=1e-4)


def test_fewer_draws_are_the_first_of_more(setting):
    (few, rewards), (more, all_rewards) = (bundled_draws(setting, setting.prompts[:2], n, QUICK.seed) for n in (5, 50))
    assert (few.texts == more.texts[:, :5]).all()
    assert (rewards == all_rewards[:, :5]).all()


def test_what_was_not_drawn_is_not_there(setting):
    prompts, seed = setting.prompts[:2], QUICK.seed
    assert bundled_draws(setting, prompts, 100_000, seed) is None
    assert bundled_draws(setting, prompts, 8, seed + 100) is None
    assert bundled_draws(setting, [*prompts, "Nobody has ever begun a review like this"], 8, seed) is None
    for law in (SamplingSettings(23), SamplingSettings(24, temperature=0.5)):
        assert bundled_draws(replace(setting, sampling=law), prompts, 8, seed) is None


def test_draws_of_other_weights_and_rewards_of_another_judge_are_not_taken(setting):
    for role in ("reference", "judge"):
        loaded = setting.reference if role == "reference" else setting.reward_model.loaded
        other = replace(loaded, model=copy.deepcopy(loaded.model))
        with torch.no_grad():
            for weights in other.model.parameters():
                weights.mul_(1.05)
        changed = {"reference": other} if role == "reference" else {"reward_model": SentimentReward(other)}
        assert bundled_draws(replace(setting, **changed), setting.prompts[:8], 8, QUICK.seed) is None


def test_the_notebooks_of_the_profile_quick_need_no_other_draws(tmp_path):
    harness = Harness(QUICK, SampleStore(tmp_path))
    assert harness.test.rewards.shape == (QUICK.training.test_prompts, QUICK.imdb.draws)
    assert harness.reference_draws[1].shape == (QUICK.imdb.train_prompts, QUICK.training.draws)
    sizes = QUICK.cdf
    examined = harness.setting.prompts[: sizes.prompts]
    _, rewards = bundled_draws(harness.setting, examined, sizes.samples + max(sizes.ms), QUICK.seed)
    means = rewards[:, : sizes.samples].mean(axis=1)
    chosen = [examined[place] for place in (means.argmin(), np.abs(means - 0.5).argmin(), means.argmax())]
    assert bundled_draws(harness.setting, chosen, sizes.truth_draws, QUICK.seed + 1)
    assert not list(tmp_path.iterdir())
