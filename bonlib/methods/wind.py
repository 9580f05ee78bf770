"""WIND: a game of the policy against itself, held to the reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from bonlib.methods.kl_rl import KlRl, kl_rl_return
from bonlib.methods.registry import register
from bonlib.training.gradients import leave_one_out, standing
from bonlib.training.on_policy import Judged
from bonlib.training.reward_cdf import LogCdf


def win_shares(rewards: Tensor, *, group: int) -> Tensor:
    """Return the share of the others of its group that each response beats, ties counting one half, shape (B,).

    Its mean over the others is the chance to beat a draw of the policy itself.

    Args:
        rewards: r(y), shape (B,); each `group` consecutive ones answer one prompt.
        group: responses to a prompt, whole, at least 2, a divisor of B.

    Raises:
        ValueError: if the shape is not (B,), a reward is not finite, or `group` does not fit.

    Source: Yang et al. 2024 (WIND), with the policy's own draws on both sides.
    """
    better, tied = standing(rewards, group=group)
    return (1 - (better + (tied - 1) / 2) / (group - 1)).view(-1).to(rewards)


def wind_advantages(log_probs: Tensor, ref_log_probs: Tensor, rewards: Tensor, *, group: int, beta: float) -> Tensor:
    """Return the share won less 1/2, less β times what log πθ − log π is above the others' mean, shape (B,).

    Half is what a policy wins against itself, whatever it is. The mean of the others' shares is no baseline: what one
    wins, another loses, so taking it off would multiply the game, and not the KL, by group / (group − 1).

    Args:
        log_probs: log πθ(y) of the responses, shape (B,), summed over tokens.
        ref_log_probs: log π(y) under the reference, shape (B,).
        rewards: r(y), shape (B,); each `group` consecutive ones answer one prompt.
        group: responses to a prompt, whole, at least 2, a divisor of B.
        beta: KL coefficient β, not negative, in units of win rate.

    Raises:
        ValueError: if shapes differ, a number is NaN, a log-probability is positive, or an argument is out of range.

    Source: Yang et al. 2024 (WIND), whose equilibrium is `bonlib.inference_aware.wind_optimum`.
    """
    shares = win_shares(rewards, group=group)
    paid = kl_rl_return(log_probs, ref_log_probs, rewards.new_zeros(len(rewards)), beta=beta)
    return shares - 0.5 + leave_one_out(paid, group=group)


@dataclass(frozen=True)
class Wind(KlRl):
    """WIND: win rate against the policy itself, minus β times the KL. No reference draw is needed."""

    needs_group: ClassVar[int] = 2

    def returns(self, judged: Judged, cdf: LogCdf | None) -> Tensor:
        """Return the share won − β (log πθ − log π)."""
        shares = win_shares(judged.rewards, group=judged.group)
        return kl_rl_return(judged.log_probs, judged.ref_log_probs, shares, beta=self.beta)

    def advantages(self, judged: Judged, returns: Tensor) -> Tensor:
        """Return `wind_advantages`."""
        given = judged.log_probs, judged.ref_log_probs, judged.rewards
        return wind_advantages(*given, group=judged.group, beta=self.beta)


register(
    name="wind",
    make=Wind,
    setting="beta",
    algorithm="rloo",
    label="WIND",
    colour="#004b4b",
    marker="<",
    grid=(0.05, 0.1, 0.2, 0.4, 1.0),
    samples="4 responses a prompt from the policy, each judged against the others",
    objective="`wind_advantages`: share won − 1/2 − β(log πθ − log π), by `reinforce_loss`",
    source="Yang et al. 2024",
    place=11,
)
