"""max@k's estimators against worked numbers, enumeration of all groups and the exact gradient."""

from itertools import combinations

import pytest
import torch
from five_responses import LOG_REF, MODEL, TWO, all_tuples, exact_gradient, mean_gradient, minus_kl, tensor
from hypothesis import given
from hypothesis import strategies as st

from bonlib.exact import Outcomes
from bonlib.inference_aware import best_of_slope
from bonlib.methods.max_at_k import MaxAtK, max_at_k, max_at_k_advantages, max_at_k_weights
from bonlib.training.gradients import leave_one_out
from bonlib.training.on_policy import Judged

W = Outcomes([0.3, 0.25, 0.2, 0.15, 0.1], [0, 1, 1, 2, 3])
FIVE = tensor([[0.2, 1.0, 0.5, 0.5, 0.0]])
ESTIMATORS = ["sum", "loo", "loo-1"]
SIZES = [(k, group, estimator) for group in (2, 3, 4) for k in range(1, group + 1) for estimator in ESTIMATORS
         if group > k or estimator != "loo"]  # fmt: skip


def test_the_worked_example():
    assert float(max_at_k(FIVE, k=3)) == pytest.approx(0.8, abs=1e-15)
    wanted = {
        "sum": [0.45, 0.6, 0.45, 0.45, 0.45],
        "loo": [-0.20625, 0.225, -0.20625, -0.20625, -0.20625],
        "loo-1": [0, 0.33, 0.03, 0.03, 0],
    }
    for estimator, want in wanted.items():
        got = max_at_k_weights(FIVE, k=3, estimator=estimator)
        torch.testing.assert_close(got, tensor([want]), atol=1e-15, rtol=0)


@given(st.lists(st.floats(-5, 5), min_size=4, max_size=6), st.integers(1, 6), st.randoms(use_true_random=False))
def test_weights_are_the_means_over_all_choices_that_they_stand_for(rewards, k, random):
    random.shuffle(rewards)
    size = len(rewards)
    k = min(k, size)

    def mean(numbers, k):
        chosen = list(combinations(numbers, k)) if k else []
        return sum(map(max, chosen)) / len(chosen) if chosen else 0.0

    table = tensor([rewards])
    others = [rewards[:i] + rewards[i + 1 :] for i in range(size)]
    own = [
        sum(max(rewards[i] for i in chosen) for chosen in combinations(range(size), k) if here in chosen)
        / len(list(combinations(range(size), k)))
        for here in range(size)
    ]
    wanted = {
        "sum": own,
        "loo": [s - k / (size - 1) * mean(rest, k) for s, rest in zip(own, others, strict=True)],
        "loo-1": [s - k / size * mean(rest, k - 1) for s, rest in zip(own, others, strict=True)],
    }
    assert float(max_at_k(table, k=k)) == pytest.approx(mean(rewards, k), abs=1e-12)
    for estimator, want in wanted.items():
        if estimator != "loo" or k < size:
            got = max_at_k_weights(table, k=k, estimator=estimator)
            torch.testing.assert_close(got, tensor([want]), atol=1e-12, rtol=0)


def test_groups_of_right_and_wrong_answers_and_of_k():
    right = tensor([[1.0, 0, 0, 1, 0, 0]])
    torch.testing.assert_close(max_at_k_weights(right, k=3), right * 6 / 20)  # C(4, 2) / C(6, 3)
    torch.testing.assert_close(max_at_k_weights(FIVE, k=5), tensor([[0, 0.5, 0, 0, 0]]))  # what the best one adds
    assert bool((max_at_k_weights(torch.randn(50, 8), k=4) >= -1e-6).all())


def weighted(estimator, k, group, model=W, then=lambda weights: weights):
    """The weights of a group as advantages, or what something makes of them."""
    rewards = tensor(model.rewards)
    return lambda mine, ref, drawn: (
        group * then(max_at_k_weights(rewards[drawn].view(-1, group), k=k, estimator=estimator)).view(-1)
    )


def exact(k, model=W):
    """The gradient of the mean of the best of k, in logits."""
    if k == 0:
        return torch.zeros(5, dtype=torch.float64)
    slope = best_of_slope(model, model.probs, k)
    return tensor(model.probs * (slope - model.probs @ slope))


@pytest.mark.parametrize(("k", "group", "estimator"), SIZES)
def test_every_estimator_has_the_exact_mean(k, group, estimator):
    got = mean_gradient(weighted(estimator, k, group), tensor(W.log_probs), group)
    torch.testing.assert_close(got, exact(k), atol=1e-14, rtol=0)


@pytest.mark.parametrize(("k", "group"), [(1, 3), (2, 3), (3, 3), (2, 4), (4, 4)])
def test_what_a_trainer_does_that_centres_again(k, group):
    def less_mean(weights):
        return weights - weights.mean(1, keepdim=True)

    def less_others(weights):
        return leave_one_out(weights.flatten(), group=group)

    kept = 1 - k / group
    for estimator, then, want in (
        ("sum", less_mean, kept * exact(k)),
        ("sum", less_others, (group - k) / (group - 1) * exact(k)),
        ("loo-1", less_mean, kept * exact(k) + (1 - kept) * exact(k - 1)),
    ):
        got = mean_gradient(weighted(estimator, k, group, then=then), tensor(W.log_probs), group)
        torch.testing.assert_close(got, want, atol=1e-14, rtol=0)


def test_the_spread_of_the_estimators():
    log_q, group = tensor(W.log_probs), 6
    drawn, chances = all_tuples(5, group, log_q)
    scores = (torch.eye(5, dtype=torch.float64) - log_q.exp())[drawn].view(-1, group, 5)
    rewards = tensor(W.rewards)[drawn].view(-1, group)

    def spread(weights):
        gradients = (weights[:, :, None] * scores).sum(1)
        return float(chances @ (gradients - chances @ gradients).square().sum(1))

    plain = max_at_k_weights(rewards, k=2, estimator="sum")
    assert spread(plain) == pytest.approx(1.395, abs=5e-4)
    assert spread(max_at_k_weights(rewards, k=2, estimator="loo")) == pytest.approx(0.360, abs=5e-4)
    assert spread(max_at_k_weights(rewards, k=2)) == pytest.approx(0.319, abs=5e-4)
    assert spread((plain - plain.mean(1, keepdim=True)) / (1 - 2 / 6)) == pytest.approx(0.252, abs=5e-4)


@pytest.mark.parametrize("estimator", ["sum", "loo-1"])
def test_the_kl_stands_outside_of_the_maximum(estimator):
    logits, rewards = tensor([0.3, -0.5, 0.9, 0.1, -1.2]), tensor(MODEL.rewards)
    got = mean_gradient(
        lambda mine, ref, drawn: max_at_k_advantages(
            mine, ref, rewards[drawn], group=3, beta=0.7, k=2, estimator=estimator
        ),
        LOG_REF, 3, logits,
    )  # fmt: skip

    def objective(log_q):
        chances = log_q.exp()[:, None] * log_q.exp()
        best = torch.maximum(rewards[:, None], rewards)
        return (chances * best).sum() + 0.7 * minus_kl(log_q, LOG_REF)

    torch.testing.assert_close(got, exact_gradient(objective, logits))


def test_the_mean_return_is_the_objective():
    judged = Judged(
        ["p"] * 3, ["a"] * 3, tensor([-3.0, -2.0, -1.0]), tensor([-2.0, -4.0, -1.0]), tensor([1.0, 4.0, 2.0]), group=3
    )
    method = MaxAtK(0.5, k=2)
    assert method.returns(judged, None).tolist() == pytest.approx([10 / 3 + 0.5, 10 / 3 - 1, 10 / 3])
    want = max_at_k_advantages(*judged[2:5], group=3, beta=0.5, k=2, estimator="loo-1")
    assert torch.equal(method.advantages(judged, method.returns(judged, None)), want)
    assert method.eased(0.5) == MaxAtK(1.0, k=2)
    assert [MaxAtK(1, k=3).needs_group, MaxAtK(1, k=3, estimator="loo").needs_group] == [3, 4]


WRONG = {
    r"k is 6; with groups of 5": lambda: max_at_k(FIVE, k=6),
    r"k is 5; with groups of 5": lambda: max_at_k_weights(FIVE, k=5, estimator="loo"),
    r"k is 0; with": lambda: max_at_k_weights(FIVE, k=0),
    r"rewards has shape \(2,\)": lambda: max_at_k_weights(TWO, k=1),
    r"rewards holds a number": lambda: max_at_k_advantages(
        TWO, TWO, TWO * torch.inf, group=2, beta=1, k=2, estimator="sum"
    ),
    r"rewards has shape \(1, 5\); it must be finite": lambda: max_at_k(FIVE * torch.inf, k=2),
    r"estimator is 'rloo'": lambda: MaxAtK(1, estimator="rloo"),
    r"estimator is 'x'": lambda: max_at_k_weights(FIVE, k=2, estimator="x"),
    r"k is 0; the number": lambda: MaxAtK(1, k=0),
    r"beta is 0": lambda: MaxAtK(0),
}


@pytest.mark.parametrize("message", WRONG)
def test_bad_arguments_are_named(message):
    with pytest.raises(ValueError, match=message):
        WRONG[message]()
