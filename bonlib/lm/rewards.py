"""Reward models behind one small protocol: prompts and responses in, one number each out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from bonlib.lm.models import LoadedModel, cpu_kernels

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


class SentimentReward:
    """How positive prompt and response together read, by a sequence classifier of `transformers`.

    The reward of vBoN section 5: the probability of the positive class. The logit is there too; both rank alike.
    """

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
        self.positive = positive[0] if positive else 1
        self.loaded, self.output, self.batch_size = loaded, output, batch_size

    @property
    def fingerprint(self) -> str:
        """A hash of weights, tokenizer and kind of output."""
        return hashlib.sha256(f"{self.loaded.fingerprint} {self.output}".encode()).hexdigest()

    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> Rewards:
        """Return p(positive), or its logit, of each prompt followed by its response, shape (B,).

        Raises:
            ValueError: if the lists differ in length, or a text is longer than the classifier's context.
        """
        return self.score_texts([prompt + response for prompt, response in zip(prompts, responses, strict=True)])

    def score_texts(self, texts: Sequence[str]) -> Rewards:
        """Return p(positive), or its logit, of whole texts, shape (B,)."""
        encoded = self.loaded.tokenizer(list(texts))["input_ids"]
        for index, ids in enumerate(encoded):
            if not 0 < len(ids) <= self.loaded.context:
                raise ValueError(
                    f"text {index} has {len(ids)} tokens ({texts[index][:40]!r}…); {self.loaded.name} reads 1 to "
                    f"{self.loaded.context}: shorten it, or take a reward model with a longer context"
                )
        return self.score_tokens(encoded)

    @torch.inference_mode()
    def score_tokens(self, encoded: Sequence[list[int]]) -> Rewards:
        """Return p(positive), or its logit, of texts given as token ids (special tokens included), shape (B,)."""
        # Texts of similar length share a batch: padding would cost as much as reading.
        order = np.argsort([len(ids) for ids in encoded], kind="stable")
        logits = np.empty(len(encoded))
        with cpu_kernels(self.loaded.model):
            for start in range(0, len(order), self.batch_size):
                rows = order[start : start + self.batch_size]
                logits[rows] = self._logits([encoded[row] for row in rows])
        return logits if self.output == "logit" else expit(logits)

    def _logits(self, encoded: Sequence[list[int]]) -> Rewards:
        width = max(map(len, encoded))
        pad = self.loaded.tokenizer.pad_token_id
        ids = torch.tensor([row + [pad] * (width - len(row)) for row in encoded], device=self.loaded.device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in encoded], device=self.loaded.device)
        scores = self.loaded.model(input_ids=ids, attention_mask=mask).logits.double().cpu().numpy()
        return np.asarray(scores[:, self.positive] - scores[:, 1 - self.positive])


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


def checked_score(reward_model: RewardModel, prompts: Sequence[str], responses: Sequence[str]) -> Rewards:
    """Return the rewards of responses, after checking that there is one finite number for each.

    Raises:
        ValueError: naming the prompt and response whose reward is not a finite number.
    """
    rewards: ArrayLike = reward_model.score(prompts, responses)
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
            f"{prompts[first]!r}, response {responses[first]!r}: mend the reward model. The draws are kept"
        )
    return values
