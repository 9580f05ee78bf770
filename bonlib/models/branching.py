"""Decoding with checkpoints, at which it is decided which responses go on, and in how many copies.

A model whose cache was proved to bear it goes on from the cache of those that do; any other reads their texts again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bonlib.models.decoding import Decoded, Drawing, can_branch, follow
from bonlib.models.next_token import Law
from bonlib.models.ways import Ways

# Given B responses so far to each of P prompts, (P · B) rows: places among the B of those that go on, (P, B').
Decide = Callable[[Decoded], NDArray[np.intp]]


class Branched(NamedTuple):
    """What came of P prompts."""

    decoded: Decoded  # the B responses to each in the end, P · B rows
    drawn: NDArray[np.intp]  # (P,) tokens that were drawn, those of responses that were given up included
    read_again: NDArray[np.intp]  # (P,) tokens that the model read once more, as its cache could not be used


def decode_branching(
    model: Any,
    prompts: Sequence[Sequence[int]],
    law: Law,
    *,
    end_ids: Sequence[int],
    pad_id: int,
    uniforms: Tensor,
    generator: torch.Generator,
    checkpoints: Sequence[int],
    decide: Decide,
    ways: Ways,
) -> Branched:
    """Sample n responses to each of some prompts, which branch at checkpoints.

    Args:
        model: a `transformers` causal language model.
        prompts: P lists of token ids, which can be read together: see `bonlib.models.decoding.alike`.
        law: what the next token is drawn from.
        end_ids: tokens that end a response.
        pad_id: token to fill up with.
        uniforms: (P, n, T) random numbers in [0, 1), one for each token of a response that begins.
        generator: of those of further copies, while the first goes on with its own.
        checkpoints: numbers of tokens, ascending, below T.
        decide: says what goes on.
        ways: those of the task "branching" that are right for this model.
    """
    branching = _Branching(prompts, Drawing(law, uniforms.flatten(0, 1), end_ids=end_ids, pad_id=pad_id), generator)
    steps = uniforms.shape[2]
    if can_branch(ways):
        heads, to_come = branching.heads(branching.running(0)), list(checkpoints)

        def branch(rows: Tensor, step: int) -> tuple[Tensor, Tensor] | None:
            if step + 1 not in to_come:
                return None
            to_come.remove(step + 1)
            return _going_on(rows, branching.branch(decide))

        follow(model, heads, branching.drawing.choose, steps=steps, pad_id=pad_id, ways=ways, branch=branch)
        for _ in to_come:  # all have ended before
            branching.branch(decide)
    else:
        for begin, end in pairwise((0, *checkpoints, steps)):
            if begin:
                branching.branch(decide)
            if len(rows := branching.running(begin)):
                _stretch(model, branching, rows, begin, end, pad_id, ways)
    branching.count()
    return Branched(branching.drawing.decoded, branching.drawn, branching.read_again)


class _Branching:
    """Tables of the responses so far, the same number to each prompt, and what they have cost."""

    def __init__(self, prompts: Sequence[Sequence[int]], drawing: Drawing, generator: torch.Generator) -> None:
        self.prompts, self.drawing, self.generator = prompts, drawing, generator
        self.drawn, self.read_again = np.zeros((2, len(prompts)), dtype=np.intp)
        self.known = np.zeros(len(drawing.uniforms), dtype=np.intp)  # of each row, the tokens that are counted

    def count(self) -> None:
        """Count the tokens that were drawn since the last time."""
        lengths = self.drawing.decoded.lengths.cpu().numpy()
        self.drawn += (lengths - self.known).reshape(len(self.prompts), -1).sum(axis=1)
        self.known = lengths.copy()

    def branch(self, decide: Decide) -> Tensor:
        """Let the responses go on that are to; return which row each of them was."""
        self.count()
        drawing, width = self.drawing, len(self.known) // len(self.prompts)
        places = decide(drawing.decoded)
        sources = (places + width * np.arange(len(places))[:, None]).ravel()
        again = torch.from_numpy(np.flatnonzero(np.diff(sources, prepend=-1) == 0))
        fresh = torch.rand(len(again), drawing.uniforms.shape[1], generator=self.generator)
        self.known, rows = self.known[sources], torch.from_numpy(sources).to(drawing.uniforms.device)
        drawing.decoded = Decoded(*(table[rows] for table in drawing.decoded))
        drawing.uniforms = drawing.uniforms[rows].index_copy(0, again.to(rows.device), fresh.to(rows.device))
        return rows

    def running(self, begin: int) -> Tensor:
        """Return the rows whose responses go on after so many tokens."""
        tokens, lengths = self.drawing.decoded[:2]
        ended = torch.isin(tokens[:, begin - 1], self.drawing.ends) if begin else torch.zeros_like(lengths).bool()
        return ((lengths == begin) & ~ended).nonzero()[:, 0]

    def heads(self, rows: Tensor) -> list[list[int]]:
        """Return prompt and response so far of some rows."""
        width, tokens = len(self.known) // len(self.prompts), self.drawing.decoded.tokens[rows].tolist()
        lengths = self.drawing.decoded.lengths[rows].tolist()
        both = zip(rows.tolist(), tokens, lengths, strict=True)
        return [[*self.prompts[row // width], *said[:length]] for row, said, length in both]


def _going_on(rows: Tensor, sources: Tensor) -> tuple[Tensor, Tensor]:
    """Return what a `Branch` does, from the rows that went on so far, and which row each of the new ones was."""
    place = torch.full((int(max(rows.max(), sources.max())) + 1,), -1, device=rows.device)
    place[rows] = torch.arange(len(rows), device=rows.device)
    found = place[sources]
    names = (found >= 0).nonzero()[:, 0]  # the others have ended
    order = found[names].argsort(stable=True)
    return found[names][order], names[order]


def _stretch(model: Any, branching: _Branching, rows: Tensor, begin: int, end: int, pad_id: int, ways: Ways) -> None:
    """Go on with some rows up to the next checkpoint, from whole texts."""
    heads, width = branching.heads(rows), len(branching.known) // len(branching.prompts)
    if begin:
        np.add.at(branching.read_again, (rows // width).cpu().numpy(), list(map(len, heads)))

    def choose(logits: Tensor, places: Tensor, step: int) -> tuple[Tensor, Tensor]:
        return branching.drawing.choose(logits, rows[places], begin + step)

    follow(model, heads, choose, steps=end - begin, pad_id=pad_id, ways=ways)
