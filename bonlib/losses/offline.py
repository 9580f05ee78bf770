"""Losses of responses drawn by the reference, one at a time or in pairs; (B,) in, (B,) out."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional

from bonlib.checks import number, whole
from bonlib.losses.checks import check_finite, check_log_probs


def nll(log_probs: Tensor) -> Tensor:
    """Return −log πθ(y), whose mean over responses of a target policy is its cross-entropy with πθ.

    On best-of-n responses this is BoN-SFT, and BOND's forward divergence: the optimum is best-of-n.

    Args:
        log_probs: log πθ(y) of the responses, shape (B,), summed over tokens.

    Raises:
        ValueError: if the shape is not (B,), a number is NaN or a log-probability is positive.

    Source: Sessa et al., section 4.2.
    """
    check_log_probs(log_probs=log_probs)
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
    number("beta", beta, above=0, what="the KL coefficient")
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
    number("beta", beta, above=0, what="the KL coefficient")
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
    n = whole("n", n, 1, what="the number of draws")
    return (n - 1) * math.fsum(1 / k for k in range(1, n))


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
    number("sft_weight", sft_weight, least=0, most=1, what="the weight of the likelihood")
    return sft_weight * nll(best) + (1 - sft_weight) * (margin - bonbon_target(n)) ** 2


def _margin(**pairs: Tensor) -> Tensor:
    """Δθ − Δπ of pairs of responses, given as chosen, rejected, ref_chosen, ref_rejected, after a check of them."""
    check_log_probs(**pairs)
    check_finite(**pairs)
    chosen, rejected, ref_chosen, ref_rejected = pairs.values()
    return (chosen - rejected) - (ref_chosen - ref_rejected)
