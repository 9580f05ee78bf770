"""From returns to a loss whose gradient is the policy gradient."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from bonlib.cdf import ROUNDING
from bonlib.checks import check_finite, check_log_probs, check_shapes, number, whole


def reinforce_loss(log_probs: Tensor, advantages: Tensor) -> Tensor:
    """Return −A log πθ(y), whose gradient is the policy gradient to be descended; A is taken as a constant.

    Args:
        log_probs: log πθ(y) of responses drawn from πθ, shape (B,), summed over tokens.
        advantages: returns, less a baseline that does not depend on the response, shape (B,).

    Raises:
        ValueError: if shapes differ, an advantage is not finite or a log-probability is NaN or positive.

    Source: Williams 1992.
    """
    check_log_probs(log_probs=log_probs)
    check_shapes(log_probs=log_probs, advantages=advantages)
    check_finite(advantages=advantages)
    return -advantages.detach() * log_probs


def ppo_loss(log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, *, clip: float) -> Tensor:
    """Return −min(ρ A, clamp(ρ, 1 − clip, 1 + clip) A), where ρ = πθ/π_old; A and π_old are taken as constants.

    An element is a whole response or one token of it; those of several responses come as one flat tensor.

    Args:
        log_probs: log πθ of what was drawn, shape (B,).
        old_log_probs: log-probability of the same under the policy that drew it, shape (B,).
        advantages: shape (B,).
        clip: how far ρ may be from 1 before its gradient ends, above 0 and below 1.

    Raises:
        ValueError: if shapes differ, a number is not finite, a log-probability is positive or `clip` is out of range.

    Source: Schulman et al. 2017 (PPO), Eq. 7.
    """
    check_log_probs(log_probs=log_probs, old_log_probs=old_log_probs)
    check_shapes(log_probs=log_probs, advantages=advantages)
    check_finite(old_log_probs=old_log_probs, advantages=advantages)
    number("clip", clip, above=0, below=1, what="the range of the ratio")
    log_ratio, advantages = log_probs - old_log_probs.detach(), advantages.detach()
    # The minimum bounds ρ on one side only, from above where A > 0; done to log ρ, no infinity can spoil a gradient.
    above, below = log_ratio.clamp(max=math.log1p(clip)), log_ratio.clamp(min=math.log1p(-clip))
    return -advantages * torch.where(advantages >= 0, above, below).exp()


def ppo_value_loss(values: Tensor, old_values: Tensor, targets: Tensor, *, clip: float) -> Tensor:
    """Return ½ max((V − target)², (V_clipped − target)²), where V_clipped is V kept within `clip` of V_old.

    Args:
        values: the critic's values, shape (B,), one a token or a response, in units of reward.
        old_values: those of the critic when the responses were drawn, shape (B,).
        targets: what the values should be: advantages plus old values, shape (B,).
        clip: how far a value may usefully move from the old one, positive, in units of reward.

    Raises:
        ValueError: if shapes differ, a number is not finite or `clip` is not positive.

    Source: OpenAI Baselines, ppo2; it is not in the PPO paper.
    """
    tensors = {"values": values, "old_values": old_values, "targets": targets}
    check_shapes(**tensors)
    check_finite(**tensors)
    number("clip", clip, above=0, what="the range of a value")
    old_values, targets = old_values.detach(), targets.detach()
    clipped = old_values + (values - old_values).clamp(-clip, clip)
    return torch.maximum((values - targets) ** 2, (clipped - targets) ** 2) / 2


def gae(rewards: Tensor, values: Tensor, lengths: Tensor, *, discount: float = 1.0, trace: float = 0.95) -> Tensor:
    """Return generalised advantage estimates, A_t = Σ_l (γλ)^l δ_{t+l} with δ_t = r_t + γ V_{t+1} − V_t, no gradient.

    The value after the last token is 0. What stands in the padding is ignored, and its estimates are 0.

    Args:
        rewards: reward given at each token of each response, shape (B, T).
        values: the critic's value before each token, shape (B, T).
        lengths: how many tokens each response has, whole numbers from 0 to T, shape (B,).
        discount: γ, from 0 to 1.
        trace: λ, from 0 (least variance) to 1 (no bias by the critic).

    Returns:
        Advantages, shape (B, T). Plus `values` they are the targets of `ppo_value_loss`.

    Raises:
        ValueError: if shapes differ, a number before the padding is not finite, or an argument is out of range.

    Source: Schulman et al. 2016 (GAE), Eq. 16.
    """
    if rewards.ndim != 2 or values.shape != rewards.shape or lengths.shape != rewards.shape[:1]:
        raise ValueError(
            f"rewards has shape {tuple(rewards.shape)}, values {tuple(values.shape)} and lengths "
            f"{tuple(lengths.shape)}; they must be (B, T), (B, T) and (B,)"
        )
    steps = rewards.shape[1]
    if lengths.is_floating_point() or bool(((lengths < 0) | (lengths > steps)).any()):
        raise ValueError(f"lengths holds {lengths.tolist()}; each must be a whole number from 0 to {steps}")
    for name, factor in (("discount", discount), ("trace", trace)):
        number(name, factor, least=0, most=1)
    inside = torch.arange(steps, device=lengths.device) < lengths[:, None]
    rewards, values = (x.detach().masked_fill(~inside, 0.0) for x in (rewards, values))
    check_finite(rewards=rewards, values=values)
    errors = rewards + discount * functional.pad(values[:, 1:], (0, 1)) - values
    advantages = torch.zeros_like(errors)
    running = errors.new_zeros(len(errors))
    for t in reversed(range(steps)):
        running = errors[:, t] + discount * trace * running
        advantages[:, t] = running
    return advantages


def in_groups(name: str, numbers: Tensor, group: int) -> Tensor:
    """Return one number a response, (B,), as (B / group, group), without gradient, or raise a ValueError."""
    check_shapes(**{name: numbers})
    check_finite(**{name: numbers})
    group = whole("group", group, 2, what=f"the group, which divides the {len(numbers)} {name},")
    if len(numbers) % group:
        raise ValueError(f"group is {group}; it must be a whole number that divides the {len(numbers)} {name}")
    return numbers.detach().view(-1, group)


def leave_one_out(returns: Tensor, *, group: int) -> Tensor:
    """Return each return less the mean of the others of its group, the advantages of RLOO, without gradient.

    The baseline does not depend on the response itself, so the policy gradient keeps its mean.

    Args:
        returns: shape (B,); each `group` consecutive ones belong to responses drawn independently of each other.
        group: such responses, to one prompt or to several, whole, at least 2, a divisor of B.

    Raises:
        ValueError: if the shape is not (B,), a return is not finite, or `group` does not fit.

    Source: Kool et al. 2019; Ahmadian et al. 2024 (RLOO).
    """
    grouped = in_groups("returns", returns, group)
    return ((grouped - grouped.mean(dim=1, keepdim=True)) * (group / (group - 1))).view(-1)


def standing(rewards: Tensor, *, group: int) -> tuple[Tensor, Tensor]:
    """Return how many of its group are better than each response, and how many as good, itself included.

    Rewards that differ by rounding are equal (`bonlib.cdf.ROUNDING`).

    Args:
        rewards: r(y), shape (B,); each `group` consecutive ones answer one prompt.
        group: responses to a prompt, whole, at least 2, a divisor of B.

    Returns:
        Whole numbers, shape (B / group, group) each.

    Raises:
        ValueError: if the shape is not (B,), a reward is not finite, or `group` does not fit.
    """
    grouped = in_groups("rewards", rewards, group)
    mine, others = grouped[:, :, None], grouped[:, None, :]
    rounding = ROUNDING * torch.maximum(mine.abs(), others.abs())
    return (others - mine > rounding).sum(dim=2), ((others - mine).abs() <= rounding).sum(dim=2)
