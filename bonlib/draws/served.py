"""Draws from a model that another program serves, by the API that OpenAI made and most servers speak."""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bonlib.checks import LOG_PROB_SLACK, flag, one_of, shown, strings, whole
from bonlib.draws.http import Server, ServerError, as_server
from bonlib.draws.samplers import SamplingSettings, row_seeds
from bonlib.models.responses import UNKNOWN, UNKNOWN_END, Responses, concatenate

Keep = Callable[[NDArray[np.intp], Responses], None]
Kind = Literal["vllm", "llamacpp", "transformers", "openai"]
MOST_AT_ONCE = 16  # responses asked for in one request, where draws have no seeds of their own


class ServedSampler:
    """Draws from a served model.

    A server has settings of its own for what a request does not say, often a top-k or a penalty. Of `kind` vllm,
    llamacpp and transformers it is known how to switch them off, so that the law is the one asked for; of another look
    it up, and switch them off in `extra`.

    Args:
        server: its base address, such as http://localhost:8000/v1, or a `Server`, which has key, concurrency, timeout
            and budget.
        model: name by which the server knows the model; the only one that it lists if None.
        chat: whether a prompt is a user's turn, which the server puts into the model's chat template.
        system: what the conversation begins with, if `chat`.
        kind: of server; what it says of itself if None, and "openai" if it says nothing known.
        log_probs: of what the log-probabilities that it gives are, at another temperature than 1 or with tokens left
            out, where it matters: "model" (vLLM as it comes, llama.cpp, Ollama) or "law", the distribution that is
            drawn from (vLLM with --logprobs-mode processed_logprobs, SGLang). If None, they are then not taken, and at
            temperature 1 they are. With "none" they are not asked for, as some models refuse that.
        seeded: whether each draw is asked for alone, with its own seed, and comes again if the server keeps to it. If
            not, up to 16 draws of a prompt come by one request, which is cheaper where a prompt is paid for each time.
            By default those of kind "openai" do so, as hosted models seldom keep to a seed, and no others.
        extra: further fields of a request, which go before those made here; None leaves one out.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self,
        server: Server | str,
        model: str | None = None,
        *,
        chat: bool = False,
        system: str = "",
        kind: Kind | None = None,
        log_probs: Literal["model", "law", "none"] | None = None,
        seeded: bool | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        if kind is not None:
            one_of("kind", kind, ("vllm", "llamacpp", "transformers", "openai"))
        if log_probs is not None:
            one_of("log_probs", log_probs, ("model", "law", "none"))
        if system and not chat:
            raise ValueError(f"system is {shown(system)}; only a conversation begins with it: give chat=True")
        self.server, self.chat, self.system = as_server(server), flag("chat", chat), system
        self.log_probs, self.extra = log_probs, dict(extra or {})
        self._model, self._kind, self._seeded = model, kind, seeded

    def __repr__(self) -> str:
        return f"ServedSampler({self.server!r}, {self._model!r})"

    @cached_property
    def _listed(self) -> dict[str, str]:
        """The models that the server lists, and what it says it is for each."""
        try:
            found = self.server.get("models")
            return {str(each["id"]): str(each.get("owned_by")) for each in found["data"]}
        except (KeyError, TypeError, AttributeError) as error:
            raise ServerError(f"{self.server.url}/models: no list of models but {shown(found)}: give kind=") from error
        except ServerError as error:
            if not error.status:
                raise
            if self._model is None:
                raise ServerError(f"{error}; or give the model's name, and kind") from None
            return {}  # it has no such list, and need not

    @cached_property
    def model(self) -> str:
        """Name by which the server knows the model."""
        if self._model is None and len(self._listed) != 1:
            raise ServerError(f"{self.server.url}/models lists {list(self._listed)}: give the name of one as model")
        return self._model or next(iter(self._listed))

    @cached_property
    def kind(self) -> str:
        """The kind of server."""
        said = self._kind or self._listed.get(self.model, "")
        return said if said in ("vllm", "llamacpp", "transformers") else "openai"

    @property
    def name(self) -> str:
        """Name of the model, as the server knows it."""
        return f"{self.model}, served"

    @property
    def fingerprint(self) -> str:
        """A hash of the model's name and of how it is asked, not of the address: a server that moves has its draws."""
        about = ["served", self.model, self.chat, self.system, self.extra]
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()

    def sample(self, prompts: Sequence[str], settings: SamplingSettings, *, seed: int | Sequence[int]) -> Responses:
        """Return one response to each prompt, (B,); arguments as of `TransformersSampler.sample`, errors as below."""
        parts = list[tuple[NDArray[np.intp], Responses]]()
        self.sample_each(prompts, settings, seed=seed, keep=lambda *part: parts.append(part))
        order = np.argsort(np.concatenate([places for places, _ in parts]))
        return concatenate([responses for _, responses in parts])[order]

    def sample_each(
        self, prompts: Sequence[str], settings: SamplingSettings, *, seed: int | Sequence[int], keep: Keep
    ) -> None:
        """Draw one response to each prompt, and have those that are there kept within a fraction of a second.

        Args:
            prompts: B of them, not empty.
            settings: the law. A `top_k` of 1 is asked for as temperature 0, which every server knows.
            seed: of all draws, or one for each.
            keep: takes places among the prompts and the responses to these, here in the caller's thread.

        Raises:
            ServerError: if the server cannot be used; what came before is kept, and what is under way is waited for.
            BudgetError: before the budget would be passed.
        """
        prompts = strings("prompts", prompts, least=1)
        seeds = row_seeds(seed, len(prompts))
        by_prompt: dict[str, list[int]] = {}
        for place, prompt in enumerate(prompts):
            by_prompt.setdefault(prompt, []).append(place)
        most = 1 if (self.kind != "openai" if self._seeded is None else self._seeded) else MOST_AT_ONCE
        jobs = [tuple(some[at : at + most]) for some in by_prompt.values() for at in range(0, len(some), most)]
        if self.log_probs is None and not settings.plain and settings.top_k != 1:  # a judge is asked greedily
            warnings.warn(
                f"log-probabilities at {settings} are not taken from {self.name}: it is not said whether they are of "
                "the model or of the law drawn from. Say log_probs='model' or 'law'",
                stacklevel=2,
            )

        def draw(places: tuple[int, ...]) -> Responses:
            return self._ask(prompts[places[0]], settings, len(places), seeds[places[0]])

        def come(results: list[tuple[tuple[int, ...], Responses]]) -> list[tuple[int, ...]]:
            places = [place for job, responses in results for place in job[: len(responses)]]
            keep(np.array(places), concatenate([responses for _, responses in results]))
            return [job[len(responses) :] for job, responses in results if len(responses) < len(job)]

        self.server.gather(jobs, draw, come)

    def _ask(self, prompt: str, settings: SamplingSettings, n: int, seed: int) -> Responses:
        """Up to n responses to a prompt; a server may give fewer than it was asked for."""
        path = "chat/completions" if self.chat else "completions"
        # No token has less than a byte; those that a chat template adds are some tens.
        most = len((self.system + prompt).encode()) + (256 if self.chat else 8) + n * settings.max_new_tokens
        try:
            answer = self.server.post(path, self._body(prompt, settings, n, seed), most)
        except ServerError as error:
            if error.status not in (400, 404, 422):
                raise
            try:
                listed = f"; the server lists {list(self._listed)}" if self._listed else ""
            except ServerError:
                listed = ""
            raise ServerError(f"{error}; asked was the model {self.model!r}{listed}", error.status) from None
        try:
            choices = answer["choices"][:n]
            tokens = (answer.get("usage") or {}).get("completion_tokens") if n == 1 else None
            rows = [self._read(choice, settings, tokens and whole("completion_tokens", tokens)) for choice in choices]
            return _responses(rows)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise ServerError(
                f"{self.server.url}/{path}: the answer is no completion ({type(error).__name__}: {error}) but "
                f"{shown(answer)}: is this a server of OpenAI's API?"
            ) from None

    def _body(self, prompt: str, settings: SamplingSettings, n: int, seed: int) -> dict[str, Any]:
        greedy = settings.top_k == 1
        others = {"top_k": settings.top_k, "min_p": settings.min_p}
        neutral: dict[str, dict[str, Any]] = {
            "vllm": {**others, "repetition_penalty": 1.0, "return_token_ids": True},
            "llamacpp": {**others, "repeat_penalty": 1.0},
            "transformers": {"generation_config": json.dumps({"do_sample": True, **others})},
            "openai": {name: value for name, value in others.items() if value and not greedy},
        }
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": settings.max_new_tokens,
            "temperature": 0.0 if greedy else settings.temperature,
            "top_p": settings.top_p,
            "stop": list(settings.stop) or None,
            "n": n if n > 1 else None,
            "seed": seed % 2**31,  # servers differ in how large a one they take
            **neutral[self.kind],
        }
        if self.chat:
            system = [{"role": "system", "content": self.system}] if self.system else []
            body["messages"] = [*system, {"role": "user", "content": prompt}]
        else:
            body["prompt"] = prompt
        if self.log_probs != "none":
            body["logprobs"] = True if self.chat else 1
        return {name: value for name, value in {**body, **self.extra}.items() if value is not None}

    def _read(self, choice: Any, settings: SamplingSettings, tokens: int | None) -> tuple[str, list[int], float, float]:
        """A response, its tokens or what stands for them, and its log-probabilities under model and law."""
        text = (choice["message"]["content"] or "") if self.chat else choice["text"]
        if not isinstance(text, str):
            raise TypeError(f"its text is {shown(text)}")
        ids, entries = choice.get("token_ids"), _entries(choice.get("logprobs") or {})
        ids = [whole("a token", each) for each in ids or [id for *_, id in entries if id is not None]]
        whole_text = "".join(token for token, _, _ in entries)
        ended = choice["finish_reason"] != "length"
        begins = sorted((text.find(string), string) for string in settings.stop if string in text)
        if begins:  # the server left the string in the text, and may have gone on after it
            (begin, string), *_ = begins
            tokens = tokens if begin + len(string) == len(text) else None
            text, ended, until = text[:begin], True, _until(settings.stop, [token for token, _, _ in entries])
            entries, ids = entries[:until], ids[:until]
        count = len(ids) or tokens or len(entries)
        if count > settings.max_new_tokens:
            raise ValueError(f"it has {count} tokens, and {settings.max_new_tokens} were asked for")
        # Some servers leave out the token that ended it, and with it a factor of the probability.
        complete = not ended or ids or begins or whole_text != text or entries[-1][0] == ""
        known = entries and len(entries) == count and complete and self.log_probs != "none"
        said = math.fsum(log_prob for _, log_prob, _ in entries) if known else math.nan
        if math.isinf(said) or said > LOG_PROB_SLACK:
            raise ValueError(f"its log-probability is {said}")
        said = min(said, 0.0) if known else said
        of_model = said if settings.plain or self.log_probs == "model" else math.nan
        of_law = said if settings.plain or self.log_probs == "law" else math.nan
        if len(ids) != count:
            ids = [UNKNOWN] * (count - 1) + [UNKNOWN_END if ended else UNKNOWN] if count else []
        return text, ids, of_model, of_law


def _entries(log_probs: Any) -> list[tuple[str, float, int | None]]:
    """The tokens of a response as text, their log-probabilities, NaN if not said, and their numbers, None if not."""
    if "content" in log_probs:  # conversations, and all of llama.cpp
        rows = [(each["token"], each["logprob"], each.get("id")) for each in log_probs["content"] or []]
    else:
        pairs = zip(log_probs.get("tokens") or [], log_probs.get("token_logprobs") or [], strict=True)
        rows = [(token, log_prob, None) for token, log_prob in pairs]
    return [(str(token), math.nan if value is None else float(value), number) for token, value, number in rows]


def _until(stop: Sequence[str], tokens: Sequence[str]) -> int:
    """How many tokens it takes for one of some strings to be whole; 0 if it is in none."""
    text = ""
    for count, token in enumerate(tokens, 1):
        text += token
        if any(string in text for string in stop):
            return count
    return 0


def _responses(rows: Sequence[tuple[str, list[int], float, float]]) -> Responses:
    if not rows:
        raise ValueError("it has no choices")
    texts, ids, log_probs, sampling_log_probs = zip(*rows, strict=True)
    token_ids = np.full((len(rows), max(1, *map(len, ids))), -1, dtype=np.int32)
    for row, each in zip(token_ids, ids, strict=True):
        row[: len(each)] = each
    return Responses(np.array(texts, dtype=object), token_ids, np.array(log_probs), np.array(sampling_log_probs))
