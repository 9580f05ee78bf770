"""Policy gradients against full enumeration, plain loops and their definitions."""

from itertools import product

import numpy as np
import pytest
import torch
from five_responses import ONE, TWO, tensor
from hypothesis import given
from hypothesis import strategies as st

from bonlib.training.gradients import gae, leave_one_out, ppo_loss, ppo_value_loss, reinforce_loss, standing

LOG_PROB = st.floats(-50, 0)


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


def test_standing_counts_the_better_and_the_equal_of_a_group():
    better, tied = standing(tensor([0.3, 0.1 + 0.2, 1.0, 2.0, -1.0, 2.0]), group=3)
    assert better.tolist() == [[1, 1, 0], [0, 2, 0]]
    assert tied.tolist() == [[2, 2, 1], [2, 1, 2]]


def test_advantages_targets_and_old_policies_are_constants():
    x = torch.full((2,), -1.0, requires_grad=True)
    still, table = torch.full((2,), -1.0), torch.full((1, 2), -1.0, requires_grad=True)
    losses_of_constants = [
        reinforce_loss(still, x), ppo_loss(still, x, x, clip=0.2), ppo_value_loss(still, x, x, clip=0.2),
        gae(table, table, torch.tensor([2])), leave_one_out(x, group=2),
    ]  # fmt: skip
    assert not any(loss.requires_grad for loss in losses_of_constants)


WRONG = {
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
    r"group is 1; .* divides the 2 rewards": lambda: standing(TWO, group=1),
    r"rewards holds a number": lambda: standing(TWO * torch.inf, group=2),
}


@pytest.mark.parametrize("message", WRONG)
def test_bad_arguments_are_named(message):
    with pytest.raises(ValueError, match=message):
        WRONG[message]()
