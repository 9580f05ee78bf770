"""What the losses expect of their arguments."""

from __future__ import annotations

import math

from torch import Tensor


class NotFiniteError(ValueError):
    """A number that must be finite is not; with a return, log F of a response is usually −∞."""


ROUNDING = 1e-3  # by which a sum of log-probabilities may be off


def check_log_probs(**tensors: Tensor) -> None:
    """Raise unless all are logarithms of probabilities, one a response."""
    check_shapes(**tensors)
    for name, tensor in tensors.items():
        if not bool((tensor.detach() <= ROUNDING).all()):
            raise ValueError(f"{name} holds {tensor.detach().max().item():.4g}; a log-probability is at most 0")


def check_shapes(**tensors: Tensor) -> None:
    """Raise unless all are one number a response, of as many, and none is NaN."""
    (first, reference), *_ = tensors.items()
    for name, tensor in tensors.items():
        if tensor.ndim != 1 or tensor.shape != reference.shape:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}; it must be one number a response, (B,), as {first} has, "
                f"{tuple(reference.shape)}"
            )
        if bool(tensor.detach().isnan().any()):
            raise ValueError(f"{name} holds NaN; drop or repair that response")


def check_n(n: float) -> None:
    """Raise unless n is a number of draws, whole or not."""
    if not 1 <= n < math.inf:
        raise ValueError(f"n is {n}; the number of draws must be finite and at least 1")


def check_finite(**tensors: Tensor) -> None:
    """Raise if a number is NaN or infinite."""
    for name, tensor in tensors.items():
        if not bool(tensor.detach().isfinite().all()):
            raise NotFiniteError(f"{name} holds a number that is not finite; drop or repair that response")


def check_positive(name: str, number: float, meaning: str) -> None:
    """Raise unless a number is positive and finite."""
    if not 0 < number < math.inf:
        raise ValueError(f"{name} is {number}; {meaning} must be finite and positive")


def check_jeffreys_weight(weight: float) -> None:
    """Raise unless it is a share."""
    if not 0 <= weight <= 1:
        raise ValueError(f"jeffreys_weight is {weight}; the weight of the reverse divergence must be from 0 to 1")
