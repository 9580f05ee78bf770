"""Rewards from servers: of classifiers, of whatever answers a small JSON, and of a language model that judges."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bonlib.checks import one_of, shown, whole
from bonlib.draws.http import Server, ServerError, as_server
from bonlib.draws.rewards import Rewards, checked_rewards
from bonlib.draws.samplers import Sampler, SamplingSettings
from bonlib.models.responses import Responses

Keep = Callable[[NDArray[np.intp], Rewards], None]
NUMBER = r"(?:(?<![\w.)])-)?(?:\d+(?:\.\d+)?|(?<![\w.])\.\d+)"  # 7, -3.5 or .5; in 3-5 the sign is none


class ServedReward:
    """A reward model behind HTTP.

    What is sent to its address, and what must come back, for each `kind`:

    - "json", to the address itself: `{"prompts": [...], "responses": [...]}`, with `"model"` if there is one; back
      `{"rewards": [...]}`, a number for each. For a server of your own.
    - "classify", to /classify, as vLLM has it for sequence classifiers: prompt and response as one text; back
      `{"data": [{"probs": [...]}, ...]}`. Bradley–Terry models want `extra={"use_activation": False}`: their logit.
    - "score", to /score, as vLLM has it for cross-encoders: the pair; back `{"data": [{"score": ...}, ...]}`.

    Args:
        server: its address, such as http://localhost:8000, or a `Server`.
        model: its name. With the rest, but not the address, it is what stored rewards are known by; without a name the
            address is.
        kind: one of the above.
        label: of a classifier with several outputs, which one is the reward.
        batch_size: responses a request.
        extra: further fields of a request.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self,
        server: Server | str,
        model: str | None = None,
        *,
        kind: Literal["json", "classify", "score"] = "json",
        label: int | None = None,
        batch_size: int = 32,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        one_of("kind", kind, ("json", "classify", "score"))
        self.server, self.model, self.kind, self.extra = as_server(server), model, kind, dict(extra or {})
        self.label = None if label is None else whole("label", label)
        self.batch_size = whole("batch_size", batch_size, 1)

    def __repr__(self) -> str:
        return f"ServedReward({self.server!r}, {self.model!r}, kind={self.kind!r})"

    @property
    def fingerprint(self) -> str:
        """A hash of the model's name, or the address if it has none, and of how it is asked."""
        about = ["served", self.model or self.server.url, self.kind, self.label, self.extra]
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()

    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> Rewards:
        """Return the reward of each response to its prompt, shape (B,); errors as of `score_each`."""
        return _together(functools.partial(self.score_each, prompts, responses), len(responses))

    def score_each(self, prompts: Sequence[str], responses: Sequence[str], *, keep: Keep) -> None:
        """Score responses, and have the rewards that are there kept within a fraction of a second.

        Args:
            prompts: of each response.
            responses: B of them.
            keep: takes places among them and their rewards, here in the caller's thread.

        Raises:
            ServerError: if the server cannot be used; what came before is kept, and what is under way is waited for.
            BudgetError: before the budget would be passed.
            ValueError: if it gives something other than a finite number for each.
        """

        def ask(places: range) -> Rewards:
            some = [prompts[i] for i in places], [responses[i] for i in places]
            return self._ask(*some)

        def come(results: list[tuple[range, Rewards]]) -> Iterable[range]:
            for places, rewards in results:
                keep(np.array(places), rewards)
            return ()

        starts = range(0, len(responses), self.batch_size)
        jobs = [range(start, min(start + self.batch_size, len(responses))) for start in starts]
        self.server.gather(jobs, ask, come)

    def _ask(self, prompts: list[str], responses: list[str]) -> Rewards:
        path = {"json": "", "classify": "classify", "score": "score"}[self.kind]
        wholes = [prompt + response for prompt, response in zip(prompts, responses, strict=True)]
        body: dict[str, Any] = {
            "json": {"prompts": prompts, "responses": responses},
            "classify": {"input": wholes},
            "score": {"text_1": prompts, "text_2": responses},
        }[self.kind]
        named = {"model": self.model} if self.model else {}
        most = sum(len(text.encode()) + 8 for text in wholes)
        answer = self.server.post(path, {**named, **body, **self.extra}, most)
        try:
            if self.kind == "json":
                rewards = answer["rewards"]
            elif self.kind == "score":
                rewards = [row["score"] for row in _in_order(answer["data"])]
            else:
                rewards = [self._output(row["probs"]) for row in _in_order(answer["data"])]
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise ServerError(
                f"{self.server.url}/{path}: the answer holds no rewards ({type(error).__name__}: {error}) but "
                f"{shown(answer)}: is it a server of kind={self.kind!r}?"
            ) from None
        return checked_rewards(rewards, prompts, responses)

    def _output(self, outputs: Sequence[float]) -> float:
        if self.label is None and len(outputs) != 1:
            raise ServerError(
                f"{self.server.url}: the classifier has {len(outputs)} outputs: give label, the number of the one that "
                "is the reward"
            )
        return outputs[self.label or 0]


class Judge:
    """A language model that is asked how good a response is, and answers with a number.

    The first question is answered greedily. If the answer has no number in range, it is asked again, at temperature 1.

    Args:
        sampler: of the model that judges, such as a `ServedSampler` with chat=True; any sampler will do.
        template: the question, with {prompt} and {response} where they belong.
        parse: a regular expression whose last match is the number; its first group, if it has one.
        least: smallest number that counts as one.
        most: largest.
        max_new_tokens: longest answer.
        tries: how often a response is judged until an answer has a number.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self,
        sampler: Sampler,
        template: str,
        *,
        parse: str = NUMBER,
        least: float = -np.inf,
        most: float = np.inf,
        max_new_tokens: int = 256,
        tries: int = 3,
    ) -> None:
        if not hasattr(sampler, "sample"):
            raise ValueError(f"sampler is {shown(sampler)}; give ServedSampler(URL, MODEL, chat=True)")
        if not isinstance(template, str) or "{response}" not in template:
            raise ValueError(f"template is {shown(template)}; it must be a text with {{prompt}} and {{response}} in it")
        try:
            self.parse = re.compile(parse)
        except (re.error, TypeError) as error:
            raise ValueError(f"parse is {parse!r}; it must be a regular expression: {error}") from error
        if not least < most:
            raise ValueError(f"least is {least}, most is {most}; most must be larger")
        self.sampler, self.template, self.least, self.most = sampler, template, float(least), float(most)
        self.settings = SamplingSettings(max_new_tokens)
        self.tries = whole("tries", tries, 1)

    @property
    def fingerprint(self) -> str:
        """A hash of the model that judges, the question, and how the answer is read."""
        read = [self.parse.pattern, self.least, self.most, self.settings.max_new_tokens]
        return hashlib.sha256(json.dumps([self.sampler.fingerprint, self.template, *read]).encode()).hexdigest()

    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> Rewards:
        """Return the number that each response is given, shape (B,); errors as of `score_each`."""
        return _together(functools.partial(self.score_each, prompts, responses), len(responses))

    def score_each(self, prompts: Sequence[str], responses: Sequence[str], *, keep: Keep) -> None:
        """Judge responses, and have the rewards that are there kept; arguments as of `ServedReward.score_each`.

        Raises:
            ValueError: if no answer about a response has a number in range; the rewards of the others are kept.
        """
        asked = [self._question(*pair) for pair in zip(prompts, responses, strict=True)]
        unread = dict[int, str]()  # answers without a number
        left = list(range(len(asked)))

        def come(places: NDArray[np.intp], answers: Responses) -> None:
            said = zip([left[place] for place in places], answers.texts.tolist(), strict=True)
            numbers = [(place, answer, self._number(answer)) for place, answer in said]
            unread.update({place: answer for place, answer, value in numbers if value is None})
            read = {place: value for place, _, value in numbers if value is not None}
            if read:
                keep(np.array(list(read)), np.array(list(read.values())))

        for attempt in range(self.tries if left else 0):
            settings = self.settings if attempt else SamplingSettings(self.settings.max_new_tokens, top_k=1)
            questions, seeds = [asked[i] for i in left], [_seed(asked[i], attempt) for i in left]
            if hasattr(self.sampler, "sample_each"):
                self.sampler.sample_each(questions, settings, seed=seeds, keep=come)
            else:
                come(np.arange(len(left)), self.sampler.sample(questions, settings, seed=seeds))
            if not unread:
                return
            left, answers = list(unread), dict(unread)
            unread.clear()
        if left:
            first = left[0]
            raise ValueError(
                f"{self.sampler.name} gave no number from {self.least:g} to {self.most:g} to {len(left)} responses in "
                f"{self.tries} tries, the first to prompt {prompts[first]!r}, response {responses[first]!r}: it said "
                f"{answers[first]!r}. Change template, parse or max_new_tokens; the other rewards are kept"
            )

    def _question(self, prompt: str, response: str) -> str:
        parts = {"{prompt}": prompt, "{response}": response}
        return re.sub(r"\{prompt\}|\{response\}", lambda match: parts[match[0]], self.template)

    def _number(self, answer: str) -> float | None:
        """The number in an answer, None if there is none in range."""
        match = next(reversed(list(self.parse.finditer(answer))), None)
        try:
            value = float(match[match.re.groups and 1]) if match else np.nan
        except (ValueError, TypeError):
            return None
        return value if np.isfinite(value) and self.least <= value <= self.most else None


def _together(score_each: Callable[..., None], count: int) -> Rewards:
    rewards = np.full(count, np.nan)

    def keep(places: NDArray[np.intp], some: Rewards) -> None:
        rewards[places] = some

    score_each(keep=keep)
    return rewards


def _in_order(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: int(row["index"]))


def _seed(question: str, attempt: int) -> int:
    digest = hashlib.blake2b(f"{attempt} {question}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
