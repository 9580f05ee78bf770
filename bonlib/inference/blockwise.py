"""Blockwise best-of-n: a choice among n after every few tokens, instead of one at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bonlib.bounds import kl_from_winner
from bonlib.checks import whole
from bonlib.estimates import best_of_n_kl
from bonlib.exact import Array
from bonlib.inference.rules import register
from bonlib.inference.steered import Judged, steer
from bonlib.inference.tree_best_of_n import TreeBestOfN

if TYPE_CHECKING:
    from bonlib.draws.rewards import RewardModel
    from bonlib.draws.samplers import SamplingSettings, TransformersSampler


class Blockwise(NamedTuple):
    """What blockwise best-of-n wrote, one response to each of P prompts, and what it cost in KL.

    Attributes:
        texts: (P,) the responses.
        lengths: (P,) their tokens, the end token included.
        rewards: (P,) of the whole responses.
        kl: (P,) estimated KL of each block's choice to the reference given what was before, summed over the blocks; its
            mean over responses estimates the KL of the blockwise policy, nats.
        kl_from_winners: (P,) sum of K̂_n of the blocks that were kept, on average an upper bound, nats.
    """

    texts: NDArray[np.object_]
    lengths: NDArray[np.intp]
    rewards: NDArray[np.float64]
    kl: NDArray[np.float64]
    kl_from_winners: NDArray[np.float64]


@dataclass(frozen=True)
class _BestBlock:
    """The `Steering` by which the best of the first `competing` of n blocks goes on, and n more begin behind it."""

    n: int
    checkpoints: tuple[int, ...]
    competing: int

    def go_on(self, scores: Array, before: Array, generator: np.random.Generator) -> NDArray[np.intp]:
        return np.repeat(self.pick(scores, before, generator)[:, None], self.n, axis=1)

    def pick(self, rewards: Array, before: Array, generator: np.random.Generator) -> NDArray[np.intp]:
        return rewards[:, : self.competing].argmax(axis=1)


def blockwise_best_of_n(
    sampler: TransformersSampler,
    reward_model: RewardModel,
    prompts: Sequence[str],
    n: int,
    block: int,
    settings: SamplingSettings,
    *,
    seed: int,
    candidates: int | None = None,
) -> Blockwise:
    """Write one response to each prompt: n blocks are drawn, the one whose text so far is best is kept, and so on.

    Args:
        sampler: draws the blocks.
        reward_model: judges prompt and unfinished response.
        prompts: P of them; list a prompt several times for several responses.
        n: draws for each block, at least 1.
        block: tokens in a block, at least 1; with that of a whole response it is best-of-n.
        settings: length of a response, temperature, top-p.
        seed: of all draws.
        candidates: draws from which each block's KL is estimated, the first n of which compete; 4n and at least 64 if
            None. With few of them the estimate is some per cent too low for blocks of which some repeat.

    Raises:
        ValueError: if an argument is out of range or a reward is not finite.

    Source: Mudgal et al. 2024; Beirami et al., appendix B.
    """
    n, block = whole("n", n, 1), whole("block", block, 1)
    m = whole("candidates", max(4 * n, 64) if candidates is None else candidates, n)
    kl, kl_from_winners = np.zeros((2, len(prompts)))

    def measure(judged: Judged) -> None:
        tokens, lengths, _, log_probs = (table.cpu().double().numpy() for table in judged.responses)
        of_block = log_probs[:, judged.begun :].sum(axis=1).reshape(-1, m)
        rows = zip(tokens.tolist(), lengths.astype(int).tolist(), strict=True)
        blocks = [tuple(row[judged.begun : length]) for row, length in rows]
        named = [blocks[place : place + m] for place in range(0, len(blocks), m)]
        places, winners = list(judged.prompts), np.take_along_axis(of_block, judged.kept[:, :1], axis=1)[:, 0]
        kl[places] += best_of_n_kl(judged.scores, n, log_probs=of_block, responses=named)
        kl_from_winners[places] += kl_from_winner(winners, n)

    rule = _BestBlock(m, tuple(range(block, settings.max_new_tokens, block)), n)
    found = steer(sampler, reward_model, prompts, rule, settings, seed=seed, watch=measure)
    return Blockwise(found.responses.texts, found.responses.lengths, found.rewards, kl, kl_from_winners)


register(
    name="blockwise",
    make=lambda n, checkpoints: TreeBestOfN(n, 1, n, checkpoints),
    label="blockwise best-of-n",
    keeps="the best of n beginnings, then of n ways in which it goes on, and so on",
    costs="tokens of n responses, and a reward call for each at each checkpoint",
    source="Mudgal et al. 2024",
    place=60.5,
)
