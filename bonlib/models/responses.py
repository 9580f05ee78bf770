"""Responses as tokens, text and log-probabilities: what draws are, and what is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from bonlib.checks import settle


@dataclass(frozen=True, eq=False)
class Responses:
    """Responses, one to each of B prompts.

    Attributes:
        texts: (B,) the responses as text, without the prompts, as an array of `str`: NumPy's own strings would lose
            NULs at the end.
        token_ids: (B, T) their tokens, −1 after the end.
        log_probs: (B,) log-probability of a response under the model (temperature 1, every token allowed), summed
            over its tokens including the end token; float64, nats.
        sampling_log_probs: (B,) the same under the distribution that was sampled from.
    """

    texts: NDArray[np.object_]
    token_ids: NDArray[np.int32]
    log_probs: NDArray[np.float64]
    sampling_log_probs: NDArray[np.float64]

    def __post_init__(self) -> None:
        settle(self, texts=np.array([str(text) for text in self.texts], dtype=object))

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, places: Sequence[int] | NDArray[np.intp] | slice) -> Responses:
        """Return those at some places."""
        return Responses(*(getattr(self, field.name)[places] for field in fields(self)))

    @property
    def lengths(self) -> NDArray[np.intp]:
        """(B,) tokens of each response, the end token included."""
        return (self.token_ids >= 0).sum(axis=1)

    def are_cut(self, end_token_ids: Sequence[int]) -> NDArray[np.bool_]:
        """(B,) whether a response has none of a model's end tokens in its last place."""
        return ~np.isin(self.token_ids[np.arange(len(self)), self.lengths - 1], list(end_token_ids))


def concatenate(parts: Sequence[Responses]) -> Responses:
    """Return the responses of all `parts` as one, padded to the longest."""
    width = max(part.token_ids.shape[1] for part in parts)
    token_ids = [np.pad(p.token_ids, ((0, 0), (0, width - p.token_ids.shape[1])), constant_values=-1) for p in parts]
    others = {
        field.name: np.concatenate([getattr(part, field.name) for part in parts])
        for field in fields(Responses)
        if field.name != "token_ids"
    }
    return Responses(token_ids=np.concatenate(token_ids), **others)
