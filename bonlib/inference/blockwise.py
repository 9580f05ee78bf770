"""Blockwise best-of-n: a choice among n after every few tokens, instead of one at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bonlib.bounds import kl_from_winner
from bonlib.checks import whole
from bonlib.estimates import best_of_n_kl

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
    from bonlib.draws.rewards import checked_score
    from bonlib.models.texts import response_texts

    n, block = whole("n", n, 1), whole("block", block, 1)
    m = whole("candidates", max(4 * n, 64) if candidates is None else candidates, n)
    loaded = sampler.loaded
    encoded = loaded.encode(prompts, settings.max_new_tokens)
    written: list[list[int]] = [[] for _ in prompts]
    rewards, kl, kl_from_winners = (np.zeros(len(prompts)) for _ in range(3))
    going_on = list(range(len(prompts)))
    seeds = iter(np.random.SeedSequence(seed).generate_state(settings.max_new_tokens).tolist())
    for start in range(0, settings.max_new_tokens, block):
        length = min(block, settings.max_new_tokens - start)
        heads = [encoded[i] + written[i] for i in going_on for _ in range(m)]
        drawn = sampler.sample_tokens(heads, replace(settings, max_new_tokens=length), seed=next(seeds))
        blocks = [row[row >= 0].tolist() for row in drawn.token_ids]
        rows = [i for i in going_on for _ in range(m)]
        texts = response_texts(
            loaded.tokenizer, [encoded[i] for i in rows], [written[i] + b for i, b in zip(rows, blocks, strict=True)]
        )
        # A block that came several times is scored once: cheaper, and its rewards are equal to the last digit.
        asked = list(zip([prompts[i] for i in rows], texts, strict=True))
        different = list(dict.fromkeys(asked))
        score_of = dict(zip(different, checked_score(reward_model, *zip(*different, strict=True)), strict=True))
        scores = np.array([score_of[pair] for pair in asked]).reshape(-1, m)
        log_probs = drawn.sampling_log_probs.reshape(-1, m)
        kept = scores[:, :n].argmax(axis=1)
        rewards[going_on] = scores[np.arange(len(kept)), kept]
        named = [list(map(tuple, blocks[place : place + m])) for place in range(0, len(blocks), m)]
        kl[going_on] += best_of_n_kl(scores, n, log_probs=log_probs, responses=named)
        kl_from_winners[going_on] += kl_from_winner(log_probs[np.arange(len(kept)), kept], n)
        for place, (i, choice) in enumerate(zip(going_on, kept, strict=True)):
            written[i] = written[i] + blocks[place * m + choice]
        going_on = [i for i in going_on if written[i][-1] not in loaded.end_token_ids]
        if not going_on:
            break
    return Blockwise(
        np.array(response_texts(loaded.tokenizer, encoded, written), dtype=object),
        np.array([len(tokens) for tokens in written]),
        rewards,
        kl,
        kl_from_winners,
    )
