"""J-BOND: best-of-2 of a slowly moving anchor, with log F≤ guessed from two of its responses."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from bonlib.cdf import ROUNDING
from bonlib.checks import check_finite, check_log_probs, check_shapes
from bonlib.methods.bond import Anchored
from bonlib.methods.registry import register
from bonlib.training.on_policy import Judged
from bonlib.training.reward_cdf import LogCdf


def jbond_reward(rewards: Tensor, anchor_rewards: Tensor) -> Tensor:
    """Return −log 16 where a response is worse than both of its anchor responses, else 0.

    Over the two responses of the anchor its mean is −log 16 · (1 − F≤)², which equals log F≤ at the median.

    Rewards that differ by rounding are equal (`bonlib.cdf.ROUNDING`).

    Args:
        rewards: r(y), shape (B,).
        anchor_rewards: of two responses of the anchor to the same prompt, shape (B, 2).

    Raises:
        ValueError: if a shape is another or a reward is not finite.

    Source: Sessa et al. (BOND), Eq. 17.
    """
    check_shapes(rewards=rewards)
    if anchor_rewards.shape != (len(rewards), 2):
        raise ValueError(
            f"anchor_rewards has shape {tuple(anchor_rewards.shape)}; it must be ({len(rewards)}, 2), two a response"
        )
    check_finite(rewards=rewards, anchor_rewards=anchor_rewards)
    lower = anchor_rewards.min(dim=1).values
    worse = rewards < lower - ROUNDING * torch.maximum(rewards.abs(), lower.abs())
    return worse.to(torch.result_type(rewards, 1.0)) * -math.log(16)


def jbond_return(log_probs: Tensor, anchor_log_probs: Tensor, rewards: Tensor, anchor_rewards: Tensor) -> Tensor:
    """Return J-BOND's r_J − (log πθ − log π_anchor), BOND's return for n = 2 with log F≤ guessed from two draws.

    Its optimum is π_anchor · 16^−(1 − F≤)², normalised: close to best-of-2 of the anchor, and not equal to it.

    Args:
        log_probs: log πθ(y) of the responses, shape (B,), summed over tokens.
        anchor_log_probs: log-probability of the same under the anchor, shape (B,).
        rewards: r(y), shape (B,).
        anchor_rewards: of two responses of the anchor to the same prompt, shape (B, 2).

    Raises:
        ValueError: if a shape is another, a number is NaN, a reward is not finite or a log-probability is positive.

    Source: Sessa et al. (BOND), Algorithm 2.
    """
    check_log_probs(log_probs=log_probs, anchor_log_probs=anchor_log_probs)
    check_shapes(log_probs=log_probs, rewards=rewards)
    return jbond_reward(rewards, anchor_rewards) - (log_probs - anchor_log_probs)


@dataclass(frozen=True)
class JBond(Anchored):
    """J-BOND: best-of-2 of a slowly moving anchor, with log F≤ guessed from two of its responses."""

    n: ClassVar[int] = 2
    asks_anchor: ClassVar[bool] = True
    anchor_draws: ClassVar[int] = 2
    picks: ClassVar[str] = "groups"
    anchor_rate: float = field(default=0.02, kw_only=True)

    def returns(self, judged: Judged, cdf: LogCdf | None) -> Tensor:
        """Return r_J − (log πθ − log π_anchor)."""
        if judged.anchor_rewards is None:
            raise ValueError("judged has no anchor_rewards; J-BOND compares with two responses of the anchor")
        return jbond_return(judged.log_probs, judged.ref_log_probs, judged.rewards, judged.anchor_rewards)


def jbond(rate: float, **options: Any) -> JBond:
    """Return J-BOND with an anchor that takes up this share of the policy's weights at each move."""
    return JBond(anchor_rate=rate, **options)


register(
    name="jbond",
    make=jbond,
    setting="rate",
    decides=("anchor_rate",),
    algorithm="bond",
    label="J-BOND",
    colour="#7a4a12",
    marker="*",
    grid=(0.005, 0.01, 0.02, 0.05, 0.1),
    samples="1 response a prompt from the policy and 2 from the anchor",
    objective="`jeffreys_loss` with `jbond_return`: r_J − (log πθ − log π_anchor); γ KL(πθ ‖ anchor)",
    source="Sessa et al., Algorithm 2, its last sign turned",
    training={"decay": False, "prompts": 32, "group": 1},  # one response of the policy and two of the anchor's
    place=10,
)
