"""J-BOND against full enumeration and closed forms, and its anchor."""

import itertools
import math

import numpy as np
import pytest
import torch
from five_responses import tensor
from hypothesis import given
from hypothesis import strategies as st
from toy_training import begin

from bonlib.course.experiments import exact_runs
from bonlib.course.experiments.enumerated import Distillation, EnumeratedPrompts, TabularPolicy, train_exactly
from bonlib.course.making.enumerable import PROMPTS
from bonlib.draws.samplers import TransformersSampler
from bonlib.exact import Outcomes
from bonlib.methods.jbond import JBond, jbond_return, jbond_reward
from bonlib.training.on_policy import Judged
from bonlib.training.policy import Policy

pytestmark = pytest.mark.usefixtures("one_accelerator")
TWO = tensor([-1.0, -2.0])


@given(st.lists(st.integers(0, 4), min_size=2, max_size=6), st.integers(0, 2**32 - 1))
def test_the_mean_jbond_reward_is_minus_log_16_times_the_square_of_what_is_better(rewards, seed):
    model = Outcomes(np.random.default_rng(seed).dirichlet(np.ones(len(rewards))), rewards)
    mean = np.zeros(len(rewards))
    for a, b in itertools.product(range(len(rewards)), repeat=2):
        anchors = tensor([[rewards[a], rewards[b]]] * len(rewards))
        mean += model.probs[a] * model.probs[b] * jbond_reward(tensor(rewards).double(), anchors).numpy()
    np.testing.assert_allclose(mean, -math.log(16) * (1 - model.cdf) ** 2, atol=1e-12)
    whole = jbond_reward(torch.tensor([1, 2]), torch.tensor([[2, 3], [2, 3]]))
    assert whole.tolist() == pytest.approx([-math.log(16), 0])


def test_the_jbond_return_pays_what_is_not_worse_than_both():
    judged = Judged(["p"], ["x"], tensor([-3.0]), tensor([-2.0]), tensor([0.1]), tensor([[0.2, 0.3]]))
    assert float(JBond().returns(judged, None)) == pytest.approx(-math.log(16) + 1)
    assert float(JBond().returns(judged._replace(rewards=tensor([0.2])), None)) == pytest.approx(1)


PAIR = tensor([[0.0, 1.0], [2.0, 3.0]])


WRONG = {
    "anchor_rewards has shape": lambda: jbond_reward(TWO, TWO),
    "rewards holds": lambda: jbond_reward(TWO / 0, PAIR),
    "log_probs holds 2": lambda: jbond_return(-TWO, TWO, TWO, PAIR),
    "anchor_rate is 2": lambda: JBond(anchor_rate=2),
    "regulariser is nan": lambda: JBond(regulariser=math.nan),
    "anchor_rewards; J-BOND": lambda: JBond().returns(Judged(["p"] * 2, ["a", "b"], TWO, TWO, TWO), None),
}


@pytest.mark.parametrize("message", WRONG)
def test_bad_arguments_are_named(message):
    with pytest.raises(ValueError, match=message):
        WRONG[message]()


def test_what_the_anchor_draws_is_its_own(language_model, training_data, tmp_path):
    run = begin(language_model, training_data, tmp_path, JBond())
    with torch.no_grad():
        for weight in run.learned:
            weight.mul_(1 + 0.5 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    learner, chosen = run.learner, run.learner.chosen(0, 0)
    judged, tokens = learner.answers(chosen, 2, [0, 0])
    own = learner.tokens.batch(judged.prompts, tokens)
    seen, rewards, answers = learner.ask_anchor(judged, own, chosen, [0, 0])
    # The anchor is where the reference is; the policy is elsewhere.
    reference = Policy(language_model.model).read(own).double().sum(1)
    torch.testing.assert_close(seen.ref_log_probs, reference, atol=1e-4, rtol=0)
    assert float((seen.log_probs - seen.ref_log_probs).abs().min()) > 0.1
    prompts = [training_data.prompts[i] for i in chosen]
    texts = language_model.tokenizer.batch_decode([[t for t in row if t > 1] for pair in answers for row in pair])
    found = training_data.reward_model.score([p for p in prompts for _ in range(2)], texts).reshape(-1, 2)
    np.testing.assert_allclose(rewards, found)
    np.testing.assert_allclose(seen.anchor_rewards, np.repeat(found, 2, axis=0))
    seed = int(np.random.SeedSequence([0, 0, 0, 1]).generate_state(1, np.uint64)[0] >> 1)
    ids = [learner.tokens.ids[prompt] for prompt in prompts for _ in range(2)]
    again = TransformersSampler(language_model, batch_size=8).sample_tokens(ids, training_data.sampling, seed=seed)
    assert again.token_ids.tolist() == [row.tolist() for pair in answers for row in pair]


def test_the_anchor_survives_a_resume(language_model, training_data, tmp_path):
    whole = begin(language_model, training_data, tmp_path / "whole", JBond(anchor_rate=0.1), learning_rate=3e-3)
    whole.go()
    first = begin(language_model, training_data, tmp_path / "halves", JBond(anchor_rate=0.1), learning_rate=3e-3)
    original = first.train_step

    def interrupted():
        if first.step == 4:
            raise KeyboardInterrupt
        return original()

    first.train_step = interrupted
    with pytest.raises(KeyboardInterrupt):
        first.go()
    second = begin(language_model, training_data, tmp_path / "halves", JBond(anchor_rate=0.1), learning_rate=3e-3)
    second.go()
    for one, two in zip(whole.policy.anchor.buffers(), second.policy.anchor.buffers(), strict=True):
        assert torch.equal(one, two)
    assert all(torch.equal(one, two) for one, two in zip(whole.learned, second.learned, strict=True))


def test_with_one_response_a_prompt_the_others_of_the_step_are_the_baseline(language_model, training_data, tmp_path):
    run = begin(language_model, training_data, tmp_path, JBond(anchor_rate=0.1), group=1, prompts=4)
    shard = run.learner.shard(0, 0)
    run.learner.weigh([shard])
    rest = (shard.returns.sum() - shard.returns) / 3
    torch.testing.assert_close(shard.advantages.cpu().double(), shard.returns - rest, atol=1e-6, rtol=0)


def test_the_regulariser_holds_and_its_printed_sign_drives_away():
    prompts = EnumeratedPrompts(exact_runs.reference(), PROMPTS[:1], exact_runs.REWARDS["letters"]())
    spent = []
    for gamma in (-0.3, 0.0, 1.0):
        policy = TabularPolicy(prompts.ref_log_probs)
        method = JBond(anchor_rate=0.0, regulariser=gamma)
        train_exactly(policy, Distillation(prompts, method, policy), steps=60, learning_rate=0.1)
        spent.append(prompts.judge(policy(), 2).kl[0])
    assert spent[0] > 1.1 * spent[1] > 1.3 * spent[2]
