"""Drawing responses from a language model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bonlib.checks import number, settle, strings, whole
from bonlib.models.decoding import Decoded, decode
from bonlib.models.loaded import LoadedModel
from bonlib.models.next_token import Law
from bonlib.models.responses import Responses, concatenate
from bonlib.models.texts import response_texts, token_ids


@dataclass(frozen=True)
class SamplingSettings:
    """From which distribution responses are drawn.

    Attributes:
        max_new_tokens: length at which a response is cut, in tokens, at least 1.
        temperature: divides the logits, above 0.
        top_p: the smallest set of next tokens with at least this probability is kept, in (0, 1].
        top_k: so many of the likeliest next tokens are kept; 0 for all.
        min_p: next tokens less likely than this share of the likeliest one's probability are left out, in [0, 1).
        stop: strings that end a response; its text ends before the first of them, its tokens with it.
    """

    max_new_tokens: int = 24
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        stop = strings("stop", (self.stop,) if isinstance(self.stop, str) else self.stop)
        if "" in stop:
            raise ValueError(f"stop is {self.stop!r}; an empty string would end every response: leave it out")
        settle(
            self,
            max_new_tokens=whole("max_new_tokens", self.max_new_tokens, 1, what="the length of a response"),
            temperature=float(number("temperature", self.temperature, above=0)),
            top_p=float(number("top_p", self.top_p, above=0, most=1)),
            top_k=whole("top_k", self.top_k),
            min_p=float(number("min_p", self.min_p, least=0, below=1)),
            stop=tuple(stop),
        )

    @property
    def plain(self) -> bool:
        """Whether responses are drawn from the model's own distribution; a stop string only ends them."""
        return (self.temperature, self.top_p, self.top_k, self.min_p) == (1.0, 1.0, 0, 0.0)

    @property
    def law(self) -> Law:
        """What the next token is drawn from."""
        return Law(self.temperature, self.top_p, self.top_k, self.min_p)

    def described(self) -> dict[str, Any]:
        """Return all fields by name, without those that came late and are as before: older draws keep their key."""
        late = {"top_k": 0, "min_p": 0.0, "stop": ()}
        return {name: value for name, value in asdict(self).items() if late.get(name, ...) != value}


class Sampler(Protocol):
    """Anything that draws responses to prompts.

    Three things it may have besides: `batch_size`, how many responses the store asks for at once;
    `prompt_lengths(prompts)`, by which it puts prompts of one length together; and `sample_each(prompts, settings,
    seed=, keep=)`, if responses come one by one and are paid for: it calls `keep(places, responses)` with some as soon
    as they are there, and the store writes them at once. Their log-probabilities may be NaN: not known.
    """

    @property
    def fingerprint(self) -> str:
        """A hash of all that the draws depend on besides prompts, settings and seed."""
        ...

    @property
    def name(self) -> str:
        """What people call it; for listings only."""
        ...

    def sample(self, prompts: Sequence[str], settings: SamplingSettings, *, seed: int | Sequence[int]) -> Responses:
        """Return one response to each prompt; list a prompt several times for several draws.

        The seed is one for the whole call, or one for each prompt listed: a response then follows from its own seed,
        and the others that it is drawn with change no more than the rounding.
        """
        ...


class TransformersSampler:
    """Draws from any causal language model of `transformers`."""

    def __init__(self, loaded: LoadedModel, *, batch_size: int = 256) -> None:
        if not isinstance(loaded, LoadedModel):
            raise ValueError(f"loaded is {loaded!r}; it must be a model: give load_language_model(NAME)")
        self.loaded = loaded
        self.batch_size = whole("batch_size", batch_size, 1)

    @property
    def fingerprint(self) -> str:
        """A hash of the model and of the batch size, which decides how random numbers are shared out."""
        return hashlib.sha256(f"{self.loaded.fingerprint} {self.batch_size}".encode()).hexdigest()

    @property
    def name(self) -> str:
        """Name of the model, with the commit if it came from the hub."""
        return self.loaded.name + (f"@{self.loaded.commit}" if self.loaded.commit else "")

    def prompt_lengths(self, prompts: Sequence[str]) -> list[int]:
        """Return how many tokens each prompt has."""
        return list(map(len, token_ids(self.loaded.tokenizer, prompts)))

    def sample(self, prompts: Sequence[str], settings: SamplingSettings, *, seed: int | Sequence[int]) -> Responses:
        """Return one response to each prompt.

        Args:
            prompts: at least one; list a prompt several times for several draws (it is read once).
            settings: length, temperature, top-p.
            seed: of all random numbers of this call, by which the same prompts get the same responses; or one for each
                prompt listed, by which a response is the same whatever it is drawn with, but for rounding.

        Raises:
            ValueError: if there is no prompt, or one is empty or too long for the model's context.
        """
        encoded = self.loaded.encode(prompts, settings.max_new_tokens)
        return self.sample_tokens(encoded, settings, seed=seed)

    def sample_tokens(
        self, encoded: Sequence[list[int]], settings: SamplingSettings, *, seed: int | Sequence[int]
    ) -> Responses:
        """Return one response to each prompt given as token ids, not empty and with room for the response."""
        uniforms = self.uniforms(seed, len(encoded), settings.max_new_tokens)
        starts = range(0, len(encoded), self.batch_size)
        batches = [slice(start, start + self.batch_size) for start in starts]
        return concatenate([self._batch(encoded[at], settings, uniforms[at]) for at in batches])

    def uniforms(self, seed: int | Sequence[int], rows: int, length: int) -> Tensor:
        """Return random numbers in [0, 1), (rows, length): each row's from its seed, or by batches from one for all."""
        if isinstance(seed, Sequence):
            return torch.from_numpy(split_mix(row_seeds(seed, rows), length))
        generator = torch.Generator()
        sizes = [min(self.batch_size, rows - start) for start in range(0, rows, self.batch_size)]
        seeds = np.random.SeedSequence(whole("seed", seed)).generate_state(len(sizes), np.uint64)
        batches = zip(sizes, seeds.tolist(), strict=True)
        return torch.cat([torch.rand(size, length, generator=generator.manual_seed(s >> 1)) for size, s in batches])

    def _batch(self, encoded: Sequence[list[int]], settings: SamplingSettings, uniforms: Tensor) -> Responses:
        decoded = decode(
            self.loaded.model,
            encoded,
            settings.law,
            end_ids=self.loaded.end_token_ids,
            pad_id=self.loaded.pad_token_id,
            uniforms=uniforms,
        )
        return as_responses(self.loaded.tokenizer, encoded, decoded, settings.stop)


def as_responses(tokenizer: Any, prompts: Sequence[list[int]], decoded: Decoded, stop: Sequence[str] = ()) -> Responses:
    """Return what was decoded behind B prompts, up to the first of some strings, with its texts."""
    drawn = zip(decoded.tokens.cpu().tolist(), decoded.lengths.tolist(), strict=True)
    rows = [row[:length] for row, length in drawn]
    texts, lengths = stopped_texts(tokenizer, prompts, rows, stop)
    token_ids = decoded.tokens.cpu().numpy().astype(np.int32)
    kept = np.arange(token_ids.shape[1]) < np.array(lengths)[:, None]
    token_ids[~kept] = -1
    log_probs, sampling_log_probs = (
        np.where(kept, table.cpu().double().numpy(), 0.0).sum(axis=1)
        for table in (decoded.log_probs, decoded.sampling_log_probs)
    )
    return Responses(np.array(texts, dtype=object), token_ids, log_probs, sampling_log_probs)


def row_seeds(seed: int | Sequence[int], rows: int) -> list[int]:
    """Return a seed for each row of a call: those given, or as many made of one.

    Raises:
        ValueError: if there are not as many as rows, or one is out of range.
    """
    if not isinstance(seed, Sequence):
        words = np.random.SeedSequence(whole("seed", seed)).generate_state(rows, np.uint64)
        return [word >> 1 for word in words.tolist()]
    seeds = [whole("seed", each, 0, 2**63 - 1) for each in seed]
    if len(seeds) != rows:
        raise ValueError(f"seed has {len(seeds)} numbers for {rows} prompts; give one number, or one for each prompt")
    return seeds


def split_mix(seeds: Sequence[int], length: int) -> NDArray[np.float32]:
    """Return random numbers in [0, 1), (B, length): each row from its seed alone.

    PyTorch's generator takes 32 bits of a seed, so that of 100,000 rows some would be the same.

    Args:
        seeds: B numbers below 2⁶⁴ that are random themselves.
        length: numbers a row.

    Source: Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators", Figure 17 (SplitMix64).
    """
    step = np.arange(1, length + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed = np.array(seeds, dtype=np.uint64)[:, None] + step
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    return (mixed >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)


def stopped_texts(
    tokenizer: Any, prompts: Sequence[list[int]], responses: Sequence[list[int]], stop: Sequence[str]
) -> tuple[list[str], list[int]]:
    """Return responses up to the first of some strings, as texts without it, and how many tokens make each whole.

    What is drawn after the string changes nothing: the same tokens come with the same probability as if drawing had
    stopped there.
    """
    texts, lengths = response_texts(tokenizer, prompts, responses), list(map(len, responses))
    for place, text in enumerate(texts):
        begins = [begin for string in stop if (begin := text.find(string)) >= 0]
        if begins:
            texts[place] = text[: min(begins)]
            response = responses[place]
            for length in range(1, len(response)):
                (part,) = response_texts(tokenizer, [prompts[place]], [response[:length]])
                if any(string in part for string in stop):
                    lengths[place] = length
                    break
    return texts, lengths
