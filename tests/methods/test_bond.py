"""BOND against the exact part, many digits and full enumeration, and its learner."""

import math
from dataclasses import replace

import mpmath
import numpy as np
import pytest
import torch
from five_responses import MODEL, TIED, N, tables, tensor
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata
from toy_training import PROMPTS as TOY_PROMPTS
from toy_training import begin

from bonlib.course.experiments import exact_runs
from bonlib.course.experiments.enumerated import Distillation, EnumeratedPrompts, TabularPolicy, train_exactly
from bonlib.course.making.enumerable import PROMPTS
from bonlib.estimates import best_of_n_weights
from bonlib.methods.bond import Bond, best_of_subsets, bond_return, iterative_bond, jeffreys_loss
from bonlib.methods.jbond import JBond
from bonlib.methods.vbon import vbon_return
from bonlib.methods.vbon_bound import vbon_bound_return
from bonlib.training.on_policy import Judged
from bonlib.training.settings import Ppo

pytestmark = pytest.mark.usefixtures("one_accelerator")
TWO = tensor([-1.0, -2.0])


@pytest.mark.parametrize("model", [MODEL, TIED], ids=["no ties", "ties"])
@pytest.mark.parametrize("term_b", [False, True], ids=["without B", "with B"])
def test_at_the_stated_optimum_every_response_has_the_same_bond_return(model, term_b):
    log_ref, log_cdf, log_strict = tables(model)
    optimum = model.best_of(N) if term_b else model.tilt(1 / (N - 1), "log_cdf")
    returns = bond_return(tensor(np.log(optimum)), log_ref, log_cdf, n=N, log_strict_cdf=log_strict if term_b else None)
    assert returns.shape == (5,)
    assert float(returns.max() - returns.min()) < 1e-9


@pytest.mark.parametrize("model", [MODEL, TIED], ids=["no ties", "ties"])
def test_n_less_one_times_the_bond_return_is_the_vbon_return(model):
    log_ref, log_cdf, log_strict = tables(model)
    log_q = tensor(np.log(np.random.default_rng(0).dirichlet(np.ones(5))))
    with_b = bond_return(log_q, log_ref, log_cdf, n=N, log_strict_cdf=log_strict)
    log_tied = tensor(np.log(model.cdf - model.strict_cdf))
    torch.testing.assert_close((N - 1) * with_b, vbon_return(log_q, log_ref, log_strict, n=N, log_tied=log_tied))
    torch.testing.assert_close(
        (N - 1) * bond_return(log_q, log_ref, log_cdf, n=N),
        vbon_bound_return(log_q, log_ref, log_cdf, n=N),
    )


@pytest.mark.parametrize("gap", [0.0, 1e-17, 1e-9, 0.3, 40.0, np.inf])
@pytest.mark.parametrize("n", [1.5, 2, 16, 1000])
def test_term_b_is_stable_where_f_is_nearly_its_weak_form(gap, n):
    with mpmath.workdps(60):
        ratio = mpmath.exp(-gap)
        want = mpmath.log(n if gap == 0 else (1 - ratio**n) / (1 - ratio)) / (n - 1)
    zero = tensor([0.0])
    got = bond_return(zero, zero, zero, n=n, log_strict_cdf=zero - gap)
    assert float(got) == pytest.approx(float(want), abs=1e-12)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_the_jeffreys_gradient_is_the_enumerated_one(weight):
    log_ref, log_cdf, log_strict = tables(MODEL)
    target = tensor(MODEL.log_best_of(N))
    logits = tensor(np.random.default_rng(0).normal(size=5)).requires_grad_()
    log_q = logits.log_softmax(0)
    forward, reverse = (target.exp() * (target - log_q)).sum(), (log_q.exp() * (log_q - target)).sum()
    (exact,) = torch.autograd.grad((1 - weight) * forward + weight * reverse, logits, retain_graph=True)
    # One loss for each pair of a best-of-n response and one of the policy, in the proportion in which they are drawn.
    best, own = torch.cartesian_prod(torch.arange(5), torch.arange(5)).T
    returns = bond_return(log_q.detach(), log_ref, log_cdf, n=N, log_strict_cdf=log_strict)
    pairs = jeffreys_loss(log_q[best], log_q[own], returns[own] - 7.0, n=N, jeffreys_weight=weight)
    (enumerated,) = torch.autograd.grad((target.exp()[best] * log_q.detach().exp()[own] * pairs).sum(), logits)
    torch.testing.assert_close(enumerated, exact)


WRONG = {
    "n is 1;": lambda: bond_return(TWO, TWO, TWO, n=1),
    "n is nan": lambda: bond_return(TWO, TWO, TWO, n=math.nan),
    "log_cdf holds 2": lambda: bond_return(TWO, TWO, -TWO, n=2),
    "log_strict_cdf is above": lambda: bond_return(TWO, TWO, TWO, n=2, log_strict_cdf=TWO + 0.5),
    "jeffreys_weight is 1.5": lambda: jeffreys_loss(TWO, TWO, TWO, n=2, jeffreys_weight=1.5),
    "best has shape": lambda: jeffreys_loss(TWO[:1], TWO, TWO, n=2, jeffreys_weight=0.5),
    "anchor_every is 0": lambda: Bond(2, anchor_every=0),
    "n is 2.5": lambda: Bond(2.5),
    "anchor_draws is 3": lambda: iterative_bond(10, n=4, anchor_draws=3),
    "cdf is None": lambda: Bond(2).returns(Judged(["p"] * 2, ["a", "b"], TWO, TWO, TWO), None),
    "easing is on": lambda: Bond(2).eased(0.5),
}


@pytest.mark.parametrize("message", WRONG)
def test_bad_arguments_are_named(message):
    with pytest.raises(ValueError, match=message):
        WRONG[message]()


@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 99))
def test_the_best_of_a_random_subset_is_a_draw_of_best_of_n(n, count, seed):
    rewards = np.random.default_rng(seed).permutation(18).reshape(3, 6).astype(float)
    best = best_of_subsets(rewards, n, count, np.random.default_rng(seed))
    assert best.shape == (3, count)
    ranks = np.argsort(np.argsort(rewards, axis=1), axis=1)
    assert (np.take_along_axis(ranks, best, axis=1) >= n - 1).all()


def test_over_many_subsets_the_best_have_the_probabilities_of_best_of_n():
    best = best_of_subsets(np.arange(6.0)[None], 2, 20_000, np.random.default_rng(0))
    want = [rank / 15 for rank in range(6)]  # without replacement: C(rank, 1)/C(6, 2)
    np.testing.assert_allclose(np.bincount(best[0], minlength=6) / 20_000, want, atol=0.01)


def test_picks_by_weights_have_the_same_mean_and_less_noise(language_model, training_data, tmp_path):
    places = {  # which draw a response to a prompt is, where no two are the same
        (prompt, *row[row >= 0].tolist()): place
        for prompt, responses in zip(TOY_PROMPTS, training_data.draws.responses, strict=True)
        for place, row in enumerate(responses.token_ids)
    }
    quantiles = rankdata(training_data.rewards, axis=1) / 64
    want = (best_of_n_weights(training_data.rewards, 8) * quantiles).sum(axis=1)
    noise = {}
    for picks in ("weights", "groups"):
        learner = begin(language_model, training_data, tmp_path / picks, Bond(8, picks=picks), group=4).learner
        means = []
        for step in range(40):
            shard = learner.shard(step, 0)
            found = [
                quantiles[TOY_PROMPTS.index(prompt), places[(prompt, *row[mask.bool()].tolist())]]
                for prompt, row, mask in zip(shard.prompts, shard.best.responses, shard.best.response_mask, strict=True)
            ]
            rows = [TOY_PROMPTS.index(prompt) for prompt in shard.prompts[::4]]
            means.extend(np.array(found).reshape(4, 4).mean(axis=1) - want[rows])
        assert np.mean(means) == pytest.approx(0, abs=4 * np.std(means) / len(means) ** 0.5)
        noise[picks] = np.var(means)
    assert noise["weights"] < 0.7 * noise["groups"]


@pytest.mark.parametrize("method", [JBond(anchor_rate=0.25), iterative_bond(2, anchor_draws=6)], ids=["ema", "copy"])
def test_the_anchor_draws_and_reads_as_itself(method, language_model, training_data, tmp_path):
    run = begin(language_model, training_data, tmp_path, method, learning_rate=0.05)
    assert float(run.learner.shard(0, 0).drifts.abs().max()) < 1e-4  # it starts as the policy
    start = [weight.detach().clone() for weight in run.learned]
    before = run.train_step()
    moved = 0.25 if isinstance(method, JBond) else 0.0
    for held, old, new in zip(run.policy.anchor.buffers(), start, run.learned, strict=True):
        torch.testing.assert_close(held, torch.lerp(old, new.detach(), moved))
    run.step = 1
    shard = run.learner.shard(1, 0)
    assert float(shard.drifts.abs().max()) > 1e-3
    assert run.responses == 4 * (2 + method.anchor_draws)
    assert before["kl"] == pytest.approx(0, abs=1e-4)
    assert len(shard.batch.responses) == len(shard.best.responses) == len(shard.prompts)


def test_the_loss_is_divergence_and_regulariser(language_model, training_data, tmp_path):
    method = Bond(4, jeffreys_weight=0.25, regulariser=0.7)
    learner = begin(language_model, training_data, tmp_path, method).learner
    shard = learner.shard(0, 0)
    learner.weigh([shard])
    shard.drifts = torch.linspace(-1, 1, 8)
    parts = learner.parts(shard)
    tokens = [(-torch.rand(part.batch.responses.shape) * part.batch.response_mask).requires_grad_() for part in parts]
    own, best = (log_probs.sum(1) for log_probs in tokens)
    want = -0.75 * best - 0.25 * 3 * shard.advantages * own + 0.7 * shard.drifts * own
    found = [learner.loss(part, log_probs, None) for part, log_probs in zip(parts, tokens, strict=True)]
    torch.testing.assert_close(sum(found), want.mean())
    # A part's loss leads to its own log-probabilities alone, so that the other's need not be held.
    for loss, log_probs in zip(found, tokens, strict=True):
        torch.testing.assert_close(
            *(torch.autograd.grad(each, log_probs, retain_graph=True) for each in (loss, want.mean()))
        )
    stored = {
        (p, tuple(r[r >= 0]))
        for p, d in zip(TOY_PROMPTS, training_data.draws.responses, strict=True)
        for r in d.token_ids
    }
    for prompt, row, mask in zip(shard.prompts, shard.best.responses, shard.best.response_mask, strict=True):
        assert (prompt, tuple(row[mask.bool()].tolist())) in stored


def test_a_run_on_other_draws_is_another_run(language_model, training_data, tmp_path):
    def about(method, data):
        return begin(language_model, data, tmp_path, method)._about()["learned_from"]

    other = replace(training_data, rewards=training_data.rewards[:, ::-1].copy())
    assert about(Bond(4), training_data) != about(Bond(4), other)
    assert about(JBond(), training_data) == about(JBond(), replace(other, cdf=None))


def test_what_does_not_fit_is_refused(language_model, training_data, tmp_path):
    with pytest.raises(ValueError, match="draw more"):
        begin(language_model, training_data, tmp_path, Bond(65))
    with pytest.raises(ValueError, match="trained by REINFORCE"):
        begin(language_model, training_data, tmp_path, JBond(), ppo=Ppo())
    with pytest.raises(ValueError, match="easing is on"):
        begin(language_model, training_data, tmp_path, JBond(), easing=0.5)
    with pytest.raises(ValueError, match="cdf is None"):
        begin(language_model, replace(training_data, cdf=None), tmp_path, Bond(4))


def test_one_run_with_a_copied_anchor_arrives_at_best_of_8():
    prompts = EnumeratedPrompts(exact_runs.reference(), PROMPTS[:1], exact_runs.REWARDS["letters"]())
    policy, method = TabularPolicy(prompts.ref_log_probs), Bond(**dict(exact_runs.ITERATED))
    train_exactly(policy, Distillation(prompts, method, policy), steps=300, learning_rate=0.1, decay=False)
    assert prompts.judge(policy(), 8).reverse_kl[0] < 0.005


def test_repeated_distillation_of_best_of_2_arrives_at_best_of_8():
    prompts = EnumeratedPrompts(exact_runs.reference(), PROMPTS[:1], exact_runs.REWARDS["letters"]())
    policy, seen = TabularPolicy(prompts.ref_log_probs), prompts
    for rounds in (1, 2, 3):
        train_exactly(policy, Distillation(seen, Bond(2, term_b=True), policy), steps=200, learning_rate=0.1)
        seen = seen.seen_from(policy())
        assert prompts.judge(policy(), 2**rounds).reverse_kl[0] < 1e-6


@pytest.mark.parametrize("method", [Bond(4, term_b=True), JBond(regulariser=0.5)], ids=["bond", "jbond"])
def test_draws_give_the_gradient_of_the_exact_sums(method):
    prompts = EnumeratedPrompts(exact_runs.reference(), PROMPTS[:1], exact_runs.REWARDS["letters"]())
    policy = TabularPolicy(0.5 * prompts.ref_log_probs)
    gradients = []
    for count in (None, 200_000):
        objective = Distillation(prompts, method, policy, count=count)
        (gradient,) = torch.autograd.grad(objective(policy(), 1.0), policy.logits)
        gradients.append(gradient.flatten())
    assert torch.cosine_similarity(*gradients, dim=0) > 0.98
