"""Values of prefixes, and BoN by tokens, which learns from them."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from toy_training import SHORT, weights_of

from bonlib.draws.rewards import SentimentReward
from bonlib.exact import Outcomes
from bonlib.methods.bon_tokens import BonTokens, next_token_loss, some_of
from bonlib.models import reading
from bonlib.models.ways import proven
from bonlib.training.learner import PromptTokens
from bonlib.training.policy import Policy
from bonlib.training.prefix_values import PrefixReader, PrefixRecipe, fit_prefix_values, response_values
from bonlib.training.trainer import TrainingRun

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


def test_the_optimum_of_vbons_bound_has_next_tokens_by_what_they_promise(tree):
    steps, values, outcomes = tree
    optimum = outcomes.tilt(1 / (N - 1), "log_cdf")
    ends = (N - 1) * outcomes.log_cdf
    risen = np.diff(np.column_stack([values, ends]), axis=1)
    np.testing.assert_allclose(np.exp((steps + risen).sum(1)), optimum, rtol=1e-12)


@pytest.mark.parametrize("chosen", [[0, 1], [2, 1], [0, 1, 2]])
def test_the_loss_is_least_at_that_law_whatever_tokens_are_compared(chosen):
    rng = np.random.default_rng(4)
    reference, values = torch.from_numpy(np.log(rng.dirichlet(np.ones(3), 5))), torch.from_numpy(-rng.random((5, 3)))
    best = (reference + values).log_softmax(-1)
    asked = best.clone().requires_grad_(True)
    loss = next_token_loss(asked.log_softmax(-1)[:, chosen], reference[:, chosen], values[:, chosen])
    (slope,) = torch.autograd.grad(loss.sum(), asked)
    assert slope.abs().max() < 1e-15
    assert loss.abs().max() < 1e-15
    other = torch.from_numpy(np.log(rng.dirichlet(np.ones(3), 5)))
    assert (next_token_loss(other[:, chosen], reference[:, chosen], values[:, chosen]) >= loss - 1e-15).all()


def test_sets_hold_what_was_taken_and_likely_tokens_otherwise():
    log_probs, taken = torch.tensor([[0.7, 0.2, 0.1, 1e-9]]).log().expand(4000, -1), torch.full((4000,), 3)
    sets = some_of(log_probs, taken, 2, torch.Generator().manual_seed(0))
    assert (sets[:, 0] == 3).all()
    shares = torch.bincount(sets[:, 1], minlength=4) / 4000
    np.testing.assert_allclose(shares, [0.7, 0.2, 0.1, 0], atol=0.03)
    assert sorted(some_of(log_probs, taken, 16, torch.Generator().manual_seed(0))[0].tolist()) == [0, 1, 2, 3]


def test_values_of_responses_are_finite_even_for_the_worst():
    rewards = np.random.default_rng(0).random((1, 20_000))
    worth = np.exp(response_values(rewards, N)).mean()
    assert worth == pytest.approx(1 / N, abs=2e-3)
    assert np.isfinite(response_values(rewards, 512)).all()


def test_values_tell_what_the_first_tokens_say(language_model, training_data):
    reward = training_data.reward_model
    tokens = PromptTokens(language_model, training_data)
    reader = PrefixReader(language_model, reward, training_data.prompts, training_data.rewards)
    fit = PrefixRecipe(draws=64, steps=200, batch_size=256, held_out=0.25)
    given = (reader, tokens, training_data.draws, training_data.rewards, 2)
    values, again = fit_prefix_values(*given, fit), fit_prefix_values(*given, fit)
    responses = training_data.draws.responses[0]
    names = [training_data.prompts[0]] * 64
    batch = tokens.batch(names, responses.token_ids.tolist())
    known = reader.along(names, batch)
    said = values(known)
    assert (said <= 0).all()
    assert torch.equal(said, again(known))
    assert set(values.explained) == set(range(known.shape[1]))
    last = said[torch.arange(64), batch.response_mask.sum(1)].numpy()
    assert np.corrcoef(last, training_data.rewards[0])[0, 1] > 0.3


@pytest.mark.parametrize("seeing", [False, True])
def test_what_is_known_of_next_tokens_is_what_is_known_along_responses_with_them(
    seeing, language_model, classifier, training_data, monkeypatch
):
    reward = SentimentReward(classifier) if seeing else training_data.reward_model
    reader = PrefixReader(language_model, reward, training_data.prompts, training_data.rewards)
    assert (reader.model is classifier.model) == seeing
    tokens, prompts = PromptTokens(language_model, training_data), list(training_data.prompts[:2])
    batch = tokens.batch(prompts, [[5, 6, 7, -1], [5, 6, 7, 8]])
    instead = torch.tensor([[[5, 9], [6, 3], [7, 4], [0, 0]], [[5, 2], [6, 9], [7, 7], [8, 3]]])
    with torch.autocast("cpu", torch.bfloat16):  # in which a step reads, and the proof does not
        reader.next(prompts, replace(batch, instead=instead))
    assert "ahead" in proven(reader.model, "ahead", begin=min(batch.sizes), length=max(batch.sizes))
    following = reader.next(prompts, replace(batch, instead=instead))
    with monkeypatch.context() as patch:  # as for a model that cannot read them so
        patch.setattr(reading, "proven", lambda model, task, **_: frozenset())
        slowly = reader.next(prompts, replace(batch, instead=instead))
    torch.testing.assert_close(slowly, following, rtol=1e-3, atol=1e-4)
    along = reader.along(prompts, batch)
    torch.testing.assert_close(following[1, :, 0], along[1, 1:], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(following[0, :3, 0], along[0, 1:4], rtol=1e-3, atol=1e-4)
    other = reader.along(prompts[:1], tokens.batch(prompts[:1], [[5, 6, 4]]))
    torch.testing.assert_close(following[0, 2, 1], other[0, 3], rtol=1e-3, atol=1e-4)
    ids = torch.tensor([tokens.ids[prompts[1]] + [5, 6, 7, 8]])
    with torch.no_grad():
        plain = reader.model.base_model(ids).last_hidden_state[0, -5:]
    torch.testing.assert_close(along[1, :, : plain.shape[1]], plain.float(), rtol=1e-3, atol=1e-4)


def test_a_policy_is_asked_for_other_tokens(language_model, training_data):
    policy, tokens = Policy(language_model.model), PromptTokens(language_model, training_data)
    batch = tokens.batch(training_data.prompts[:2], [[5, 6, 7], [5, 6, -1]])
    instead = torch.stack([batch.responses, torch.full_like(batch.responses, 9)], dim=2)
    with torch.no_grad():
        said, asked = policy(batch)[0], policy(replace(batch, instead=instead))[0]
    torch.testing.assert_close(asked[..., 0] * batch.response_mask, said)
    assert not asked[1, 2].any()


def test_it_learns_and_resumes(language_model, training_data, tmp_path):
    settings, method = replace(SHORT, steps=30, learning_rate=1e-3), BonTokens(4, choices=8, value_steps=200)
    run, again = (
        TrainingRun(language_model, method, training_data, settings, tmp_path / name, None, False)
        for name in ("run", "again")
    )
    shards = [run.learner.shard(step, 0) for step in range(100, 110)]

    def loss():
        with torch.no_grad():
            return np.mean([float(run.learner.loss(shard, run.policy(shard.batch)[0], None)) for shard in shards])

    begun, done = loss(), run.go()
    assert begun == pytest.approx(np.mean([shard.figures["asked"] for shard in shards]), abs=1e-6)
    assert loss() < begun - 0.01
    assert torch.dist(weights_of(done.policy), weights_of(again.go().policy)) == 0


ONE = torch.zeros(2, 3)
WRONG = {
    r"values \(2, 2\); all must be": lambda: next_token_loss(ONE, ONE, ONE[:, :2]),
    r"values holds a number that is not finite": lambda: next_token_loss(ONE, ONE, ONE * torch.nan),
    r"n is 0; the number of draws": lambda: BonTokens(0),
    r"choices is 1; the number of next tokens": lambda: BonTokens(2, choices=1),
    r"best is 2": lambda: BonTokens(2, best=2),
    r"held_out is 1": lambda: PrefixRecipe(held_out=1.0),
}


@pytest.mark.parametrize("message", WRONG)
def test_what_is_wrong_is_named(message):
    with pytest.raises(ValueError, match=message):
        WRONG[message]()
