"""The draws of the instruct model that come with the project: what is read is what that model said, or nothing."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from bonlib.course.experiments import instruct_draws
from bonlib.course.experiments.instruct_draws import bundled_draws
from bonlib.course.experiments.setting import instruct_sampler
from bonlib.course.profiles import get_profile
from bonlib.draws.samplers import SamplingSettings, TransformersSampler
from bonlib.draws.store import SampleStore

QUICK = get_profile("quick")
LAW = SamplingSettings(8)
PROMPTS = ["The film", "A story of"]


@pytest.fixture
def sampler(language_model, language_model_folder, tmp_path, monkeypatch):
    """Of the small model, six draws of which have been made as the project's own are."""
    small = replace(QUICK.instruct, draws=6, max_new_tokens=LAW.max_new_tokens)
    profile = replace(QUICK, instruct_model=str(language_model_folder), instruct=small)
    monkeypatch.setenv("BONLIB_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(instruct_draws, "FILE", tmp_path / "draws.parquet")
    monkeypatch.setattr(instruct_draws, "get_profile", lambda name: profile)
    monkeypatch.setattr(instruct_draws, "asked", lambda loaded: dict(enumerate(PROMPTS)))
    instruct_draws.make()
    return TransformersSampler(language_model, batch_size=small.batch_size)


def test_what_was_drawn_is_read_again(sampler):
    given = bundled_draws(sampler, PROMPTS, 5, LAW, QUICK.seed)
    drawn = SampleStore().draw(sampler, PROMPTS, 5, LAW, seed=QUICK.seed)
    assert (given.texts == drawn.texts).all()
    assert (given.lengths == drawn.lengths).all()
    assert np.allclose(given.log_probs, drawn.log_probs, atol=1e-4)
    for mine, theirs in zip(given.responses, drawn.responses, strict=True):
        assert (mine.token_ids == theirs.token_ids[:, : mine.token_ids.shape[1]]).all()


def test_what_was_not_drawn_is_not_there(sampler):
    assert bundled_draws(sampler, PROMPTS, 7, LAW, QUICK.seed) is None
    assert bundled_draws(sampler, PROMPTS, 6, LAW, QUICK.seed + 1) is None
    assert bundled_draws(sampler, [*PROMPTS, "A third"], 6, LAW, QUICK.seed) is None
    for law in (SamplingSettings(9), SamplingSettings(8, temperature=0.5), SamplingSettings(8, stop=(".",))):
        assert bundled_draws(sampler, PROMPTS, 6, law, QUICK.seed) is None


def test_draws_of_other_weights_are_not_taken(sampler):
    other = replace(sampler.loaded, model=copy.deepcopy(sampler.loaded.model))
    with torch.no_grad():
        for weights in other.model.parameters():
            weights.mul_(1.05)
    assert bundled_draws(TransformersSampler(other), PROMPTS, 6, LAW, QUICK.seed) is None


@pytest.mark.slow
def test_the_instruct_model_says_again_what_the_profile_quick_begins_with():
    sampler, law = instruct_sampler(QUICK), SamplingSettings(QUICK.instruct.max_new_tokens)
    prompts = list(instruct_draws.asked(sampler.loaded).values())
    draws = bundled_draws(sampler, prompts, QUICK.instruct.draws, law, QUICK.seed)
    assert draws.texts.shape == (8, QUICK.instruct.draws)
