"""What each method maximises or minimises: pure functions of log-probabilities, (B,) in, (B,) out, unreduced.

A *return* R (`..._return`) is maximised, by a policy gradient, E[R ∇ log πθ]: its own derivative has mean zero or is
not wanted. A loss (from `nll` to `ppo_value`) is minimised, by the gradient of its mean. `gae` and `leave_one_out`, in
shapes of their own, turn rewards and returns into the advantages of `reinforce` and `ppo`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

ROUNDING = 1e-3  # by which a sum of log-probabilities may be off


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
    _check_log_probs(log_probs=log_probs, ref_log_probs=ref_log_probs)
    _check_shapes(log_probs=log_probs, rewards=rewards)
    if not 0 <= beta < math.inf:
        raise ValueError(f"beta is {beta}; the KL coefficient must be finite and not negative")
    _check_finite(rewards=rewards)
    return rewards - beta * (log_probs - ref_log_probs)


def vbon_return(
    log_probs: Tensor, ref_log_probs: Tensor, log_strict_cdf: Tensor, *, n: float, log_tied: Tensor | None = None
) -> Tensor:
    """Return log π_N(y) − log πθ(y), whose expectation is vBoN's J = −KL(πθ ‖ π_N).

    Its optimum is best-of-N exactly.

    Args:
        log_probs: log πθ(y) of the responses, shape (B,), summed over tokens.
        ref_log_probs: log π(y) under the reference, shape (B,).
        log_strict_cdf: log F(y), shape (B,); −inf for the worst response is allowed, and then log π_N is N log π. An
            estimate must leave room for π(y): where F + π exceeds 1, so does the "probability" of best-of-N.
        n: number of draws N, real, at least 1.
        log_tied: log(F≤ − F), the reference's probability of a reward as good as this, shape (B,), at least log π(y).
            None if no two responses are tied: then it is log π(y).

    Raises:
        ValueError: if shapes differ, a number is NaN or a log-probability is positive, `log_tied` is below log π, or
            `n` is below 1.

    Source: Amini et al., Eq. 5, with Proposition 1 in the form (F + π)^N − F^N, shared among the tied by their π.
    """
    log_tied = ref_log_probs if log_tied is None else log_tied
    if log_tied.shape == ref_log_probs.shape and bool((log_tied < ref_log_probs - ROUNDING).any()):
        raise ValueError(
            "log_tied is below ref_log_probs: a response is tied with itself, so it holds at least its own π"
        )
    _check_log_probs(log_probs=log_probs, ref_log_probs=ref_log_probs, log_strict_cdf=log_strict_cdf, log_tied=log_tied)
    _check_n(n)
    # F≤ / F = 1 + e^odds, and 1 − (F/F≤)^N = 1 − e^−lost; where that is all but N e^odds, its logarithm is taken so.
    odds = torch.where(log_tied == -math.inf, -math.inf, log_tied - log_strict_cdf)
    lost = n * functional.softplus(odds)
    tiny = lost < torch.finfo(lost.dtype).eps
    log_found = torch.where(tiny, math.log(n) + odds, torch.log(-torch.expm1(-lost.masked_fill(tiny, 1.0))))
    log_cdf = torch.logaddexp(log_tied, log_strict_cdf)
    log_share = torch.where(log_tied == -math.inf, 0.0, ref_log_probs - log_tied)
    return n * log_cdf + log_found + log_share - log_probs


def vbon_bound_return(log_probs: Tensor, ref_log_probs: Tensor, log_cdf: Tensor, *, n: float) -> Tensor:
    """Return (N−1) log F≤ − (log πθ − log π), vBoN's lower bound L with the weak CDF: KL-RL with reward log F≤.

    Its optimum is π F≤^(N−1), normalised: best-of-N without BOND's term B. At most log N is lost from J.

    Args:
        log_probs: log πθ(y) of the responses, shape (B,), summed over tokens.
        ref_log_probs: log π(y) under the reference, shape (B,).
        log_cdf: log F≤(y), shape (B,); finite, as F≤ is at least π. (The strict log F makes the paper's own bound,
            which is −inf for every policy that can produce the worst response.)
        n: number of draws N, real, at least 1.

    Raises:
        ValueError: if shapes differ, a number is NaN or a log-probability is positive, or `n` is below 1.

    Source: Amini et al., Theorem 2.
    """
    _check_log_probs(log_probs=log_probs, ref_log_probs=ref_log_probs, log_cdf=log_cdf)
    _check_n(n)
    return _times(n - 1, log_cdf) - (log_probs - ref_log_probs)


def vbon_loose_bound_return(log_probs: Tensor, ref_log_probs: Tensor, log_cdf: Tensor, *, n: float) -> Tensor:
    """Return γ log F + α log πθ − β (log πθ − log π), vBoN's looser bound L1, for study rather than training.

    Here α = (N+2)(N−1)/2, β = N(N+1)/2 and γ = N(N−1)/2. As α − β = −1 its optimum is π^β F^γ, normalised, far more
    peaked than best-of-N.

    Args:
        log_probs: log πθ(y) of the responses, shape (B,), summed over tokens.
        ref_log_probs: log π(y) under the reference, shape (B,).
        log_cdf: log F≤(y), or the paper's log F(y), shape (B,).
        n: number of draws N, at least 1.

    Raises:
        ValueError: if shapes differ, a number is NaN or a log-probability is positive, or `n` is below 1.

    Source: Amini et al., Theorem 3 (and Theorem 4: L1 <= L).
    """
    _check_log_probs(log_probs=log_probs, ref_log_probs=ref_log_probs, log_cdf=log_cdf)
    _check_n(n)
    alpha, beta, gamma = (n + 2) * (n - 1) / 2, n * (n + 1) / 2, n * (n - 1) / 2
    return _times(gamma, log_cdf) + alpha * log_probs - beta * (log_probs - ref_log_probs)


def nll(log_probs: Tensor) -> Tensor:
    """Return −log πθ(y), whose mean over responses of a target policy is its cross-entropy with πθ.

    On best-of-n responses this is BoN-SFT, and BOND's forward divergence: the optimum is best-of-n.

    Args:
        log_probs: log πθ(y) of the responses, shape (B,), summed over tokens.

    Raises:
        ValueError: if the shape is not (B,), a number is NaN or a log-probability is positive.

    Source: Sessa et al., section 4.2.
    """
    _check_log_probs(log_probs=log_probs)
    return -log_probs


def dpo(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, *, beta: float) -> Tensor:
    """Return −log σ(β (Δθ − Δπ)), where Δ is the log-probability of the chosen response less that of the rejected.

    Args:
        chosen: log πθ of the preferred responses, shape (B,), summed over tokens.
        rejected: log πθ of the others, shape (B,).
        ref_chosen: log π of the preferred responses under the reference, shape (B,).
        ref_rejected: log π of the others, shape (B,).
        beta: KL coefficient β, positive, of the KL-regularised problem that this solves.

    Raises:
        ValueError: if shapes differ, a log-probability is positive or not finite, or `beta` is not positive.

    Source: Rafailov et al. 2023 (DPO), Eq. 7.
    """
    margin = _margin(chosen=chosen, rejected=rejected, ref_chosen=ref_chosen, ref_rejected=ref_rejected)
    _check_positive("beta", beta, "the KL coefficient")
    return -functional.logsigmoid(beta * margin)


def ipo(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, *, beta: float) -> Tensor:
    """Return (Δθ − Δπ − 1/(2β))², where Δ is the log-probability of the chosen response less that of the rejected.

    Log-probabilities are sums over tokens, as in the paper; TRL divides each by its number of tokens.

    Args:
        chosen: log πθ of the preferred responses, shape (B,), summed over tokens.
        rejected: log πθ of the others, shape (B,).
        ref_chosen: log π of the preferred responses under the reference, shape (B,).
        ref_rejected: log π of the others, shape (B,).
        beta: KL coefficient, positive (the paper's τ).

    Raises:
        ValueError: if shapes differ, a log-probability is positive or not finite, or `beta` is not positive.

    Source: Azar et al. 2024 (IPO), Eq. 17.
    """
    margin = _margin(chosen=chosen, rejected=rejected, ref_chosen=ref_chosen, ref_rejected=ref_rejected)
    _check_positive("beta", beta, "the KL coefficient")
    return (margin - 1 / (2 * beta)) ** 2


def bonbon_target(n: int) -> float:
    """Return (n−1) Σ 1/k over k = 1 … n−1, the mean of Δ log(π_n/π) between the best and the worst of n draws.

    It is exact for a continuous reward. One draw is its own best and worst, and its target is 0.

    Args:
        n: number of draws, whole, at least 1.

    Raises:
        ValueError: if `n` is not a whole number of at least 1.

    Source: Gui et al. 2024 (BoNBoN), Theorem 3, whose β*_n is 1/(2 target).
    """
    if not 1 <= n < math.inf or n != int(n):
        raise ValueError(f"n is {n}; the number of draws must be a whole number of at least 1")
    return (n - 1) * math.fsum(1 / k for k in range(1, int(n)))


def bonbon(best: Tensor, worst: Tensor, ref_best: Tensor, ref_worst: Tensor, *, n: int, sft_weight: float) -> Tensor:
    """Return a · NLL(best) + (1−a) (Δθ − Δπ − t_n)², where Δ is over the best and the worst of the same n draws.

    The target t_n (`bonbon_target`) is the mean of Δθ − Δπ at best-of-n, which is the optimum of the first term alone.
    That of the square alone is another policy: for n = 2 without ties it is π exp(2c), c the calibrated reward.

    Args:
        best: log πθ of the best of n draws, shape (B,), summed over tokens.
        worst: log πθ of the worst of the same draws, shape (B,).
        ref_best: log π of the best under the reference, shape (B,).
        ref_worst: log π of the worst, shape (B,).
        n: number of draws, whole, at least 1.
        sft_weight: weight a of the likelihood of the best draw, from 0 to 1.

    Raises:
        ValueError: if shapes differ, a log-probability is positive or not finite, or another argument is out of range.

    Source: Gui et al. 2024 (BoNBoN), as told by Amini et al., section 5.
    """
    margin = _margin(best=best, worst=worst, ref_best=ref_best, ref_worst=ref_worst)
    if not 0 <= sft_weight <= 1:
        raise ValueError(f"sft_weight is {sft_weight}; the weight of the likelihood must be from 0 to 1")
    return sft_weight * nll(best) + (1 - sft_weight) * (margin - bonbon_target(n)) ** 2


def reinforce(log_probs: Tensor, advantages: Tensor) -> Tensor:
    """Return −A log πθ(y), whose gradient is the policy gradient to be descended; A is taken as a constant.

    Args:
        log_probs: log πθ(y) of responses drawn from πθ, shape (B,), summed over tokens.
        advantages: returns, less a baseline that does not depend on the response, shape (B,).

    Raises:
        ValueError: if shapes differ, an advantage is not finite or a log-probability is NaN or positive.

    Source: Williams 1992.
    """
    _check_log_probs(log_probs=log_probs)
    _check_shapes(log_probs=log_probs, advantages=advantages)
    _check_finite(advantages=advantages)
    return -advantages.detach() * log_probs


def ppo(log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, *, clip: float) -> Tensor:
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
    _check_log_probs(log_probs=log_probs, old_log_probs=old_log_probs)
    _check_shapes(log_probs=log_probs, advantages=advantages)
    _check_finite(old_log_probs=old_log_probs, advantages=advantages)
    if not 0 < clip < 1:
        raise ValueError(f"clip is {clip}; the range of the ratio must be above 0 and below 1")
    log_ratio, advantages = log_probs - old_log_probs.detach(), advantages.detach()
    # The minimum bounds ρ on one side only, from above where A > 0; done to log ρ, no infinity can spoil a gradient.
    above, below = log_ratio.clamp(max=math.log1p(clip)), log_ratio.clamp(min=math.log1p(-clip))
    return -advantages * torch.where(advantages >= 0, above, below).exp()


def ppo_value(values: Tensor, old_values: Tensor, targets: Tensor, *, clip: float) -> Tensor:
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
    _check_shapes(**tensors)
    _check_finite(**tensors)
    _check_positive("clip", clip, "the range of a value")
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
        Advantages, shape (B, T). Plus `values` they are the targets of `ppo_value`.

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
        if not 0 <= factor <= 1:
            raise ValueError(f"{name} is {factor}; it must be from 0 to 1")
    inside = torch.arange(steps, device=lengths.device) < lengths[:, None]
    rewards, values = (x.detach().masked_fill(~inside, 0.0) for x in (rewards, values))
    _check_finite(rewards=rewards, values=values)
    errors = rewards + discount * functional.pad(values[:, 1:], (0, 1)) - values
    advantages = torch.zeros_like(errors)
    running = errors.new_zeros(len(errors))
    for t in reversed(range(steps)):
        running = errors[:, t] + discount * trace * running
        advantages[:, t] = running
    return advantages


def leave_one_out(returns: Tensor, *, group: int) -> Tensor:
    """Return each return less the mean of the others of its group, the advantages of RLOO, without gradient.

    The baseline does not depend on the response itself, so the policy gradient keeps its mean.

    Args:
        returns: shape (B,); each `group` consecutive ones belong to independent responses to one prompt.
        group: responses a prompt, whole, at least 2, a divisor of B.

    Raises:
        ValueError: if the shape is not (B,), a return is not finite, or `group` does not fit.

    Source: Kool et al. 2019; Ahmadian et al. 2024 (RLOO).
    """
    _check_shapes(returns=returns)
    _check_finite(returns=returns)
    if group < 2 or group != int(group) or len(returns) % group:
        raise ValueError(
            f"group is {group}; it must be a whole number of at least 2 that divides the {len(returns)} returns"
        )
    grouped = returns.detach().view(-1, int(group))
    return ((grouped - grouped.mean(dim=1, keepdim=True)) * (group / (group - 1))).view(-1)


def _margin(**pairs: Tensor) -> Tensor:
    """Δθ − Δπ of pairs of responses, given as chosen, rejected, ref_chosen, ref_rejected, after a check of them."""
    _check_log_probs(**pairs)
    _check_finite(**pairs)
    chosen, rejected, ref_chosen, ref_rejected = pairs.values()
    return (chosen - rejected) - (ref_chosen - ref_rejected)


def _times(factor: float, log_cdf: Tensor) -> Tensor:
    """Factor · log F, which is 0 for the factor 0 even where F is 0."""
    return factor * log_cdf if factor else torch.zeros_like(log_cdf)


def _check_log_probs(**tensors: Tensor) -> None:
    _check_shapes(**tensors)
    for name, tensor in tensors.items():
        if not bool((tensor.detach() <= ROUNDING).all()):
            raise ValueError(f"{name} holds {tensor.detach().max().item():.4g}; a log-probability is at most 0")


def _check_shapes(**tensors: Tensor) -> None:
    (first, reference), *_ = tensors.items()
    for name, tensor in tensors.items():
        if tensor.ndim != 1 or tensor.shape != reference.shape:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}; it must be one number a response, (B,), as {first} has, "
                f"{tuple(reference.shape)}"
            )
        if bool(tensor.detach().isnan().any()):
            raise ValueError(f"{name} holds NaN; drop or repair that response")


def _check_n(n: float) -> None:
    if not 1 <= n < math.inf:
        raise ValueError(f"n is {n}; the number of draws must be finite and at least 1")


def _check_finite(**tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if not bool(tensor.detach().isfinite().all()):
            raise ValueError(f"{name} holds a number that is not finite; drop or repair that response")


def _check_positive(name: str, number: float, meaning: str) -> None:
    if not 0 < number < math.inf:
        raise ValueError(f"{name} is {number}; {meaning} must be finite and positive")
