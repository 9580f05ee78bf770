"""KL-regularised reinforcement learning: reward minus β times the KL to the reference."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from bonlib.checks import check_finite, check_log_probs, check_shapes, number, settle
from bonlib.methods.registry import register
from bonlib.training.on_policy import Judged, OnPolicy
from bonlib.training.reward_cdf import LogCdf
from bonlib.training.settings import Ppo


def kl_rl_return(log_probs: Tensor, ref_log_probs: Tensor, rewards: Tensor, *, beta: float) -> Tensor:
    """Return r − β (log πθ − log π), whose expectation KL-regularised reinforcement learning maximises.

    Its optimum is π exp(r/β), normalised (`Outcomes.tilt`).

    Args:
        log_probs: log πθ(y) of the responses, shape (B,), summed over tokens.
        ref_log_probs: log π(y) under the reference, shape (B,).
        rewards: r(y), shape (B,).
        beta: KL coefficient β, not negative, in units of reward.

    Raises:
        ValueError: if shapes differ, a number is NaN or a log-probability is positive, or `beta` is negative.

    Source: Amini et al., Eq. 1.
    """
    check_log_probs(log_probs=log_probs, ref_log_probs=ref_log_probs)
    check_shapes(log_probs=log_probs, rewards=rewards)
    number("beta", beta, least=0, what="the KL coefficient")
    check_finite(rewards=rewards)
    return rewards - beta * (log_probs - ref_log_probs)


@dataclass(frozen=True)
class KlRl(OnPolicy):
    """KL-regularised reinforcement learning: reward minus β times the KL. Trained by RLOO or PPO."""

    beta: float

    def __post_init__(self) -> None:
        settle(self, beta=number("beta", self.beta, above=0, what="the KL coefficient"))

    @property
    def kl_coefficient(self) -> float:
        """Its β."""
        return self.beta

    def eased(self, part: float) -> KlRl:
        """Return it with β / part."""
        return replace(self, beta=self.beta / part)

    def returns(self, judged: Judged, cdf: LogCdf | None) -> Tensor:
        """Return r − β (log πθ − log π)."""
        return kl_rl_return(judged.log_probs, judged.ref_log_probs, judged.rewards, beta=self.beta)


register(
    name="kl-rl-rloo",
    make=KlRl,
    setting="beta",
    algorithm="rloo",
    label="KL-RL, RLOO",
    colour="#de8f05",
    marker="D",
    grid=(0.005, 0.02, 0.1, 0.4, 2.0),
    samples="4 responses a prompt from the policy",
    objective="`kl_rl_return`: r − β(log πθ − log π), by `reinforce_loss` with `leave_one_out`",
    source="Amini et al., Eq. 1; Ahmadian et al.",
    place=3,
)
register(
    name="kl-rl-ppo",
    make=KlRl,
    setting="beta",
    algorithm="ppo",
    label="KL-RL, PPO",
    colour="#ece133",
    marker="P",
    grid=(0.005, 0.02, 0.1, 0.4, 2.0),
    samples="4 responses a prompt from the policy",
    objective="`kl_rl_return` spread over tokens, with `gae`, `ppo_loss` and `ppo_value_loss`",
    source="Schulman et al.; Amini et al., Table 3",
    training={"ppo": Ppo(), "learning_rate": 3e-5},
    place=4,
)
