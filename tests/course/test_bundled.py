"""The draws that come with the project: what is read is what these models said, or nothing."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from bonlib.course.experiments import bundled
from bonlib.course.experiments.bundled import bundled_draws, scored_draws
from bonlib.course.experiments.instruct import asked
from bonlib.course.experiments.sentiment import Harness
from bonlib.course.experiments.setting import Setting, instruct_sampler
from bonlib.course.making.reviews import review_prompts
from bonlib.course.profiles import get_profile
from bonlib.draws.rewards import SentimentReward
from bonlib.draws.samplers import SamplingSettings, TransformersSampler
from bonlib.draws.store import SampleStore, check_draws

QUICK = get_profile("quick")
LAW = SamplingSettings(8)
PROMPTS = ["The film", "A story of"]


def other_weights(loaded):
    """The same model, a little off."""
    other = replace(loaded, model=copy.deepcopy(loaded.model))
    with torch.no_grad():
        for weights in other.model.parameters():
            weights.mul_(1.05)
    return other


@pytest.fixture(scope="module")
def setting(bundled_model, bundled_classifier):
    prompts = review_prompts(bundled_model.tokenizer, QUICK.imdb.test_prompts, seed=QUICK.seed)
    sampler, law = TransformersSampler(bundled_model), SamplingSettings(QUICK.imdb.max_new_tokens)
    return Setting(bundled_model, sampler, SentimentReward(bundled_classifier), prompts, QUICK.reviews, law)


def test_the_models_say_again_what_is_stored(setting):
    draws, rewards = scored_draws(setting, setting.prompts[:4], 8, QUICK.seed)
    check_draws(draws, setting.reference)
    assert draws.texts.shape == rewards.shape == (4, 8)
    for prompt, drawn, row in zip(draws.prompts, draws.responses, rewards, strict=True):
        assert np.allclose(setting.reward_model.score([prompt] * 8, drawn.texts), row, atol=1e-4)


def test_fewer_draws_are_the_first_of_more(setting):
    (few, rewards), (more, all_rewards) = (scored_draws(setting, setting.prompts[:2], n, QUICK.seed) for n in (5, 50))
    assert (few.texts == more.texts[:, :5]).all()
    assert (rewards == all_rewards[:, :5]).all()


def test_reviews_that_were_not_drawn_are_not_there(setting):
    prompts, seed = setting.prompts[:2], QUICK.seed
    assert scored_draws(setting, prompts, 100_000, seed) is None
    assert scored_draws(setting, prompts, 8, seed + 100) is None
    assert scored_draws(setting, [*prompts, "Nobody has ever begun a review like this"], 8, seed) is None
    for law in (SamplingSettings(23), SamplingSettings(24, temperature=0.5)):
        assert scored_draws(replace(setting, sampling=law), prompts, 8, seed) is None


def test_draws_of_other_weights_and_rewards_of_another_judge_are_not_taken(setting):
    for role in ("reference", "judge"):
        loaded = setting.reference if role == "reference" else setting.reward_model.loaded
        other = other_weights(loaded)
        changed = {"reference": other} if role == "reference" else {"reward_model": SentimentReward(other)}
        assert scored_draws(replace(setting, **changed), setting.prompts[:8], 8, QUICK.seed) is None


def test_the_notebooks_of_the_profile_quick_need_no_other_draws(tmp_path):
    harness = Harness(QUICK, SampleStore(tmp_path))
    assert harness.test.rewards.shape == (QUICK.training.test_prompts, QUICK.imdb.draws)
    assert harness.reference_draws[1].shape == (QUICK.imdb.train_prompts, QUICK.training.draws)
    sizes = QUICK.cdf
    examined = harness.setting.prompts[: sizes.prompts]
    _, rewards = scored_draws(harness.setting, examined, sizes.samples + max(sizes.ms), QUICK.seed)
    means = rewards[:, : sizes.samples].mean(axis=1)
    chosen = [examined[place] for place in (means.argmin(), np.abs(means - 0.5).argmin(), means.argmax())]
    assert scored_draws(harness.setting, chosen, sizes.truth_draws, QUICK.seed + 1)
    assert not list(tmp_path.iterdir())


def test_of_a_missing_or_damaged_file_nothing_is_read(setting, tmp_path, monkeypatch):
    whole = bundled.FILES["imdb"].read_bytes()
    (tmp_path / "cut").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "changed").write_bytes(whole[:1000] + bytes(len(whole) - 101_000) + whole[-100_000:])
    (tmp_path / "no table").write_text("version https://git-lfs.github.com/spec/v1")
    for name in ("missing", "cut", "changed", "no table"):
        monkeypatch.setitem(bundled.FILES, "imdb", tmp_path / name)
        assert scored_draws(setting, setting.prompts[:4], 8, QUICK.seed) is None, name


@pytest.fixture
def sampler(language_model, language_model_folder, tmp_path, monkeypatch):
    """Of the small model, six draws of which have been made as the project's own are."""
    small = replace(QUICK.instruct, draws=6, max_new_tokens=LAW.max_new_tokens)
    profile = replace(QUICK, instruct_model=str(language_model_folder), instruct=small)
    monkeypatch.setenv("BONLIB_STORE", str(tmp_path / "store"))
    monkeypatch.setitem(bundled.FILES, "instruct", tmp_path / "draws.parquet")
    monkeypatch.setattr(bundled, "get_profile", lambda name: profile)
    monkeypatch.setattr(bundled, "asked", lambda loaded: dict(enumerate(PROMPTS)))
    bundled.make_instruct()
    return TransformersSampler(language_model, batch_size=small.batch_size)


def test_what_was_drawn_is_read_again(sampler):
    given = bundled_draws(sampler.loaded, PROMPTS, 5, LAW, QUICK.seed)
    assert given.folder is None
    drawn = SampleStore().draw(sampler, PROMPTS, 5, LAW, seed=QUICK.seed)
    assert (given.texts == drawn.texts).all()
    assert (given.lengths == drawn.lengths).all()
    assert np.allclose(given.log_probs, drawn.log_probs, atol=1e-4)
    for mine, theirs in zip(given.responses, drawn.responses, strict=True):
        assert (mine.token_ids == theirs.token_ids[:, : mine.token_ids.shape[1]]).all()


def test_responses_that_were_not_drawn_are_not_there(sampler):
    assert bundled_draws(sampler.loaded, PROMPTS, 7, LAW, QUICK.seed) is None
    assert bundled_draws(sampler.loaded, PROMPTS, 6, LAW, QUICK.seed + 1) is None
    assert bundled_draws(sampler.loaded, [*PROMPTS, "A third"], 6, LAW, QUICK.seed) is None
    for law in (SamplingSettings(9), SamplingSettings(8, temperature=0.5), SamplingSettings(8, stop=(".",))):
        assert bundled_draws(sampler.loaded, PROMPTS, 6, law, QUICK.seed) is None


def test_draws_of_other_weights_are_not_taken(sampler):
    assert bundled_draws(other_weights(sampler.loaded), PROMPTS, 6, LAW, QUICK.seed) is None


@pytest.mark.slow
def test_the_instruct_model_says_again_what_the_profile_quick_begins_with():
    sampler, law = instruct_sampler(QUICK), SamplingSettings(QUICK.instruct.max_new_tokens)
    prompts = list(asked(sampler.loaded).values())
    draws = bundled_draws(sampler.loaded, prompts, QUICK.instruct.draws, law, QUICK.seed)
    assert draws.texts.shape == (8, QUICK.instruct.draws)
