"""What is measured of a policy, against exact sums and what is known of it."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from toy_training import PROMPTS

from bonlib.course.experiments import exact_runs
from bonlib.course.making.enumerable import LENGTH, enumerate_log_probs
from bonlib.draws.samplers import SamplingSettings, TransformersSampler
from bonlib.draws.store import SampleStore
from bonlib.evaluate import TestSet, divergences, evaluate, log_quantiles


def test_estimated_divergences_are_those_of_the_exact_sums(tmp_path):
    world, reference, sampling = exact_runs.world("letters"), exact_runs.reference(), SamplingSettings(LENGTH)
    store, reward = SampleStore(tmp_path), exact_runs.REWARDS["letters"]()
    draws = store.draw(TransformersSampler(reference), world.prompts, 2500, sampling, seed=0)
    rewards = store.score(reward, draws)
    policy = replace(reference, model=copy.deepcopy(reference.model))
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in policy.model.parameters():
            weight.mul_(1 + 0.2 * torch.randn_like(weight))
    n, few = 4, 2000
    test = TestSet(world.prompts, rewards[:, few:], sampling, 500, 1, draws, rewards[:, :few])
    evaluation = evaluate(policy, reference, reward, test)
    exact = world.judge(policy, n)
    assert exact.forward_kl.mean() > 1
    reverse, forward = (table.mean() for table in divergences(policy, evaluation, test, n))
    assert reverse == pytest.approx(exact.reverse_kl.mean(), rel=0.1)
    assert forward == pytest.approx(exact.forward_kl.mean(), rel=0.1)
    with torch.no_grad():
        log_probs = enumerate_log_probs(policy.model, world.prompt_ids)
    log_quantile = (log_probs.exp() * world.log_cdf).sum(1).mean()
    assert log_quantiles(evaluation, test).mean() == pytest.approx(float(log_quantile), rel=0.1)
    with pytest.raises(ValueError, match="test has 2000 draws a prompt; best-of-1001"):
        divergences(policy, evaluation, test, 1001)
    smaller = test.first(2, 1)
    assert smaller.rewards.shape == (2, few)
    assert smaller.draws.prompts == world.prompts[:2]


def test_log_quantiles_of_a_good_policy_are_right_on_average_even_from_few_draws():
    rng, prompts, m, n = np.random.default_rng(0), [str(i) for i in range(4000)], 16, 8
    test = TestSet(prompts, rng.random((len(prompts), m)), SamplingSettings(4))
    best_of_n = rng.random((len(prompts), 1)) ** (1 / n)  # its own F≤, as the reference's rewards are uniform
    evaluation = SimpleNamespace(rewards=best_of_n, responses=SimpleNamespace(texts=np.array(prompts)))
    found = log_quantiles(evaluation, test)
    error = found.std() / np.sqrt(len(prompts))
    assert found.mean() == pytest.approx(-1 / n, abs=4 * error)
    assert 4 * error < 0.2 / n < 1 / (m + 1)


def test_settings_that_a_measurement_cannot_have_are_named():
    with pytest.raises(ValueError, match="temperature 1"):
        TestSet(PROMPTS, np.zeros((4, 3)), SamplingSettings(8, top_p=0.9))
    with pytest.raises(ValueError, match="there are 4 prompts and 3 rows of opponents"):
        TestSet(PROMPTS, np.zeros((3, 3)), SamplingSettings(8))
