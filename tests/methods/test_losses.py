"""Returns and losses against the exact part, many digits, full enumeration, plain loops and TRL."""

from collections import defaultdict
from itertools import product
from types import SimpleNamespace

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bonlib.exact import Outcomes, kl_divergence
from bonlib.methods.bon_sft import nll
from bonlib.methods.bonbon import bonbon_loss, bonbon_target
from bonlib.methods.dpo import dpo_loss, ipo_loss
from bonlib.methods.kl_rl import kl_rl_return
from bonlib.methods.vbon import vbon_return
from bonlib.methods.vbon_bound import vbon_bound_return, vbon_loose_bound_return
from bonlib.training.gradients import gae, leave_one_out, ppo_loss, ppo_value_loss, reinforce_loss

MODEL, N = Outcomes([0.25, 0.1, 0.3, 0.15, 0.2], [3.0, 0.0, 1.0, 2.0, 4.0]), 4


def tensor(values):
    with np.errstate(divide="ignore"):
        return torch.tensor(np.asarray(values), dtype=torch.float64)


LOG_REF, LOG_CDF = tensor(MODEL.log_probs), tensor(MODEL.log_cdf)
with np.errstate(divide="ignore"):
    LOG_STRICT = tensor(np.log(MODEL.strict_cdf))


def loose_optimum():
    weights = MODEL.probs ** (N * (N + 1) / 2) * MODEL.cdf ** (N * (N - 1) / 2)
    return weights / weights.sum()


CASES = {
    "vbon": (lambda q: vbon_return(q, LOG_REF, LOG_STRICT, n=N), MODEL.best_of(N)),
    "bound": (lambda q: vbon_bound_return(q, LOG_REF, LOG_CDF, n=N), MODEL.tilt(1 / (N - 1), "log_cdf")),
    "loose": (lambda q: vbon_loose_bound_return(q, LOG_REF, LOG_CDF, n=N), loose_optimum()),
    "kl_rl": (lambda q: kl_rl_return(q, LOG_REF, tensor(MODEL.rewards), beta=0.7), MODEL.tilt(0.7)),
}


@pytest.mark.parametrize("name", CASES)
def test_at_the_stated_optimum_every_response_has_the_same_return(name):
    returns, optimum = CASES[name]
    values = returns(tensor(np.log(optimum)))
    assert values.shape == (5,)
    assert float(values.max() - values.min()) < 1e-9


@pytest.mark.parametrize("name", CASES)
def test_no_other_policy_has_a_larger_expected_return(name):
    returns, optimum = CASES[name]
    rng = np.random.default_rng(0)
    best = optimum @ returns(tensor(np.log(optimum))).numpy()
    for _ in range(100):
        rival = optimum * np.exp(rng.normal(scale=0.3, size=5))
        rival /= rival.sum()
        assert rival @ returns(tensor(np.log(rival))).numpy() <= best + 1e-12


def test_the_mean_vbon_return_is_minus_the_kl_to_best_of_n():
    policy = np.random.default_rng(0).dirichlet(np.ones(5))
    mean = policy @ CASES["vbon"][0](tensor(np.log(policy))).numpy()
    assert mean == pytest.approx(-kl_divergence(policy, MODEL.best_of(N)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("log_ref", [-0.1, -5.0, -30.0, -100.0, -1000.0])
@pytest.mark.parametrize("log_strict", [-1e-6, -0.7, -20.0, -300.0, -np.inf])
@pytest.mark.parametrize("n", [1, 2, 7.5, 1000])
def test_the_vbon_return_is_stable_where_probabilities_are_tiny(log_ref, log_strict, n, dtype):
    log_ref, log_strict = (float(torch.tensor(value, dtype=dtype)) for value in (log_ref, log_strict))
    with mpmath.workdps(1000):
        strict, ref = mpmath.exp(log_strict), mpmath.exp(log_ref)
        want = mpmath.log((strict + ref) ** n - strict**n)
    inputs = [torch.tensor([value], dtype=dtype) for value in (0.0, log_ref, log_strict)]
    got = vbon_return(*inputs, n=n)
    assert got.dtype == dtype
    assert float(got) == pytest.approx(float(want), rel=1e-5 if dtype == torch.float32 else 1e-12, abs=1e-5)


def test_the_edges_have_their_limits():
    nothing, one = torch.tensor([-torch.inf]), torch.zeros(1)
    assert vbon_return(one, nothing, nothing, n=3).item() == -np.inf
    assert vbon_return(one, one - 2, nothing, n=3).item() == -6
    for function in (vbon_bound_return, vbon_loose_bound_return):
        assert function(one - 1, one - 1, nothing, n=1).item() == 0


def test_bad_arguments_are_named():
    two, three = torch.zeros(2) - 1, torch.zeros(3) - 1
    with pytest.raises(ValueError, match=r"log_cdf has shape \(3,\).*as log_probs has, \(2,\)"):
        vbon_bound_return(two, two, three, n=2)
    with pytest.raises(ValueError, match=r"log_probs has shape \(2, 1\)"):
        vbon_return(two[:, None], two, two, n=2)
    with pytest.raises(ValueError, match="rewards has shape"):
        kl_rl_return(two, two, three, beta=0.1)
    with pytest.raises(ValueError, match="ref_log_probs holds 1"):
        vbon_loose_bound_return(two, -two, two, n=2)
    with pytest.raises(ValueError, match="rewards holds NaN"):
        kl_rl_return(two, two, two * torch.nan, beta=0.1)
    for n in (0.5, np.nan, np.inf):
        with pytest.raises(ValueError, match="n is"):
            vbon_return(two, two, two, n=n)
    for beta in (-1, np.inf, np.nan):
        with pytest.raises(ValueError, match="beta is"):
            kl_rl_return(two, two, two, beta=beta)
    with pytest.raises(ValueError, match="rewards holds a number that is not finite"):
        kl_rl_return(two, two, two * torch.inf, beta=1)


def test_nll_and_the_forward_divergence_have_best_of_n_as_optimum():
    target, logits = tensor(MODEL.best_of(N)), tensor(MODEL.log_best_of(N)).requires_grad_()
    (target * nll(logits.log_softmax(0))).sum().backward()
    torch.testing.assert_close(logits.grad, torch.zeros(5, dtype=torch.float64), atol=1e-12, rtol=0)


def minus_kl(log_q, log_target):
    return -(log_q.exp() * (log_q - log_target)).sum()


OBJECTIVES = {
    "vbon": lambda q: minus_kl(q, tensor(MODEL.log_best_of(N))),
    "bound": lambda q: (N - 1) * (q.exp() * LOG_CDF).sum() + minus_kl(q, LOG_REF),
    "kl_rl": lambda q: (q.exp() * tensor(MODEL.rewards)).sum() + 0.7 * minus_kl(q, LOG_REF),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_reinforce_descends_the_exact_gradient_of_each_objective(name):
    logits = tensor(np.random.default_rng(0).normal(size=5)).requires_grad_()
    (exact,) = torch.autograd.grad(-OBJECTIVES[name](logits.log_softmax(0)), logits)
    log_q = logits.log_softmax(0)
    mean_loss = (log_q.detach().exp() * reinforce_loss(log_q, CASES[name][0](log_q))).sum()
    (enumerated,) = torch.autograd.grad(mean_loss, logits)
    torch.testing.assert_close(enumerated, exact)


def trl_loss(kind, pair, beta):
    """TRL's loss of one pair of one-token responses; only the pass through a model is replaced."""
    from trl import DPOTrainer

    one = SimpleNamespace(device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x)
    trainer = SimpleNamespace(
        accelerator=one, model=SimpleNamespace(training=False), beta=beta, loss_types=[kind], loss_weights=[1.0],
        f_divergence_type="reverse_kl", precompute_ref_logps=True, ld_alpha=None, use_weighting=False,
        aux_loss_enabled=False, _total_train_tokens=0, _metrics={"eval": defaultdict(list)},
    )  # fmt: skip
    chosen, rejected, ref_chosen, ref_rejected = pair
    token = torch.stack([chosen, rejected])[:, None]
    outputs = SimpleNamespace(log_probs=token, entropy=0 * token, mean_logits=0 * token, is_top1=token > 0)
    inputs = {
        "input_ids": torch.zeros(2, 2, dtype=torch.long), "completion_mask": torch.tensor([[0, 1], [0, 1]]),
        "ref_chosen_logps": ref_chosen[None], "ref_rejected_logps": ref_rejected[None],
    }  # fmt: skip
    return DPOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, False)


@pytest.mark.parametrize(("kind", "loss"), [("sigmoid", dpo_loss), ("ipo", ipo_loss)])
def test_dpo_and_ipo_agree_with_trl_in_value_and_gradient(kind, loss):
    torch.manual_seed(0)
    pairs = -torch.rand(4, 20, dtype=torch.float64) * 30
    for beta in (0.01, 0.1, 1.0, 5.0):
        mine, theirs = pairs.clone().requires_grad_(), pairs.clone().requires_grad_()
        got = loss(*mine, beta=beta)
        want = torch.stack([trl_loss(kind, pair, beta) for pair in theirs.T])
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)
        got.sum().backward()
        want.sum().backward()
        torch.testing.assert_close(mine.grad[:2], theirs.grad[:2], rtol=1e-6, atol=1e-6)


LOG_PROB = st.floats(-50, 0)
PAIR = st.tuples(LOG_PROB, LOG_PROB, LOG_PROB, LOG_PROB)


@given(PAIR, st.floats(0.01, 5), st.floats(-20, 0))
def test_preference_losses_see_the_margin_only(pair, beta, shift):
    chosen, rejected, ref_chosen, ref_rejected = (tensor([x]) for x in pair)
    for loss in (dpo_loss, ipo_loss):
        moved = loss(chosen + shift, rejected, ref_chosen + shift, ref_rejected, beta=beta)
        torch.testing.assert_close(
            moved, loss(chosen, rejected, ref_chosen, ref_rejected, beta=beta), rtol=1e-6, atol=1e-9
        )
    won = dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta=beta)
    lost = dpo_loss(rejected, chosen, ref_rejected, ref_chosen, beta=beta)
    assert (-won).exp().item() + (-lost).exp().item() == pytest.approx(1)
    assert dpo_loss(chosen, rejected, chosen, rejected, beta=beta).item() == pytest.approx(np.log(2))


def test_the_optimum_of_dpo_is_the_tilt_by_the_rewards_that_made_the_preferences():
    beta, logits = 0.7, tensor(np.log(MODEL.tilt(0.7))).requires_grad_()
    log_q, total = logits.log_softmax(0), 0
    for i, j in product(range(5), repeat=2):
        wins = 1 / (1 + np.exp(MODEL.rewards[j] - MODEL.rewards[i]))
        pair = (log_q[i : i + 1], log_q[j : j + 1], LOG_REF[i : i + 1], LOG_REF[j : j + 1])
        total = total + MODEL.probs[i] * MODEL.probs[j] * wins * dpo_loss(*pair, beta=beta)
    total.backward()
    torch.testing.assert_close(logits.grad, torch.zeros(5, dtype=torch.float64), atol=1e-12, rtol=0)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 50])
def test_bonbon_target_is_the_exact_mean_over_best_and_worst(n):
    def density(u):
        return n * u ** (n - 1)

    best = mpmath.quad(lambda u: density(u) * mpmath.log(density(u)), [0, 0.5, 1])
    worst = mpmath.quad(lambda u: density(1 - u) * mpmath.log(density(u)), [0, 0.5, 1])
    assert bonbon_target(n) == pytest.approx(float(best - worst), abs=1e-9)


def best_and_worst(model, n):
    """How likely each pair of outcomes is the best and the worst of n draws, shape (K, K)."""
    table = np.zeros((len(model), len(model)))
    for draws in product(range(len(model)), repeat=n):
        best, worst = max(draws, key=model.rewards.__getitem__), min(draws, key=model.rewards.__getitem__)
        table[best, worst] += np.prod(model.probs[list(draws)])
    return tensor(table)


def mean_bonbon(log_q, n, sft_weight):
    table = best_and_worst(MODEL, n)
    best, worst = (index.flatten() for index in torch.meshgrid(torch.arange(5), torch.arange(5), indexing="ij"))
    loss = bonbon_loss(log_q[best], log_q[worst], LOG_REF[best], LOG_REF[worst], n=n, sft_weight=sft_weight)
    return (table.flatten() * loss).sum()


@pytest.mark.parametrize(
    ("n", "sft_weight", "optimum"),
    [(2, 1, MODEL.best_of(2)), (4, 1, MODEL.best_of(4)), (2, 0, MODEL.tilt(0.5, "calibrated"))],
)
def test_the_optima_of_bonbons_two_terms(n, sft_weight, optimum):
    logits = tensor(np.log(optimum)).requires_grad_()
    mean_bonbon(logits.log_softmax(0), n, sft_weight).backward()
    torch.testing.assert_close(logits.grad, torch.zeros(5, dtype=torch.float64), atol=1e-12, rtol=0)


def test_best_of_n_is_not_the_optimum_of_bonbons_square():
    logits = tensor(MODEL.log_best_of(4)).requires_grad_()
    mean_bonbon(logits.log_softmax(0), 4, 0).backward()
    assert logits.grad.abs().max() > 0.01


@given(PAIR, st.integers(1, 30), st.floats(0, 1))
def test_bonbon_is_a_weighted_mean_of_likelihood_and_ipo(pair, n, weight):
    tensors = [tensor([x]) for x in pair]
    target = bonbon_target(n)
    square = ipo_loss(*tensors, beta=1 / (2 * target)) if n > 1 else bonbon_loss(*tensors, n=1, sft_weight=0)
    want = weight * nll(tensors[0]) + (1 - weight) * square
    torch.testing.assert_close(bonbon_loss(*tensors, n=n, sft_weight=weight), want)


def test_ppo_starts_with_the_gradient_of_reinforce():
    torch.manual_seed(0)
    log_probs, advantages = (-torch.rand(8)).requires_grad_(), torch.randn(8)
    (mine,) = torch.autograd.grad(ppo_loss(log_probs, log_probs, advantages, clip=0.2).sum(), log_probs)
    (plain,) = torch.autograd.grad(reinforce_loss(log_probs, advantages).sum(), log_probs)
    torch.testing.assert_close(mine, plain)


@given(LOG_PROB, LOG_PROB, st.floats(-5, 5), st.floats(0.05, 0.9))
def test_ppo_is_the_clipped_surrogate(new, old, advantage, clip):
    ratio = np.exp(new - old)
    want = -min(ratio * advantage, np.clip(ratio, 1 - clip, 1 + clip) * advantage)
    assert ppo_loss(tensor([new]), tensor([old]), tensor([advantage]), clip=clip).item() == pytest.approx(want)


@pytest.mark.parametrize(
    ("log_ratio", "advantage", "moves"),
    [
        (0.5, 1.0, False),
        (-0.5, 1.0, True),
        (0.5, -1.0, True),
        (-0.5, -1.0, False),
        (90.0, 1.0, False),
        (90.0, 0.0, False),
    ],
)
def test_ppo_has_no_gradient_beyond_its_clip(log_ratio, advantage, moves):
    log_probs = torch.tensor([-1.0], requires_grad=True)
    ppo_loss(log_probs, torch.tensor([-1.0 - log_ratio]), torch.tensor([advantage]), clip=0.2).backward()
    assert bool(log_probs.grad.isfinite().all())
    assert bool(log_probs.grad.abs() > 0.1) is moves


@given(st.tuples(*[st.floats(-3, 3)] * 3), st.floats(0.05, 2))
def test_ppo_value_is_the_larger_of_two_squares(numbers, clip):
    value, old, target = numbers
    want = max((value - target) ** 2, (np.clip(value, old - clip, old + clip) - target) ** 2) / 2
    got = ppo_value_loss(*(tensor([x]) for x in numbers), clip=clip)
    assert got.item() == pytest.approx(want, abs=1e-12)


def episode(batch, steps, seed):
    rng = np.random.default_rng(seed)
    rewards, values = rng.normal(size=(2, batch, steps))
    return tensor(rewards), tensor(values), torch.tensor(rng.integers(0, steps + 1, size=batch))


@given(st.integers(1, 4), st.integers(1, 6), st.integers(0, 99), st.floats(0, 1), st.floats(0, 1))
def test_gae_is_the_double_sum_of_its_definition(batch, steps, seed, discount, trace):
    rewards, values, lengths = episode(batch, steps, seed)
    want = np.zeros((batch, steps))
    for i in range(batch):
        end = int(lengths[i])
        for t in range(end):
            for later in range(t, end):
                after = values[i, later + 1] if later + 1 < end else 0.0
                error = rewards[i, later] + discount * after - values[i, later]
                want[i, t] += (discount * trace) ** (later - t) * error
        rewards[i, end:], values[i, end:] = torch.nan, torch.inf  # padding is ignored whatever it holds
    got = gae(rewards, values, lengths, discount=discount, trace=trace)
    np.testing.assert_allclose(got.numpy(), want, atol=1e-12)


def test_gae_with_trace_one_is_the_return_to_come_less_the_value():
    rewards, values, _ = episode(3, 6, 0)
    got = gae(rewards, values, torch.full((3,), 6), trace=1.0)
    torch.testing.assert_close(got, rewards.flip(1).cumsum(1).flip(1) - values)
    exact = gae(rewards, rewards.flip(1).cumsum(1).flip(1), torch.full((3,), 6))
    torch.testing.assert_close(exact, torch.zeros_like(exact))


@pytest.mark.parametrize("group", [2, 3])
def test_leave_one_out_keeps_the_policy_gradient(group):
    logits = tensor([0.3, -0.5, 0.9]).requires_grad_()
    rewards, log_q = tensor([1.0, -2.0, 5.0]), logits.log_softmax(0)
    (exact,) = torch.autograd.grad(-(log_q.exp() * rewards).sum(), logits, retain_graph=True)
    mean_loss = 0
    for drawn in map(list, product(range(3), repeat=group)):
        loss = reinforce_loss(log_q[drawn], leave_one_out(rewards[drawn], group=group)).mean()
        mean_loss = mean_loss + log_q[drawn].sum().exp().detach() * loss
    (enumerated,) = torch.autograd.grad(mean_loss, logits)
    torch.testing.assert_close(enumerated, exact)


@given(st.integers(2, 5), st.lists(st.lists(st.floats(-10, 10), min_size=5, max_size=5), min_size=1, max_size=4))
def test_leave_one_out_subtracts_the_mean_of_the_others(group, table):
    returns = tensor([row[:group] for row in table])
    want = [[x - np.mean(np.delete(row, i)) for i, x in enumerate(row)] for row in returns.numpy()]
    got = leave_one_out(returns.flatten(), group=group)
    np.testing.assert_allclose(got.numpy(), np.ravel(want), atol=1e-12)
    torch.testing.assert_close(leave_one_out(returns.flatten() + 3, group=group), got, rtol=0, atol=1e-9)


def test_advantages_targets_and_old_policies_are_constants():
    x = torch.full((2,), -1.0, requires_grad=True)
    still, table = torch.full((2,), -1.0), torch.full((1, 2), -1.0, requires_grad=True)
    losses_of_constants = [
        reinforce_loss(still, x), ppo_loss(still, x, x, clip=0.2), ppo_value_loss(still, x, x, clip=0.2),
        gae(table, table, torch.tensor([2])), leave_one_out(x, group=2),
    ]  # fmt: skip
    assert not any(loss.requires_grad for loss in losses_of_constants)


ONE, TWO = -torch.ones(1), -torch.ones(2)
WRONG = {
    r"log_probs holds 1; a log-probability": lambda: nll(-ONE),
    r"log_probs has shape \(1, 1\)": lambda: nll(ONE[None]),
    r"rejected has shape \(2,\).*as chosen has": lambda: dpo_loss(ONE, TWO, ONE, ONE, beta=1),
    r"ref_rejected holds a number that is not finite": lambda: ipo_loss(ONE, ONE, ONE, ONE * torch.inf, beta=1),
    r"beta is 0; the KL coefficient": lambda: dpo_loss(ONE, ONE, ONE, ONE, beta=0),
    r"beta is nan": lambda: ipo_loss(ONE, ONE, ONE, ONE, beta=float("nan")),
    r"worst has shape": lambda: bonbon_loss(ONE, TWO, ONE, ONE, n=2, sft_weight=0.5),
    r"sft_weight is 1.5": lambda: bonbon_loss(ONE, ONE, ONE, ONE, n=2, sft_weight=1.5),
    r"n is 0; .* whole number": lambda: bonbon_loss(ONE, ONE, ONE, ONE, n=0, sft_weight=0.5),
    r"n is 2.5": lambda: bonbon_target(2.5),
    r"n is nan": lambda: bonbon_target(float("nan")),
    r"advantages has shape \(2,\)": lambda: reinforce_loss(ONE, TWO),
    r"advantages holds a number that is not": lambda: reinforce_loss(ONE, ONE * torch.inf),
    r"old_log_probs has shape": lambda: ppo_loss(ONE, TWO, ONE, clip=0.2),
    r"advantages holds NaN": lambda: ppo_loss(ONE, ONE, ONE * torch.nan, clip=0.2),
    r"clip is 1; the range of the ratio": lambda: ppo_loss(ONE, ONE, ONE, clip=1),
    r"clip is 0; the range of a value": lambda: ppo_value_loss(ONE, ONE, ONE, clip=0),
    r"targets has shape": lambda: ppo_value_loss(ONE, ONE, TWO, clip=1),
    r"they must be \(B, T\), \(B, T\) and \(B,\)": lambda: gae(ONE, ONE, torch.tensor([1])),
    r"lengths holds \[3\]; .* from 0 to 2": lambda: gae(TWO[None], TWO[None], torch.tensor([3])),
    r"lengths holds \[1.0\]": lambda: gae(TWO[None], TWO[None], torch.tensor([1.0])),
    r"discount is 2": lambda: gae(TWO[None], TWO[None], torch.tensor([2]), discount=2),
    r"trace is -1": lambda: gae(TWO[None], TWO[None], torch.tensor([2]), trace=-1),
    r"values holds a number": lambda: gae(TWO[None], TWO[None] * torch.inf, torch.tensor([2])),
    r"group is 1; .* divides the 2 returns": lambda: leave_one_out(TWO, group=1),
    r"group is 3": lambda: leave_one_out(TWO, group=3),
    r"returns holds a number": lambda: leave_one_out(TWO * torch.inf, group=2),
}


@pytest.mark.parametrize("message", WRONG)
def test_bad_arguments_of_losses_are_named(message):
    with pytest.raises(ValueError, match=message):
        WRONG[message]()
