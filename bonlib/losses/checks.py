"""What the losses expect of their arguments."""

from __future__ import annotations

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


def check_finite(**tensors: Tensor) -> None:
    """Raise if a number is NaN or infinite."""
    for name, tensor in tensors.items():
        if not bool(tensor.detach().isfinite().all()):
            raise NotFiniteError(f"{name} holds a number that is not finite; drop or repair that response")
