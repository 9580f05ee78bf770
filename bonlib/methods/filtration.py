"""Policy filtration: of a prompt's responses only those of some ranks are learned from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from bonlib.checks import one_of
from bonlib.methods.kl_rl import KlRl, kl_rl_return
from bonlib.methods.registry import register
from bonlib.training.gradients import leave_one_out, standing
from bonlib.training.on_policy import Judged

Kept = Literal["best", "best-random", "best-worst"]


def filter_weights(group: int, kept: Kept) -> Tensor:
    """Return the chance of each rank to be kept, from the best to the worst, shape (group,), sum 1.

    Args:
        group: responses to a prompt, at least 2.
        kept: "best"; "best-worst", each half the time; or "best-random", half the time one of all others.

    Raises:
        ValueError: if `kept` is none of the three.

    Source: Zhang et al. 2024 (PF-PPO).
    """
    one_of("kept", kept, get_args(Kept))
    weights = torch.zeros(group, dtype=torch.float64)
    if kept == "best":
        weights[0] = 1
    elif kept == "best-worst":
        weights[0] = weights[-1] = 0.5
    else:
        weights[0], weights[1:] = 0.5, 0.5 / (group - 1)
    return weights


def filtered_shares(rewards: Tensor, *, group: int, weights: Tensor) -> Tensor:
    """Return the chance of each response to be the one kept of its group, responses that tie alike, shape (B,).

    Args:
        rewards: r(y), shape (B,); each `group` consecutive ones answer one prompt.
        group: responses to a prompt, whole, at least 2, a divisor of B.
        weights: of the ranks, from the best to the worst, shape (group,).

    Raises:
        ValueError: if a shape is another, a reward is not finite, or `group` does not fit.

    Source: Zhang et al. 2024 (PF-PPO); the law of what is kept is `bonlib.inference_aware.filtered`.
    """
    better, tied = standing(rewards, group=group)
    if weights.shape != (group,):
        raise ValueError(f"weights has shape {tuple(weights.shape)}; it must be one a rank, ({group},)")
    up_to = functional.pad(weights.to(rewards).cumsum(0), (1, 0))
    return ((up_to[better + tied] - up_to[better]) / tied).view(-1)


def filtered_advantages(
    log_probs: Tensor, ref_log_probs: Tensor, rewards: Tensor, *, group: int, beta: float, kept: Kept
) -> Tensor:
    """Return group · share kept · (r above the others' mean), less β times log πθ − log π above theirs, shape (B,).

    With every rank kept alike it is KL-RL. Otherwise the first part is no gradient of a mean reward, as a filter has
    another law than the policy. The KL is that of all responses, whatever is filtered.

    Args:
        log_probs: log πθ(y) of the responses, shape (B,), summed over tokens.
        ref_log_probs: log π(y) under the reference, shape (B,).
        rewards: r(y), shape (B,); each `group` consecutive ones answer one prompt.
        group: responses to a prompt, whole, at least 2, a divisor of B.
        beta: KL coefficient β, not negative, in units of reward.
        kept: as in `filter_weights`.

    Raises:
        ValueError: if shapes differ, a number is NaN, a log-probability is positive, or an argument is out of range.

    Source: Zhang et al. 2024 (PF-PPO), by a leave-one-out baseline in the place of a critic.
    """
    above = leave_one_out(rewards, group=group)
    shares = filtered_shares(rewards, group=group, weights=filter_weights(group, kept))
    paid = kl_rl_return(log_probs, ref_log_probs, rewards.new_zeros(len(rewards)), beta=beta)
    return group * shares * above + leave_one_out(paid, group=group)


@dataclass(frozen=True)
class Filtered(KlRl):
    """Policy filtration: KL-RL whose reward part learns from responses of some ranks only.

    Attributes:
        beta: KL coefficient β.
        kept: which ranks, as in `filter_weights`.
    """

    kept: Kept = "best-worst"
    needs_group: ClassVar[int] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        filter_weights(2, self.kept)

    def advantages(self, judged: Judged, returns: Tensor) -> Tensor:
        """Return `filtered_advantages`."""
        given = judged.log_probs, judged.ref_log_probs, judged.rewards
        return filtered_advantages(*given, group=judged.group, beta=self.beta, kept=self.kept)


register(
    name="pf",
    make=Filtered,
    setting="beta",
    algorithm="rloo",
    label="PF, best and worst",
    colour="#a6005a",
    marker="d",
    grid=(0.005, 0.02, 0.1, 0.4, 2.0),
    samples="4 responses a prompt from the policy, of which the best and the worst count",
    objective="`filtered_advantages`: `leave_one_out` of r, by rank, − β(log πθ − log π), by `reinforce_loss`",
    source="Zhang et al. 2024",
    place=14,
)
