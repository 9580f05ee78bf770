"""Learning from the policy's own draws."""

from dataclasses import replace

import pytest
import torch
from toy_training import SHORT, begin

from bonlib.methods.kl_rl import KlRl
from bonlib.methods.max_at_k import MaxAtK
from bonlib.methods.vbon import Vbon
from bonlib.methods.wind import Wind
from bonlib.training.settings import Ppo
from bonlib.training.trainer import train

pytestmark = pytest.mark.usefixtures("one_accelerator")


def test_ppo_spreads_the_whole_return_over_the_tokens(language_model, training_data, tmp_path):
    run = begin(language_model, training_data, tmp_path, KlRl(0.5), ppo=Ppo(), precision="bf16", group=4)
    shard = run.learner.shard(0, 0)
    torch.testing.assert_close(shard.token_rewards.sum(1).double(), shard.returns, atol=1e-4, rtol=0)
    assert shard.old_values.dtype == torch.float32


def test_the_advantages_of_ppo_are_standardised_over_all_shards_of_a_step(language_model, training_data, tmp_path):
    learner = begin(language_model, training_data, tmp_path, KlRl(0.5), ppo=Ppo(), group=4, shards=2).learner
    shards = [learner.shard(0, place) for place in range(2)]
    learner.weigh(shards)
    everything = torch.cat([shard.advantages[shard.batch.response_mask.bool()] for shard in shards])
    assert float(everything.mean()) == pytest.approx(0, abs=1e-5)
    assert float(everything.std(correction=0)) == pytest.approx(1, abs=1e-4)


def test_a_method_that_needs_a_cdf_asks_for_it(language_model, training_data, tmp_path):
    with pytest.raises(ValueError, match="cdf is None"):
        train(language_model, Vbon(4), replace(training_data, cdf=None), SHORT, tmp_path, show=False)


def test_a_method_that_compares_responses_to_a_prompt_asks_for_enough(language_model, training_data, tmp_path):
    with pytest.raises(ValueError, match=r"group is 1; Wind\(beta=0.1\) compares 2 responses to a prompt"):
        begin(language_model, training_data, tmp_path, Wind(0.1), group=1)
    with pytest.raises(ValueError, match=r"group is 4; .* compares 5 responses"):
        begin(language_model, training_data, tmp_path, MaxAtK(0.1, k=4, estimator="loo"), group=4)
    with pytest.raises(ValueError, match=r"ppo is Ppo\(.*leave it at None"):
        begin(language_model, training_data, tmp_path, Wind(0.1), ppo=Ppo())


def test_a_methods_advantages_are_those_of_its_groups_in_every_shard(language_model, training_data, tmp_path):
    learner = begin(language_model, training_data, tmp_path, Wind(1e-9), group=4, shards=2).learner
    for place in range(2):
        shard = learner.shard(0, place)
        assert len(set(shard.prompts[:4])) == 1
        torch.testing.assert_close(shard.advantages, (shard.returns - 0.5).float(), atol=1e-6, rtol=0)
        torch.testing.assert_close(shard.advantages.view(-1, 4).sum(1), torch.zeros(2), atol=1e-6, rtol=0)


def test_the_baseline_of_lone_responses_is_the_mean_of_the_shards_others(language_model, training_data, tmp_path):
    shard = begin(language_model, training_data, tmp_path, KlRl(0.1), group=1).learner.shard(0, 0)
    want = (shard.returns - shard.returns.mean()) * 4 / 3
    torch.testing.assert_close(shard.advantages, want.float())
