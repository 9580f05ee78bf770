"""Values of prefixes, and the two methods that learn token by token from them."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from toy_training import SHORT, weights_of

from bonlib.draws.rewards import SentimentReward
from bonlib.exact import Outcomes
from bonlib.models.reading import token_batch
from bonlib.training.by_tokens import PrefixRegression, VbonByTokens, prefix_regression_loss
from bonlib.training.learner import PromptTokens
from bonlib.training.prefix_values import (
    PrefixReader,
    PrefixRecipe,
    fit_prefix_values,
    prompt_values,
    response_values,
    rises,
)
from bonlib.training.trainer import train

pytestmark = pytest.mark.usefixtures("one_accelerator")
N, LENGTH, LETTERS = 4, 3, 3


@pytest.fixture(scope="module")
def tree():
    """All responses of three letters: log π of each token, values before each and at the end, and the outcomes."""
    rng = np.random.default_rng(3)
    table = {
        prefix: rng.dirichlet(np.ones(LETTERS))
        for length in range(LENGTH)
        for prefix in itertools.product(range(LETTERS), repeat=length)
    }
    texts = list(itertools.product(range(LETTERS), repeat=LENGTH))
    steps = np.log([[table[text[:t]][text[t]] for t in range(LENGTH)] for text in texts])
    outcomes = Outcomes(np.exp(steps.sum(1)), rng.integers(0, 9, len(texts)))

    def value(prefix):
        inside = np.array([text[: len(prefix)] == prefix for text in texts])
        worth = outcomes.cdf[inside] ** (N - 1)
        return np.log((outcomes.probs[inside] * worth).sum() / outcomes.probs[inside].sum())

    values = np.array([[value(text[:t]) for t in range(LENGTH)] for text in texts])
    return steps, values, outcomes


def as_batch(count, lengths=None):
    responses = [[1] * length for length in lengths or [LENGTH] * count]
    return token_batch([[0]] * count, responses, pad_id=0, device=torch.device("cpu"))


def test_the_optimum_of_vbons_bound_has_the_rises_of_the_value_for_log_ratios(tree):
    steps, values, outcomes = tree
    ends = (N - 1) * outcomes.log_cdf
    begins = torch.from_numpy(values[:, 0])  # with ties a little above −log n
    risen = rises(torch.from_numpy(values), as_batch(len(ends)), begins, torch.from_numpy(ends)).numpy()
    np.testing.assert_allclose(risen.sum(1), ends - values[:, 0], rtol=0, atol=1e-12)
    optimum = outcomes.tilt(1 / (N - 1), "log_cdf")
    np.testing.assert_allclose(np.exp((steps + risen).sum(1)), optimum, rtol=1e-12)
    tokens = torch.from_numpy(steps + risen)
    loss = prefix_regression_loss(tokens, torch.from_numpy(steps), torch.from_numpy(risen))
    assert loss.max() < 1e-24
    # Each token's law sums to one: the rises are those of a policy, prefix by prefix.
    first = {text[0]: np.exp(row[0]) for text, row in zip(itertools.product(range(3), repeat=3), tokens, strict=True)}
    assert sum(first.values()) == pytest.approx(1, abs=1e-12)


def test_a_prompt_is_worth_one_nth_and_more_where_rewards_tie():
    rng = np.random.default_rng(0)
    apart, tied = rng.random((1, 20_000)), rng.integers(0, 2, (1, 20_000)) * 1.0
    assert np.exp(prompt_values(response_values(apart, N))) == pytest.approx(1 / N, abs=2e-3)
    assert np.exp(prompt_values(response_values(tied, N))) == pytest.approx((0.5**N + 0.5), abs=1e-2)
    assert np.isfinite(response_values(apart, 512)).all()


def test_padding_rises_by_nothing():
    values = torch.tensor([[9.0, -1.0], [9.0, 7.0]])
    risen = rises(values, as_batch(2, [2, 1]), torch.tensor([-2.0, -2.0]), torch.tensor([-0.5, -3.0]))
    assert risen.tolist() == [[1.0, 0.5], [-1.0, 0.0]]


def test_values_tell_what_the_first_tokens_say(language_model, training_data):
    reward = training_data.reward_model
    tokens = PromptTokens(language_model, training_data)
    reader = PrefixReader(language_model, reward, training_data.prompts, training_data.rewards)
    fit = PrefixRecipe(draws=64, steps=100, batch_size=256, held_out=0)
    given = (reader, tokens, training_data.draws, training_data.rewards, 2)
    values, again = fit_prefix_values(*given, fit), fit_prefix_values(*given, fit)
    responses = training_data.draws.responses[0]
    batch = tokens.batch([training_data.prompts[0]] * 64, responses.token_ids.tolist())
    log_probs, known = reader.read([training_data.prompts[0]] * 64, batch)
    np.testing.assert_allclose(log_probs.double().sum(1), responses.log_probs, atol=1e-4)
    said = values(known)
    assert (said <= 0).all()
    assert torch.equal(said, again(known))
    last = said[torch.arange(64), batch.response_mask.sum(1) - 1].numpy()
    assert np.corrcoef(last, training_data.rewards[0])[0, 1] > 0.3


def test_a_causal_reward_model_over_the_same_tokens_is_read(language_model, classifier, training_data):
    rewards = training_data.rewards
    blind = PrefixReader(language_model, training_data.reward_model, training_data.prompts, rewards)
    seeing = PrefixReader(language_model, SentimentReward(classifier), training_data.prompts, rewards)
    assert blind.judge is None
    assert seeing.judge is not None
    tokens = PromptTokens(language_model, training_data)
    prompts = list(training_data.prompts[:2])
    batch = tokens.batch(prompts, [[5, 6, 7, -1], [5, 6, 7, 8]])
    _, known = seeing.read(prompts, batch)
    width = classifier.model.config.hidden_size
    ids = torch.tensor([tokens.ids[prompts[1]] + [5, 6, 7, 8]])
    with torch.no_grad():
        plain = classifier.model.base_model(ids).last_hidden_state[0, -5:-1]
    torch.testing.assert_close(known[1, :, -width:], plain.float(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "method", [PrefixRegression(4, value_steps=20), VbonByTokens(4, value_steps=20)], ids=["regression", "vbon"]
)
def test_they_bring_the_reward_up_and_resume(method, language_model, training_data, tmp_path):
    settings = replace(SHORT, learning_rate=1e-2)
    done = train(language_model, method, training_data, settings, tmp_path / "run", show=False)
    again = train(language_model, method, training_data, settings, tmp_path / "again", show=False)
    assert torch.dist(weights_of(done.policy), weights_of(again.policy)) == 0
    assert torch.dist(weights_of(done.policy), weights_of(language_model)) > 0


def test_with_a_trace_of_one_a_token_answers_for_all_that_follows(language_model, training_data, tmp_path):
    done = train(
        language_model, VbonByTokens(4, trace=1.0, value_steps=20), training_data, SHORT, tmp_path / "run", show=False
    )
    assert np.isfinite([row["loss"] for row in done.curve]).all()


ONE = torch.zeros(2, 3)
WRONG = {
    r"value_rises \(2, 2\); all must be": lambda: prefix_regression_loss(ONE, ONE, ONE[:, :2]),
    r"value_rises holds a number that is not finite": lambda: prefix_regression_loss(ONE, ONE, ONE * torch.nan),
    r"n is 0; the number of draws": lambda: PrefixRegression(0),
    r"best is 2": lambda: PrefixRegression(2, best=2),
    r"trace is -1": lambda: VbonByTokens(2, trace=-1),
    r"easing is on": lambda: VbonByTokens(2).eased(0.5),
    r"held_out is 1": lambda: PrefixRecipe(held_out=1.0),
}


@pytest.mark.parametrize("message", WRONG)
def test_what_is_wrong_is_named(message):
    with pytest.raises(ValueError, match=message):
        WRONG[message]()
