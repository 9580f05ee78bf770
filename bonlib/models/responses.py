"""Responses as tokens, text and log-probabilities: what draws are, and what is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from bonlib.checks import settle

UNKNOWN, UNKNOWN_END = -2, -3  # in place of tokens of which a server says only that they are there; −3 ends a response


@dataclass(frozen=True, eq=False)
class Responses:
    """Responses, one to each of B prompts.

    Attributes:
        texts: (B,) the responses as text, without the prompts, as an array of `str`: NumPy's own strings would lose
            NULs at the end.
        token_ids: (B, T) their tokens, −1 after the end. Of a server that does not say which they are UNKNOWN, with
            UNKNOWN_END in the last place unless the response was cut; of one that does not count them either, none.
        log_probs: (B,) log-probability of a response under the model (temperature 1, every token allowed), summed
            over its tokens including the end token; float64, nats; NaN where it is not known.
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
        """(B,) tokens of each response, the end token included; 0 where they are not counted."""
        return (self.token_ids != -1).sum(axis=1)

    @property
    def tokens_known(self) -> bool:
        """Whether it is known of every response which its tokens are."""
        return bool((self.lengths > 0).all() and (self.token_ids >= -1).all())

    def are_cut(self, end_token_ids: Sequence[int]) -> NDArray[np.bool_]:
        """(B,) whether a response has none of a model's end tokens in its last place.

        Raises:
            ValueError: if that is not known of one.
        """
        if not self.lengths.all():
            first = self.texts[int(np.argmin(self.lengths))]
            raise ValueError(
                f"responses has {first[:40]!r}, of which the server told neither tokens nor their number: whether it "
                "was cut is not known. Draw with seeded=True, one response a request"
            )
        return ~np.isin(self.token_ids[np.arange(len(self)), self.lengths - 1], [*end_token_ids, UNKNOWN_END])


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
