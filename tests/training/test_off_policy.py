"""Learning from stored draws."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from toy_training import PROMPTS as TOY_PROMPTS
from toy_training import SHORT, begin, weights_of

from bonlib.methods.bon_regression import BonRegression
from bonlib.methods.bon_sft import BonSft
from bonlib.methods.bonbon import Bonbon
from bonlib.methods.dpo import Dpo
from bonlib.methods.qrpo import Qrpo
from bonlib.training.off_policy import WeightedRounds, loss_on_draws
from bonlib.training.trainer import train

pytestmark = pytest.mark.usefixtures("one_accelerator")


METHODS = [Dpo(0.1), Bonbon(4), Bonbon(4, picks="groups"), BonSft(4), BonRegression(4), Qrpo(0.1)]


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_shards_do_not_change_what_off_policy_methods_learn(method, language_model, training_data, tmp_path):
    one = train(language_model, method, training_data, SHORT, tmp_path / "1", show=False)
    two = train(language_model, method, training_data, replace(SHORT, shards=2), tmp_path / "2", show=False)
    # Adam turns rounding into steps where a gradient is all but 0, so single weights may differ a little.
    assert [row["loss"] for row in one.curve] == pytest.approx([row["loss"] for row in two.curve], rel=1e-4)
    assert torch.dist(weights_of(one.policy), weights_of(two.policy)) < 0.01 * torch.dist(
        weights_of(one.policy), weights_of(language_model)
    )


def test_each_example_comes_as_often_as_its_weight_says():
    weights = np.array([0.5, 1.0, 2.5, 0.25, 3.75])
    rounds = WeightedRounds(weights, seed=3)
    often = np.array([np.bincount(rounds.at(5 * which, 5), minlength=5) for which in range(400)])
    assert (abs(often - 5 * weights / 8) < 1).all()  # evenly spaced: of each the whole part, or one more
    np.testing.assert_allclose(often.mean(axis=0), 5 * weights / 8, atol=0.1)
    assert rounds.at(3, 9) == WeightedRounds(weights, seed=3).at(3, 9)


def test_targets_go_with_their_draws(language_model, training_data, tmp_path):
    learner = begin(language_model, training_data, tmp_path, BonRegression(4)).learner
    prompts, draws, _, targets = BonRegression(4).examples(training_data.rewards, seed=0)
    known = {}
    for prompt, (draw,), target in zip(prompts, draws, targets, strict=True):
        tokens = training_data.draws.responses[prompt].token_ids[draw]
        known.setdefault((TOY_PROMPTS[prompt], *tokens[tokens >= 0]), []).append(target)
    shard = learner.shard(2, 0)
    for row, prompt in enumerate(shard.prompts):
        tokens = shard.batch.responses[row][shard.batch.response_mask[row].bool()].tolist()
        assert float(shard.targets[row]) in known[(prompt, *tokens)]
    tokens = -torch.rand(shard.batch.responses.shape)
    mine = tokens.double().sum(1)
    want = (mine - shard.reference[:, 0] - shard.targets) ** 2 - mine
    torch.testing.assert_close(learner.loss(shard, tokens, None), want.mean())


@pytest.mark.parametrize("method", [BonSft(4), BonSft(4, picks="groups"), BonRegression(4), Dpo(0.1)], ids=repr)
def test_the_loss_on_draws_of_the_reference_itself_is_known(method, language_model, training_data):
    draws, rewards = training_data.draws, training_data.rewards
    prompts, chosen, weights, targets = method.examples(rewards, seed=3)
    log_probs = draws.model_log_probs[prompts, chosen[:, 0]]
    each = np.full(len(prompts), np.log(2)) if isinstance(method, Dpo) else -log_probs
    each = each if targets is None else each + targets**2  # of the reference every log-ratio is 0
    want = [
        np.average(each[prompts == p], weights=weights if weights is None else weights[prompts == p]) for p in range(4)
    ]
    found = loss_on_draws(method, language_model, draws, rewards, seed=3)
    np.testing.assert_allclose(found, want, atol=1e-4)


def test_the_loss_on_draws_falls_on_those_that_were_learned_from(language_model, training_data, tmp_path):
    method, draws, rewards = BonSft(4), training_data.draws, training_data.rewards
    policy = train(language_model, method, training_data, SHORT, tmp_path, show=False).policy
    before, after = (loss_on_draws(method, model, draws, rewards).mean() for model in (language_model, policy))
    assert after < before - 0.1
    with pytest.raises(ValueError, match="draws has no example of prompt 'a bad' for"):
        loss_on_draws(Dpo(0.1), policy, draws, rewards * (np.arange(4) != 1)[:, None])
    with pytest.raises(ValueError, match=r"rewards has shape \(4, 3\) for draws of \(4, \d+\); give one for each"):
        loss_on_draws(method, policy, draws, rewards[:, :3])


def test_draws_that_do_not_suffice_are_named(language_model, training_data, tmp_path):
    with pytest.raises(ValueError, match="draw more"):
        train(language_model, BonSft(65), training_data, SHORT, tmp_path / "a", show=False)
    tied = replace(training_data, rewards=0 * training_data.rewards)
    with pytest.raises(ValueError, match="finds no example in the draws"):
        train(language_model, Dpo(0.1), tied, SHORT, tmp_path / "b", show=False)
