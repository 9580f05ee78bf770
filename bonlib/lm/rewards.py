"""Reward models behind one small protocol: prompts and responses in, one number each out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from bonlib.lm.models import LoadedModel
from bonlib.lm.reading import scores
from bonlib.lm.samplers import Responses

Rewards = NDArray[np.float64]


class RewardModel(Protocol):
    """Anything that scores responses; higher is better, any scale."""

    @property
    def fingerprint(self) -> str:
        """A hash of all that a score depends on besides prompt and response."""
        ...

    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> Rewards:
        """Return the reward of each response to its prompt, shape (B,)."""
        ...


class ClassifierReward:
    """What a sequence classifier with one output, such as a Bradley–Terry reward model, says of prompt and response.

    One that stands on a causal language model reads a prompt once for all its responses.

    Args:
        loaded: the classifier.
        batch_size: texts it reads at once.
        suffix: what follows each response, such as the end token for a model that was trained to read its reward there.
    """

    outputs = 1

    def __init__(self, loaded: LoadedModel, *, batch_size: int = 256, suffix: str = "") -> None:
        if loaded.model.config.num_labels != self.outputs:
            raise ValueError(
                f"{loaded.name} has {loaded.model.config.num_labels} outputs; {type(self).__name__} takes a classifier "
                f"with {self.outputs}"
            )
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        self.loaded, self.batch_size, self.suffix = loaded, batch_size, suffix

    @property
    def fingerprint(self) -> str:
        """A hash of weights, tokenizer and suffix."""
        about = f"{self.loaded.fingerprint} {type(self).__name__}" + (f" {self.suffix}" if self.suffix else "")
        return hashlib.sha256(about.encode()).hexdigest()

    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> Rewards:
        """Return the reward of each prompt followed by its response, shape (B,).

        Raises:
            ValueError: if the lists differ in length, or a text is longer than the classifier's context.
        """
        pairs = list(zip(prompts, responses, strict=True))
        place = {pair: place for place, pair in enumerate(dict.fromkeys(pairs))}  # what is there twice is read once
        encoded = self._encode([prompt + response + self.suffix for prompt, response in place])
        prompt_ids = {prompt: self.loaded.tokenizer(prompt)["input_ids"] for prompt in dict.fromkeys(prompts)}
        # The border between prompt and response can change a token, so only what is really there counts as common.
        heads = [_common(prompt_ids[prompt], ids[:-1]) for (prompt, _), ids in zip(place, encoded, strict=True)]
        return self.score_tokens(encoded, heads)[[place[pair] for pair in pairs]]

    def score_texts(self, texts: Sequence[str]) -> Rewards:
        """Return the reward of whole texts, shape (B,)."""
        return self.score_tokens(self._encode(texts))

    def score_tokens(self, encoded: Sequence[list[int]], heads: Sequence[int] | None = None) -> Rewards:
        """Return the reward of texts given as token ids, shape (B,).

        Args:
            encoded: B lists of token ids, special tokens included.
            heads: (B,) tokens at the beginning of each text that others may begin with as well; none if not given.
        """
        found = scores(
            self.loaded.model,
            encoded,
            heads if heads is not None else [0] * len(encoded),
            batch_size=self.batch_size,
            pad_id=self.loaded.pad_token_id,
        )
        return self._rewards(found)

    def _rewards(self, outputs: Rewards) -> Rewards:
        """Rewards, shape (B,), from the classifier's outputs, shape (B, outputs)."""
        return outputs[:, 0]

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        encoded: list[list[int]] = self.loaded.tokenizer(list(texts))["input_ids"] if len(texts) else []
        for index, ids in enumerate(encoded):
            if not 0 < len(ids) <= self.loaded.context:
                raise ValueError(
                    f"text {index} has {len(ids)} tokens ({texts[index][:40]!r}…); {self.loaded.name} reads 1 to "
                    f"{self.loaded.context}: change it, or take a reward model with a longer context"
                )
        return encoded


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two texts begin with in common."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(first), len(second)))


class SentimentReward(ClassifierReward):
    """How positive prompt and response together read, by a sequence classifier of `transformers`.

    The reward of vBoN section 5: the probability of the positive class. The logit is there too; both rank alike.

    Args:
        loaded: a classifier with two classes, one of them called positive.
        output: which of the two numbers.
        batch_size: texts it reads at once.
    """

    outputs = 2

    def __init__(
        self, loaded: LoadedModel, *, output: Literal["probability", "logit"] = "probability", batch_size: int = 256
    ) -> None:
        if output not in ("probability", "logit"):
            raise ValueError(f"output is {output!r}; it must be 'probability' or 'logit'")
        labels = {index: label.lower() for index, label in loaded.model.config.id2label.items()}
        positive = [index for index, label in labels.items() if label.startswith("pos")]
        if len(labels) != 2 or (len(positive) != 1 and set(labels.values()) != {"label_0", "label_1"}):
            raise ValueError(
                f"{loaded.name} has the labels {list(labels.values())}; a judge of sentiment has two, one 'positive'"
            )
        super().__init__(loaded, batch_size=batch_size)
        self.positive = positive[0] if positive else 1
        self.output = output

    @property
    def fingerprint(self) -> str:
        """A hash of weights, tokenizer and kind of output."""
        return hashlib.sha256(f"{self.loaded.fingerprint} {self.output}".encode()).hexdigest()

    def _rewards(self, outputs: Rewards) -> Rewards:
        logits = outputs[:, self.positive] - outputs[:, 1 - self.positive]
        return logits if self.output == "logit" else np.asarray(expit(logits))


class FunctionReward:
    """Any Python function of a prompt and a response as a reward model.

    Args:
        function: takes a prompt and a response, returns a number.
        name: stands for the function in the store; change it whenever the function changes.
    """

    def __init__(self, function: Callable[[str, str], float], *, name: str) -> None:
        self.function, self.name = function, name

    @property
    def fingerprint(self) -> str:
        """A hash of the name."""
        return hashlib.sha256(f"function {self.name}".encode()).hexdigest()

    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> Rewards:
        """Return the function's value for each prompt and response, shape (B,)."""
        return np.array([self.function(p, r) for p, r in zip(prompts, responses, strict=True)], dtype=np.float64)


class CutPenalty:
    """Another reward model, less a fixed penalty for responses that were cut before their end token.

    Args:
        judge: of texts, which does not see whether there is an end token.
        end_token_ids: of the model that writes the responses.
        penalty: what a cut response loses, in units of reward, 0 or more.

    Source: Huang et al. 2024, detail 23 (their penalty is a fixed reward instead).
    """

    def __init__(self, judge: ClassifierReward, end_token_ids: Sequence[int], *, penalty: float) -> None:
        if not 0 <= penalty < np.inf:
            raise ValueError(f"penalty is {penalty}; it must be finite, 0 or more")
        self.judge, self.end_token_ids, self.penalty = judge, list(end_token_ids), penalty

    @property
    def loaded(self) -> LoadedModel:
        """The judge's model."""
        return self.judge.loaded

    @property
    def fingerprint(self) -> str:
        """A hash of judge, end tokens and penalty."""
        about = f"{self.judge.fingerprint} {self.end_token_ids} {self.penalty}"
        return hashlib.sha256(about.encode()).hexdigest()

    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> Rewards:
        """Return the reward of texts, which count as ended, shape (B,)."""
        return self.judge.score(prompts, responses)

    def score_responses(self, prompts: Sequence[str], responses: Responses) -> Rewards:
        """Return the reward of responses, shape (B,)."""
        rewards = self.judge.score(prompts, responses.texts.tolist())
        return rewards - self.penalty * responses.are_cut(self.end_token_ids)


def checked_score(reward_model: RewardModel, prompts: Sequence[str], responses: Responses | Sequence[str]) -> Rewards:
    """Return the rewards of responses, after checking that there is one finite number for each.

    Args:
        reward_model: one that looks at tokens has a `score_responses(prompts, responses)`, for `Responses`.
        prompts: of the responses, B.
        responses: B of them.

    Raises:
        ValueError: naming the prompt and response whose reward is not a finite number.
    """
    texts = responses.texts.tolist() if isinstance(responses, Responses) else list(responses)
    rewards: ArrayLike
    if isinstance(responses, Responses) and hasattr(reward_model, "score_responses"):
        rewards = reward_model.score_responses(prompts, responses)
    else:
        rewards = reward_model.score(prompts, texts)
    values = np.asarray(rewards, dtype=np.float64)
    if values.shape != (len(responses),):
        raise ValueError(
            f"the reward model returned shape {values.shape} for {len(responses)} responses; it must return one number "
            f"each, shape ({len(responses)},)"
        )
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        first = int(bad[0])
        raise ValueError(
            f"the reward model gave {values[first]} to {bad.size} of {len(values)} responses, the first to prompt "
            f"{prompts[first]!r}, response {texts[first]!r}: mend the reward model. The draws are kept"
        )
    return values
