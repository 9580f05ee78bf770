"""Blockwise best-of-n on a language small enough to follow every block."""

import hashlib

import numpy as np
import pytest
import torch

from bonlib.bounds import blockwise_kl_bound
from bonlib.draws.rewards import FunctionReward
from bonlib.draws.samplers import SamplingSettings, TransformersSampler
from bonlib.exact import Outcomes, kl_divergence
from bonlib.inference.best_of_n import best_of_n
from bonlib.inference.blockwise import blockwise_best_of_n
from bonlib.inference.rules import make_rule
from bonlib.inference.steered import steer
from bonlib.inference.tree_best_of_n import TreeBestOfN
from bonlib.models.next_token import Law, next_token_probs


def noise(prompt, response):
    """A reward of its own for every text, so that no two blocks tie."""
    return int(hashlib.md5(response.encode()).hexdigest()[:8], 16) / 16**8


REWARD = FunctionReward(noise, name="noise")
SHORT = FunctionReward(lambda prompt, response: -len(response), name="short")
PROMPT = "The film"


@pytest.fixture(scope="module")
def sampler(bundled_model):
    return TransformersSampler(bundled_model, batch_size=1024)


def exact_kl(loaded, ids, settings, n, left):
    """KL of choosing token by token, by following each token that can come."""
    with torch.inference_mode():
        logits = loaded.model(torch.tensor([ids])).logits[:, -1].float()
    probs = next_token_probs(logits, Law(settings.temperature, settings.top_p))[0].double().numpy()
    possible = np.flatnonzero(probs)
    head = len(loaded.tokenizer(PROMPT)["input_ids"])
    wholes = [loaded.tokenizer.decode([*ids, token], skip_special_tokens=True) for token in possible]
    prompt = loaded.tokenizer.decode(ids[:head], skip_special_tokens=True)
    rewards = REWARD.score([PROMPT] * len(wholes), [whole.removeprefix(prompt) for whole in wholes])
    model = Outcomes(probs[possible] / probs[possible].sum(), rewards)
    policy = model.best_of(n)
    kl = kl_divergence(policy, model.probs)
    if left == 1:
        return kl
    rest = [
        0.0 if token in loaded.end_token_ids else exact_kl(loaded, [*ids, int(token)], settings, n, left - 1)
        for token in possible
    ]
    return kl + float(policy @ rest)


@pytest.mark.parametrize("n", [1, 3])
def test_the_kl_is_that_of_the_tree_of_blocks(sampler, n):
    settings = SamplingSettings(2, top_p=0.3)
    ids = sampler.loaded.tokenizer(PROMPT)["input_ids"]
    exact = exact_kl(sampler.loaded, ids, settings, n, 2)
    found = blockwise_best_of_n(sampler, REWARD, [PROMPT] * 200, n, 1, settings, seed=0, candidates=200)
    noise = found.kl.std() / np.sqrt(200)
    assert found.kl.mean() == pytest.approx(exact, abs=4 * noise + 0.02)
    assert found.kl_from_winners.mean() >= exact - 4 * noise - 1e-12
    assert found.kl.mean() <= blockwise_kl_bound(n, found.lengths, 1) + 1e-9


@pytest.mark.parametrize("n", [2, 8])
def test_a_reward_that_prefers_nothing_costs_nothing(sampler, n):
    nothing = FunctionReward(lambda prompt, response: 1.0, name="nothing")
    found = blockwise_best_of_n(sampler, nothing, [PROMPT] * 2, n, 2, SamplingSettings(6), seed=0)
    np.testing.assert_allclose(found.kl, 0, atol=1e-9)


def test_a_block_as_long_as_the_response_is_best_of_n(sampler):
    settings = SamplingSettings(8)
    found = blockwise_best_of_n(sampler, REWARD, ["a", PROMPT], 4, 8, settings, seed=3)
    again = blockwise_best_of_n(sampler, REWARD, ["a", PROMPT], 4, 8, settings, seed=3)
    assert found.texts.tolist() == again.texts.tolist()
    heads = [ids for p in ("a", PROMPT) for ids in [sampler.loaded.tokenizer(p)["input_ids"]] * 64]
    drawn = sampler.sample_tokens(heads, settings, seed=3)
    rewards = REWARD.score(["a"] * 64 + [PROMPT] * 64, drawn.texts).reshape(2, 64)
    kept = best_of_n(rewards[:, :4], 4)[:, 0]
    assert found.texts.tolist() == drawn.texts.reshape(2, 64)[[0, 1], kept].tolist()
    np.testing.assert_allclose(found.rewards, rewards[[0, 1], kept])


def test_choosing_more_often_gets_more_reward_for_more_kl(sampler):
    settings = SamplingSettings(12)
    es = FunctionReward(lambda prompt, response: response.count("e"), name="es")
    found = {m: blockwise_best_of_n(sampler, es, [PROMPT] * 64, 4, m, settings, seed=0) for m in (1, 12)}
    assert found[1].kl.mean() > found[12].kl.mean()
    assert found[1].rewards.mean() > found[12].rewards.mean()


def test_responses_end_where_the_end_token_comes(language_model):
    found = blockwise_best_of_n(
        TransformersSampler(language_model), SHORT, ["the film"] * 40, 8, 3, SamplingSettings(20), seed=0
    )
    assert (found.lengths >= 1).all()
    assert 0 < (found.lengths < 20).sum() < 40
    assert not any(language_model.tokenizer.eos_token in text for text in found.texts)


@pytest.mark.parametrize("bad", [{"n": 0}, {"block": 0}, {"block": 1.5}, {"candidates": 1}])
def test_bad_arguments_are_named(sampler, bad):
    arguments = {"n": 2, "block": 2, "settings": SamplingSettings(4), "seed": 0, **bad}
    with pytest.raises(ValueError, match=f"{next(iter(bad))} is"):
        blockwise_best_of_n(sampler, REWARD, [PROMPT], **arguments)


def test_it_is_in_the_table_as_a_tree_of_one_survivor(sampler):
    rule = make_rule("blockwise", n=4, checkpoints=(3, 6))
    assert rule == TreeBestOfN(4, 1, 4, (3, 6))
    found = steer(sampler, REWARD, [PROMPT], rule, SamplingSettings(9), seed=5)
    same = blockwise_best_of_n(sampler, REWARD, [PROMPT], 4, 3, SamplingSettings(9), seed=5, candidates=4)
    assert found.responses.texts.tolist() == same.texts.tolist()
