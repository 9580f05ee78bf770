"""BOND and J-BOND against the exact part, many digits, full enumeration and closed forms."""

import copy
import itertools
import math
from dataclasses import replace
from types import SimpleNamespace

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toy_training import PROMPTS as TOY_PROMPTS

from bonlib.course.experiments import exact_runs
from bonlib.course.experiments.enumerated import Distillation, EnumeratedPrompts, TabularPolicy, train_exactly
from bonlib.course.making.enumerable import LENGTH, PROMPTS, enumerate_log_probs
from bonlib.draws.samplers import SamplingSettings, TransformersSampler
from bonlib.draws.store import SampleStore
from bonlib.evaluate import TestSet, divergences, evaluate, log_quantiles
from bonlib.exact import Outcomes
from bonlib.methods.bond import Bond, best_of_subsets, bond_return, iterative_bond, jeffreys_loss
from bonlib.methods.jbond import JBond, jbond_return, jbond_reward
from bonlib.methods.vbon import vbon_return
from bonlib.methods.vbon_bound import vbon_bound_return
from bonlib.training import trainer
from bonlib.training.on_policy import Judged
from bonlib.training.policy import Anchor, Policy
from bonlib.training.settings import Ppo, TrainSettings

MODEL, N = Outcomes([0.25, 0.1, 0.3, 0.15, 0.2], [3.0, 0.0, 1.0, 2.0, 4.0]), 4
TIED = Outcomes([0.25, 0.1, 0.3, 0.15, 0.2], [3.0, 0.0, 3.0, 2.0, 0.0])


def tensor(values):
    return torch.tensor(np.asarray(values), dtype=torch.float64)


def tables(model):
    with np.errstate(divide="ignore"):
        return tensor(model.log_probs), tensor(model.log_cdf), tensor(np.log(model.strict_cdf))


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


TWO = tensor([-1.0, -2.0])
PAIR = tensor([[0.0, 1.0], [2.0, 3.0]])


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("n is 1;", lambda: bond_return(TWO, TWO, TWO, n=1)),
        ("n is nan", lambda: bond_return(TWO, TWO, TWO, n=math.nan)),
        ("log_cdf holds 2", lambda: bond_return(TWO, TWO, -TWO, n=2)),
        ("log_strict_cdf is above", lambda: bond_return(TWO, TWO, TWO, n=2, log_strict_cdf=TWO + 0.5)),
        ("anchor_rewards has shape", lambda: jbond_reward(TWO, TWO)),
        ("rewards holds", lambda: jbond_reward(TWO / 0, PAIR)),
        ("log_probs holds 2", lambda: jbond_return(-TWO, TWO, TWO, PAIR)),
        ("jeffreys_weight is 1.5", lambda: jeffreys_loss(TWO, TWO, TWO, n=2, jeffreys_weight=1.5)),
        ("best has shape", lambda: jeffreys_loss(TWO[:1], TWO, TWO, n=2, jeffreys_weight=0.5)),
        ("anchor_rate is 2", lambda: JBond(anchor_rate=2)),
        ("anchor_every is 0", lambda: Bond(2, anchor_every=0)),
        ("regulariser is nan", lambda: JBond(regulariser=math.nan)),
        ("n is 2.5", lambda: Bond(2.5)),
        ("anchor_draws is 3", lambda: iterative_bond(10, n=4, anchor_draws=3)),
        ("cdf is None", lambda: Bond(2).returns(Judged(["p"] * 2, ["a", "b"], TWO, TWO, TWO), None)),
        ("anchor_rewards; J-BOND", lambda: JBond().returns(Judged(["p"] * 2, ["a", "b"], TWO, TWO, TWO), None)),
        ("easing is on", lambda: Bond(2).eased(0.5)),
    ],
)
def test_bad_arguments_are_named(message, call):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_average_of_the_weights_after_k_steps_is_its_closed_form():
    weight, rate, steps = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64)), 0.1, 20
    start = weight.detach().clone()
    anchor, path = Anchor([weight]), torch.randn(steps, 3, dtype=torch.float64, generator=torch.Generator())
    for point in path:
        weight.data = point.clone()
        anchor.move(rate)
    shares = rate * (1 - rate) ** torch.arange(steps - 1, -1, -1, dtype=torch.float64)
    (held,) = anchor.buffers()
    torch.testing.assert_close(held, (1 - rate) ** steps * start + (shares[:, None] * path).sum(0))
    with anchor.in_place():
        assert not torch.equal(weight, path[-1])
    assert torch.equal(weight, path[-1])
    anchor.move(1.0)
    assert torch.equal(held, path[-1])


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


# -- in the trainer ----------------------------------------------------------------------------------------------------


pytestmark = pytest.mark.usefixtures("one_accelerator")


def begin(model, data, folder, method, **changes):
    settings = TrainSettings(steps=6, prompts=4, group=2, warmup=1, measure_every=6, checkpoint_every=3)
    return trainer.TrainingRun(model, method, data, replace(settings, **changes), folder, None, False)


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_the_anchor_is_one_copy_of_what_is_trained(lora_rank, language_model, training_data, tmp_path):
    run = begin(language_model, training_data, tmp_path, JBond(), lora_rank=lora_rank)
    copies, learned = list(run.policy.anchor.buffers()), run.learned
    assert [copy.shape for copy in copies] == [weight.shape for weight in learned]
    assert all(torch.equal(copy, weight) for copy, weight in zip(copies, learned, strict=True))
    if lora_rank:
        assert sum(map(torch.numel, copies)) < sum(map(torch.numel, language_model.model.parameters())) / 5


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
    assert len(shard.batch.responses) == 2 * len(shard.prompts)  # own responses and then as many best ones


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


def test_the_loss_is_divergence_and_regulariser(language_model, training_data, tmp_path):
    method = Bond(4, jeffreys_weight=0.25, regulariser=0.7)
    learner = begin(language_model, training_data, tmp_path, method).learner
    shard = learner.shard(0, 0)
    learner.weigh([shard])
    tokens = -torch.rand(shard.batch.responses.shape) * shard.batch.response_mask
    own, best = tokens.sum(1)[:8], tokens.sum(1)[8:]
    shard.drifts = torch.linspace(-1, 1, 8)
    want = -0.75 * best - 0.25 * 3 * shard.advantages * own + 0.7 * shard.drifts * own
    torch.testing.assert_close(learner.loss(shard, tokens, None), want.mean())
    stored = {
        (p, tuple(r[r >= 0]))
        for p, d in zip(TOY_PROMPTS, training_data.draws.responses, strict=True)
        for r in d.token_ids
    }
    for prompt, row, mask in zip(shard.prompts, shard.batch.responses[8:], shard.batch.response_mask[8:], strict=True):
        assert (prompt, tuple(row[mask.bool()].tolist())) in stored


def test_a_run_on_other_draws_is_another_run(language_model, training_data, tmp_path):
    def about(method, data):
        return begin(language_model, data, tmp_path, method)._about()["learned_from"]

    other = replace(training_data, rewards=training_data.rewards[:, ::-1].copy())
    assert about(Bond(4), training_data) != about(Bond(4), other)
    assert about(JBond(), training_data) == about(JBond(), replace(other, cdf=None))


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


def test_what_does_not_fit_is_refused(language_model, training_data, tmp_path):
    with pytest.raises(ValueError, match="draw more"):
        begin(language_model, training_data, tmp_path, Bond(65))
    with pytest.raises(ValueError, match="trained by REINFORCE"):
        begin(language_model, training_data, tmp_path, JBond(), ppo=Ppo())
    with pytest.raises(ValueError, match="easing is on"):
        begin(language_model, training_data, tmp_path, JBond(), easing=0.5)
    with pytest.raises(ValueError, match="cdf is None"):
        begin(language_model, replace(training_data, cdf=None), tmp_path, Bond(4))


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


def test_one_run_with_a_copied_anchor_arrives_at_best_of_8():
    prompts = EnumeratedPrompts(exact_runs.reference(), PROMPTS[:1], exact_runs.REWARDS["letters"]())
    policy, method = TabularPolicy(prompts.ref_log_probs), Bond(**dict(exact_runs.ITERATED))
    train_exactly(policy, Distillation(prompts, method, policy), steps=300, learning_rate=0.1, decay=False)
    assert prompts.judge(policy(), 8).reverse_kl[0] < 0.005


def test_the_regulariser_holds_and_its_printed_sign_drives_away():
    prompts = EnumeratedPrompts(exact_runs.reference(), PROMPTS[:1], exact_runs.REWARDS["letters"]())
    spent = []
    for gamma in (-0.3, 0.0, 1.0):
        policy = TabularPolicy(prompts.ref_log_probs)
        method = JBond(anchor_rate=0.0, regulariser=gamma)
        train_exactly(policy, Distillation(prompts, method, policy), steps=60, learning_rate=0.1)
        spent.append(prompts.judge(policy(), 2).kl[0])
    assert spent[0] > 1.1 * spent[1] > 1.3 * spent[2]


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
