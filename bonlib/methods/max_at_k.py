"""max@k: the mean of the best of k draws of the policy, by gradients that know the draws share a prompt."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

import torch
from torch import Tensor

from bonlib.checks import one_of, settle, whole
from bonlib.methods.kl_rl import KlRl, kl_rl_return
from bonlib.methods.registry import register
from bonlib.training.gradients import in_groups, leave_one_out
from bonlib.training.on_policy import Judged
from bonlib.training.reward_cdf import LogCdf

Estimator = Literal["loo-1", "loo", "sum"]


def max_at_k(rewards: Tensor, *, k: int) -> Tensor:
    """Return the mean of the best of k, over all choices of k of a group's responses: unbiased, shape (groups,).

    Args:
        rewards: r(y) of responses to one prompt a row, shape (groups, group).
        k: whole, from 1 to the size of a group.

    Raises:
        ValueError: if the shape is another or `k` is out of range.

    Source: Walder and Karkhanis 2025 (PKPO).
    """
    size = _size(rewards, k, 0)
    chances = [math.comb(i, k - 1) / math.comb(size, k) for i in range(size)]  # that it is the best, from the worst up
    return rewards.sort(dim=1).values @ rewards.new_tensor(chances)


def max_at_k_weights(rewards: Tensor, *, k: int, estimator: Estimator = "loo-1") -> Tensor:
    """Return weights s with E Σ s ∇ log πθ(y) = ∇ E[best of k], the sum over the group's responses, same shape.

    Each estimator differs from the sum by a baseline that does not depend on the response itself. So a trainer must
    not centre them again: the plain sum less its mean is (1 − k/group) times the gradient, nothing at group = k;
    "loo-1" less its mean is that plus k/group times the gradient of another objective, max@(k−1).

    Args:
        rewards: r(y) of responses to one prompt a row, shape (groups, group).
        k: whole, from 1 to the size of a group; below it for "loo".
        estimator: "sum", the mean of max@k over the choices of k that hold the response; "loo", this less k/(group−1)
            times max@k of the others; "loo-1", less k/group times max@(k−1) of the others, so that a response is
            paid for what it adds, which is never negative. With k = 1 that baseline is nothing.

    Raises:
        ValueError: if the shape is another, or an argument is out of range.

    Source: Walder and Karkhanis 2025 (PKPO); at group = k "loo-1" is Tang et al. 2025.
    """
    one_of("estimator", estimator, get_args(Estimator))
    size = _size(rewards, k, estimator == "loo")
    ordered, places = rewards.sort(dim=1)
    weights = ordered @ rewards.new_tensor(_by_place(size, k, estimator)).T
    return torch.empty_like(weights).scatter_(1, places, weights)


@cache
def _by_place(size: int, k: int, estimator: Estimator) -> list[list[float]]:
    """How much the weight of the i-th worst owes to the j-th worst reward, (size, size)."""

    def share(below: int, others: int, of: int, chosen: int) -> float:
        """Ways to choose others from those below, a share of all ways: exact until the one division."""
        return math.comb(below, others) / math.comb(of, chosen) if others >= 0 else 0.0

    table = [[0.0] * size for _ in range(size)]
    for i in range(size):
        table[i][i] = share(i, k - 1, size, k)
        for j in range(size):
            rank = j - (j > i)  # among the others
            if j > i and estimator != "loo-1":  # the response is chosen, and j is the best
                table[i][j] += share(rank, k - 2, size, k)
            if j < i and estimator == "loo-1":  # of the others that are chosen j is the best
                table[i][j] -= share(rank, k - 2, size, k)
            if j != i and estimator == "loo":
                table[i][j] -= share(rank, k - 1, size - 1, k) * k / (size - 1)
    return table


def _size(rewards: Tensor, k: int, more: int) -> int:
    """The size of a group, after checks."""
    if rewards.ndim != 2 or not bool(rewards.isfinite().all()):
        raise ValueError(f"rewards has shape {tuple(rewards.shape)}; it must be finite numbers, (groups, group)")
    whole("k", k, 1, rewards.shape[1] - more, what=f"with groups of {rewards.shape[1]} k")
    return rewards.shape[1]


def max_at_k_advantages(
    log_probs: Tensor, ref_log_probs: Tensor, rewards: Tensor, *, group: int, beta: float, k: int, estimator: Estimator
) -> Tensor:
    """Return group · s, less β times what log πθ − log π is above the others' mean, shape (B,).

    The KL is that of one draw, and stands outside of the maximum.

    Args:
        log_probs: log πθ(y) of the responses, shape (B,), summed over tokens.
        ref_log_probs: log π(y) under the reference, shape (B,).
        rewards: r(y), shape (B,); each `group` consecutive ones answer one prompt.
        group: responses to a prompt, whole, at least 2, a divisor of B.
        beta: KL coefficient β, not negative, in units of reward.
        k: number of draws whose best counts.
        estimator: as in `max_at_k_weights`.

    Raises:
        ValueError: if shapes differ, a number is NaN, a log-probability is positive, or an argument is out of range.

    Source: Walder and Karkhanis 2025 (PKPO), to which the KL is added.
    """
    weights = max_at_k_weights(in_groups("rewards", rewards, group), k=k, estimator=estimator)
    paid = kl_rl_return(log_probs, ref_log_probs, rewards.new_zeros(len(rewards)), beta=beta)
    return group * weights.view(-1) + leave_one_out(paid, group=group)


@dataclass(frozen=True)
class MaxAtK(KlRl):
    """max@k: the mean reward of the best of k draws of the policy, minus β times the KL.

    Attributes:
        beta: KL coefficient β.
        k: number of draws whose best counts; a group has at least as many responses.
        estimator: of the gradient, as in `max_at_k_weights`.
    """

    k: int = 4
    estimator: Estimator = "loo-1"

    def __post_init__(self) -> None:
        super().__post_init__()
        settle(self, k=whole("k", self.k, 1, what="the number of draws"))
        one_of("estimator", self.estimator, get_args(Estimator))

    @property
    def needs_group(self) -> int:
        """K, and one more if the others alone must have a best of k."""
        return max(self.k + (self.estimator == "loo"), 2)

    def returns(self, judged: Judged, cdf: LogCdf | None) -> Tensor:
        """Return max@k of the response's group − β (log πθ − log π)."""
        reached = max_at_k(in_groups("rewards", judged.rewards, judged.group), k=self.k)
        rewards = reached.repeat_interleave(judged.group)
        return kl_rl_return(judged.log_probs, judged.ref_log_probs, rewards, beta=self.beta)

    def advantages(self, judged: Judged, returns: Tensor) -> Tensor:
        """Return `max_at_k_advantages`."""
        return max_at_k_advantages(
            judged.log_probs,
            judged.ref_log_probs,
            judged.rewards,
            group=judged.group,
            beta=self.beta,
            k=self.k,
            estimator=self.estimator,
        )


register(
    name="max-at-k",
    make=MaxAtK,
    setting="beta",
    algorithm="rloo",
    label="max@4",
    colour="#a5d278",
    marker="8",
    grid=(0.005, 0.02, 0.1, 0.4, 2.0),
    samples="8 responses a prompt from the policy",
    objective="`max_at_k_advantages`: group · `max_at_k_weights` − β(log πθ − log π), by `reinforce_loss`",
    source="Walder and Karkhanis 2025; Tang et al. 2025",
    training={"prompts": 8, "group": 8},
    place=13,
)
