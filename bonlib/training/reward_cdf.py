"""What a method is told of the distribution of the reference's rewards, prompt by prompt."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
from numpy.typing import ArrayLike

from bonlib.cdf import ROUNDING, EmpiricalCdf, ExponentialCdf, Smoothing
from bonlib.checks import number
from bonlib.exact import Array


class LogCdf(Protocol):
    """Where a response's reward stands among those of the reference; each returns logarithms, shape (B,)."""

    def log_strict(self, prompts: Sequence[str], responses: Sequence[str], rewards: ArrayLike) -> Array:
        """Return log F of each response."""
        ...

    def log_weak(self, prompts: Sequence[str], responses: Sequence[str], rewards: ArrayLike) -> Array:
        """Return log F≤ of each response."""
        ...


class SampledCdf:
    """The reward CDF of each prompt, estimated from M samples of the reference.

    Args:
        prompts: P, all different.
        samples: rewards of M reference responses to each, shape (P, M).
        smoothing: as in `bonlib.cdf.EmpiricalCdf`; or "exponential" for the curve of `bonlib.cdf.ExponentialCdf`.
        prior: as in `EmpiricalCdf`.
        rounding: likewise.
    """

    def __init__(
        self,
        prompts: Sequence[str],
        samples: ArrayLike,
        smoothing: Smoothing | Literal["exponential"] = "posterior",
        *,
        prior: tuple[float, float] = (1.0, 1.0),
        rounding: float = ROUNDING,
    ) -> None:
        table = np.asarray(samples, dtype=np.float64)
        prior = (number("prior[0]", prior[0], above=0), number("prior[1]", prior[1], least=0))
        rounding = number("rounding", rounding, least=0, below=1)
        if table.ndim != 2 or len(table) != len(prompts):
            raise ValueError(
                f"samples has shape {table.shape} for {len(prompts)} prompts; it must be (prompts, samples)"
            )
        if len(set(prompts)) != len(prompts):
            raise ValueError(f"prompts has {len(prompts) - len(set(prompts))} repeated; all must be different")
        late = [] if rounding == ROUNDING else [rounding]
        about = hashlib.sha256(json.dumps([list(prompts), smoothing, prior, *late]).encode())
        about.update(table.tobytes())
        self.fingerprint = about.hexdigest()  # two runs with different estimates are different runs
        self._cdfs: dict[str, EmpiricalCdf | ExponentialCdf] = {
            prompt: ExponentialCdf.fit(row)
            if smoothing == "exponential"
            else EmpiricalCdf(row, smoothing, prior=prior, rounding=rounding)
            for prompt, row in zip(prompts, table, strict=True)
        }

    def log_strict(self, prompts: Sequence[str], responses: Sequence[str], rewards: ArrayLike) -> Array:
        """Return the estimate of log F of each response, shape (B,)."""
        return self._look_up("log_strict", prompts, rewards)

    def log_weak(self, prompts: Sequence[str], responses: Sequence[str], rewards: ArrayLike) -> Array:
        """Return the estimate of log F≤ of each response, shape (B,)."""
        return self._look_up("log_weak", prompts, rewards)

    def _look_up(self, name: str, prompts: Sequence[str], rewards: ArrayLike) -> Array:
        places: dict[str, list[int]] = {}
        for place, prompt in enumerate(prompts):
            places.setdefault(prompt, []).append(place)
        given, found = np.asarray(rewards, dtype=np.float64), np.empty(len(prompts))
        for prompt, here in places.items():
            if prompt not in self._cdfs:
                raise ValueError(f"prompt {prompt!r} has no samples: draw some, or take it out")
            found[here] = getattr(self._cdfs[prompt], name)(given[here])
        return found
