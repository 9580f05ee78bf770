"""What a file of prompts, responses and scores holds, whoever wrote it: one row a response."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bonlib.checks import shown
from bonlib.exact import Array

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Records:
    """Responses with their scores, R of them to P prompts, as many to each as there are.

    Rows of one prompt stand together, in the order of the file, which is taken for the order of drawing.

    Attributes:
        prompts: the P prompts, each once, as text; an identifier where the file has no text.
        prompt: (R,) which of them each row answers, ascending.
        responses: (R,) texts.
        scores: by name, (R,) each, finite, higher is better. The first is *the reward*; a second, if there is one, is
            taken for gold: what the reward stands for.
        log_probs: (R,) log-probability of each response under the model that drew it, nats, NaN where it is unknown;
            None if the file has none.
        lengths: (R,) tokens of each response, or its characters if the file does not say.
        in_tokens: which of the two.
        answers: (R,) what each response says in the end, for a vote; None where it says nothing, or if there are none.
        correct: (R,) whether that is right; None if the file does not say.
        messages: (P,) each prompt as a conversation, a list of messages with role and content; None if they are texts.
        runs: (P,) in how many places of the file each prompt stands: 1 if all rows of it stand together; None if it is
            not known.
        rows: (R,) where each came from, the line or row of its file, counted from 1.
        bad: rows that were kept apart, with the columns place, reason and row (its text, shortened).
        source: of what file.
        taken: what was taken for what: the format, and the column of each of these fields.
    """

    prompts: NDArray[np.object_]
    prompt: NDArray[np.intp]
    responses: NDArray[np.object_]
    scores: Mapping[str, Array]
    lengths: NDArray[np.intp]
    rows: NDArray[np.intp]
    bad: pd.DataFrame
    log_probs: Array | None = None
    in_tokens: bool = False
    answers: NDArray[np.object_] | None = None
    correct: NDArray[np.bool_] | None = None
    messages: list[Any] | None = None
    runs: NDArray[np.intp] | None = None
    source: str = ""
    taken: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.prompt)

    @property
    def reward(self) -> Array:
        """(R,) the first score.

        Raises:
            ValueError: if there is none.
        """
        if not self.scores:
            why = f" ({self.taken['reward']})" if "reward" in self.taken else ""
            raise ValueError(
                f"{shown(self.source)} has no score{why}: score it first (`bonlib score`), or name a column as reward"
            )
        return next(iter(self.scores.values()))

    @cached_property
    def counts(self) -> NDArray[np.intp]:
        """(P,) how many responses each prompt has."""
        return np.bincount(self.prompt, minlength=len(self.prompts))

    def blocks(self) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
        """Yield prompts of equally many responses together: which, (Q,), and where their rows are, (Q, m)."""
        begins = np.cumsum(self.counts) - self.counts
        for m in np.unique(self.counts):
            which = np.flatnonzero(self.counts == m)
            yield which, begins[which, None] + np.arange(m)

    def table(self) -> pd.DataFrame:
        """Return one row a response, with all that is known of it; the length, if it is in tokens."""
        import pandas as pd

        columns: dict[str, Any] = {"prompt": self.prompts[self.prompt], "response": self.responses, **self.scores}
        known: dict[str, Any] = {"log_prob": self.log_probs, "length": self.lengths if self.in_tokens else None}
        known |= {"answer": self.answers, "correct": self.correct}
        columns |= {name: values for name, values in known.items() if values is not None}
        return pd.DataFrame(columns)

    def __repr__(self) -> str:
        prompts, least, most = len(self.prompts), self.counts.min(), self.counts.max()
        each = f"{least}" if least == most else f"{least} to {most}"
        apart = f"; {len(self.bad)} row{'s' * (len(self.bad) > 1)} kept apart" if len(self.bad) else ""
        names = ", ".join(self.scores) or "no score"
        return f"{len(self)} responses, {each} to each of {prompts} prompt{'s' * (prompts > 1)}, with {names}{apart}"


def with_enough(records: Records, n: int) -> Iterator[NDArray[np.intp]]:
    """Yield rows of the prompts with n draws or more, (Q, m) each; the others are counted in a warning.

    Raises:
        ValueError: if none has so many.
    """
    few = int((records.counts < n).sum())
    if few == len(records.prompts):
        raise ValueError(f"n is {n}; {records.source} has at most {records.counts.max()} draws a prompt: lower it")
    if few:
        warnings.warn(f"{few} of {len(records.prompts)} prompts have fewer than {n} draws: left out", stacklevel=4)
    for _, rows in records.blocks():
        if rows.shape[1] >= n:
            yield rows
