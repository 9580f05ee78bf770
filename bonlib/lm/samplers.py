"""Drawing responses from a language model, and choosing among them: best-of-n and its control, random-of-n."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from bonlib.lm.decoding import decode
from bonlib.lm.models import LoadedModel


@dataclass(frozen=True)
class SamplingSettings:
    """From which distribution responses are drawn.

    Attributes:
        max_new_tokens: length at which a response is cut, in tokens, at least 1.
        temperature: divides the logits, above 0.
        top_p: the smallest set of next tokens with at least this probability is kept, in (0, 1].
    """

    max_new_tokens: int = 24
    temperature: float = 1.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}; a response needs at least 1 token")
        if not 0 < self.temperature < np.inf:
            raise ValueError(f"temperature is {self.temperature}; it must be positive and finite")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must be above 0 and at most 1")

    @property
    def plain(self) -> bool:
        """Whether responses are drawn from the model's own distribution."""
        return (self.temperature, self.top_p) == (1.0, 1.0)


@dataclass(frozen=True, eq=False)
class Responses:
    """Responses, one to each of B prompts.

    Attributes:
        texts: (B,) the responses as text, without the prompts.
        token_ids: (B, T) their tokens, −1 after the end.
        log_probs: (B,) log-probability of a response under the model (temperature 1, every token allowed), summed
            over its tokens including the end token; float64, nats.
        sampling_log_probs: (B,) the same under the distribution that was sampled from.
    """

    texts: NDArray[np.str_]
    token_ids: NDArray[np.int32]
    log_probs: NDArray[np.float64]
    sampling_log_probs: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, places: Sequence[int] | slice) -> Responses:
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


class Sampler(Protocol):
    """Anything that draws responses to prompts."""

    @property
    def fingerprint(self) -> str:
        """A hash of all that the draws depend on besides prompts, settings and seed."""
        ...

    @property
    def name(self) -> str:
        """What people call it; for listings only."""
        ...

    def sample(self, prompts: Sequence[str], settings: SamplingSettings, *, seed: int) -> Responses:
        """Return one response to each prompt; list a prompt several times for several draws."""
        ...


class TransformersSampler:
    """Draws from any causal language model of `transformers`."""

    def __init__(self, loaded: LoadedModel, *, batch_size: int = 256) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        self.loaded = loaded
        self.batch_size = batch_size

    @property
    def fingerprint(self) -> str:
        """A hash of the model and of the batch size, which decides how random numbers are shared out."""
        return hashlib.sha256(f"{self.loaded.fingerprint} {self.batch_size}".encode()).hexdigest()

    @property
    def name(self) -> str:
        """Name of the model, with the commit if it came from the hub."""
        return self.loaded.name + (f"@{self.loaded.commit}" if self.loaded.commit else "")

    def sample(self, prompts: Sequence[str], settings: SamplingSettings, *, seed: int) -> Responses:
        """Return one response to each prompt.

        Args:
            prompts: at least one; list a prompt several times for several draws (it is read once).
            settings: length, temperature, top-p.
            seed: of all random numbers of this call; the same seed and prompts give the same responses.

        Raises:
            ValueError: if there is no prompt, or one is empty or too long for the model's context.
        """
        encoded = encode_prompts(self.loaded.tokenizer, self.loaded.context, prompts, settings.max_new_tokens)
        return self.sample_tokens(encoded, settings, seed=seed)

    def sample_tokens(self, encoded: Sequence[list[int]], settings: SamplingSettings, *, seed: int) -> Responses:
        """Return one response to each prompt given as token ids, not empty and with room for the response."""
        starts = range(0, len(encoded), self.batch_size)
        seeds = np.random.SeedSequence(seed).generate_state(len(starts), np.uint64)
        return concatenate(
            [
                self._batch(encoded[start : start + self.batch_size], settings, int(batch_seed >> 1))
                for start, batch_seed in zip(starts, seeds, strict=True)
            ]
        )

    def _batch(self, encoded: Sequence[list[int]], settings: SamplingSettings, seed: int) -> Responses:
        tokenizer = self.loaded.tokenizer
        decoded = decode(
            self.loaded.model,
            encoded,
            max_new_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            top_p=settings.top_p,
            end_ids=self.loaded.end_token_ids,
            pad_id=tokenizer.pad_token_id,
            generator=torch.Generator().manual_seed(seed),
        )
        lengths = decoded.lengths.cpu().numpy()
        token_ids = decoded.tokens.cpu().numpy().astype(np.int32)
        token_ids[np.arange(token_ids.shape[1]) >= lengths[:, None]] = -1
        texts = response_texts(tokenizer, encoded, [row[row >= 0].tolist() for row in token_ids])
        return Responses(
            np.array(texts, dtype=np.str_),
            token_ids,
            decoded.log_probs.cpu().double().numpy(),
            decoded.sampling_log_probs.cpu().double().numpy(),
        )


def encode_prompts(tokenizer: Any, context: int, prompts: Sequence[str], max_new_tokens: int) -> list[list[int]]:
    """Return the token ids of each prompt, or raise a ValueError that names the one which does not fit."""
    if isinstance(prompts, str) or len(prompts) == 0:
        raise ValueError(f"prompts is {prompts!r}; it must be a list of at least one prompt")
    room = context - max_new_tokens
    known = {prompt: tokenizer(prompt)["input_ids"] for prompt in dict.fromkeys(prompts)}
    for prompt, ids in known.items():  # some tokenizers end every text, but this one is to be continued
        if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id and not prompt.endswith(tokenizer.eos_token):
            known[prompt] = ids[:-1]
    for index, prompt in enumerate(prompts):
        if not known[prompt]:
            raise ValueError(f"prompts[{index}] is {prompt!r}, which has no tokens: give it at least one character")
        if len(known[prompt]) > room:
            raise ValueError(
                f"prompts[{index}] ({prompt[:40]!r}…) has {len(known[prompt])} tokens; with {max_new_tokens} new "
                f"ones the model's context of {context} leaves {room}: shorten it or max_new_tokens"
            )
    return [known[prompt] for prompt in prompts]


def response_texts(tokenizer: Any, prompts: Sequence[list[int]], responses: Sequence[list[int]]) -> list[str]:
    """Return the responses as text.

    Prompt and response are decoded together and the prompt cut off, since some tokenizers drop the space at the
    beginning of a text.
    """
    options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    heads = tokenizer.batch_decode(list(prompts), **options)
    whole = tokenizer.batch_decode([p + r for p, r in zip(prompts, responses, strict=True)], **options)
    return [text.removeprefix(head) for text, head in zip(whole, heads, strict=True)]


def best_of_n(rewards: ArrayLike, n: int) -> NDArray[np.intp]:
    """Return which draws best-of-n keeps, from m draws a prompt cut into m // n groups of n.

    Args:
        rewards: of the draws, shape (prompts, m), finite, with m >= n.
        n: draws to choose among, a whole number, at least 1.

    Returns:
        Indices of the kept draws, shape (prompts, m // n): the first of the best in each group, as an argmax over
        i.i.d. draws has it.

    Raises:
        ValueError: if `n` is out of range or a reward is not finite.
    """
    groups = _groups(rewards, n)
    return groups.argmax(axis=2) + n * np.arange(groups.shape[1])


def random_of_n(rewards: ArrayLike, n: int, *, seed: int) -> NDArray[np.intp]:
    """Return a random draw of each of the groups that `best_of_n` chooses from: the control without a reward.

    Arguments as in `best_of_n`; `seed` decides the choice.
    """
    groups = _groups(rewards, n)
    choice = np.random.default_rng(seed).integers(n, size=groups.shape[:2])
    return choice + n * np.arange(groups.shape[1])


def soft_best_of_n(rewards: ArrayLike, n: int, temperature: float, *, seed: int) -> NDArray[np.intp]:
    """Return which draws soft best-of-n keeps: of each n, one with probability ∝ exp(reward / temperature).

    Args:
        rewards: as in `best_of_n`.
        n: draws to choose among.
        temperature: λ > 0 in units of reward; towards 0 it is best-of-n, towards infinity random-of-n.
        seed: of the choice.

    Returns:
        Indices of the kept draws, shape (prompts, m // n).

    Raises:
        ValueError: if `n` or `temperature` is out of range, or a reward is not finite.

    Source: Verdun et al. 2025.
    """
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be positive (its limit 0 is best_of_n)")
    groups = _groups(rewards, n)
    gumbel = np.random.default_rng(seed).gumbel(size=groups.shape)
    # The largest of scores with Gumbel noise is a draw from their softmax.
    with np.errstate(over="ignore"):
        advantage = (groups - groups.max(axis=2, keepdims=True)) / temperature
    return (advantage + gumbel).argmax(axis=2) + n * np.arange(groups.shape[1])


def _groups(rewards: ArrayLike, n: int) -> NDArray[np.float64]:
    table = np.asarray(rewards, dtype=np.float64)
    if table.ndim != 2:
        raise ValueError(f"rewards has shape {table.shape}; it must be (prompts, draws)")
    if not np.isfinite(table).all():
        prompt, draw = np.argwhere(~np.isfinite(table))[0]
        raise ValueError(f"rewards[{prompt}, {draw}] is {table[prompt, draw]}; drop or repair that response")
    if not 1 <= n <= table.shape[1] or n != int(n):
        raise ValueError(f"n is {n}; with {table.shape[1]} draws a prompt it must be a whole number from 1 to that")
    n = int(n)
    count = table.shape[1] // n
    return table[:, : count * n].reshape(len(table), count, n)
