"""Reward models behind one small protocol: prompts and responses in, one number each out."""

from __future__ import annotations

import functools
import hashlib
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from numbers import Real
from types import CellType, CodeType, FunctionType
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit

from bonlib.checks import flag, number, one_of, plain, shown, whole
from bonlib.models.classifiers import classifier_outputs
from bonlib.models.loaded import LoadedModel
from bonlib.models.responses import Responses
from bonlib.models.texts import chat_prompt, token_ids

Rewards = NDArray[np.float64]
REMEMBERED = 1 << 18  # texts whose rewards a classifier keeps in mind, of some 150 bytes each


class RewardModel(Protocol):
    """Anything that scores responses; higher is better, any scale.

    Four things it may have besides: `score_responses(prompts, responses)`, if it looks at tokens; `remember(prompts,
    responses, rewards)`, by which the store tells it what it once said; `source`, a hash of its code; and
    `score_each(prompts, responses, keep=)`, if rewards come one by one and are paid for: it calls `keep(places,
    rewards)` with some as soon as they are there, and the store writes them at once.
    """

    @property
    def fingerprint(self) -> str:
        """A hash of all that a score depends on besides prompt and response."""
        ...

    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> Rewards:
        """Return the reward of each response to its prompt, shape (B,)."""
        ...


class ClassifierReward:
    """What a sequence classifier with one output, such as a Bradley–Terry reward model, says of prompt and response.

    One that stands on a causal language model reads a prompt once for all its responses. A text is judged once, as
    long as the weights stay: in another batch its reward would differ by rounding, and equal texts would not be ties.

    Args:
        loaded: the classifier.
        batch_size: texts it reads at once.
        suffix: what follows each response, such as the end token for a model that was trained to read its reward there.
        chat: whether the model judges a conversation: prompt and response are then put into its own chat template, as
            the user's turn and the assistant's, whatever template the model that answers has.
    """

    outputs = 1

    def __init__(self, loaded: LoadedModel, *, batch_size: int = 256, suffix: str = "", chat: bool = False) -> None:
        _check_loaded(loaded)
        if loaded.model.config.num_labels != self.outputs:
            raise ValueError(
                f"{loaded.name} has {loaded.model.config.num_labels} outputs; {type(self).__name__} takes a classifier "
                f"with {self.outputs}"
            )
        self.loaded, self.batch_size, self.suffix = loaded, whole("batch_size", batch_size, 1), suffix
        self.chat = flag("chat", chat)
        if chat:
            chat_prompt(loaded.tokenizer, "is there a template?")
        self._judged: dict[bytes, float] = {}
        self._weights: Any = None  # with which it did

    @property
    def fingerprint(self) -> str:
        """A hash of weights, tokenizer, suffix and template."""
        about = f"{self.loaded.fingerprint} {type(self).__name__}" + (f" {self.suffix}" if self.suffix else "")
        about += f" chat {self.loaded.tokenizer.chat_template}" if self.chat else ""
        return hashlib.sha256(about.encode()).hexdigest()

    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> Rewards:
        """Return the reward of each prompt followed by its response, shape (B,).

        Raises:
            ValueError: if the lists differ in length, or a text is longer than the classifier's context.
        """
        wholes, known = self._wholes(prompts, responses), self._memory()
        keys = list(map(_key, wholes))
        new = {key: place for place, key in enumerate(keys) if key not in known}
        encoded = self._encode([wholes[place] for place in new.values()])
        asked = [prompts[place] for place in new.values()]
        different = list(dict.fromkeys(asked))
        begun = [chat_prompt(self.loaded.tokenizer, prompt) for prompt in different] if self.chat else different
        prompt_ids = dict(zip(different, token_ids(self.loaded.tokenizer, begun), strict=True))
        # The border between prompt and response can change a token, so only what is really there counts as common.
        common = [_common(prompt_ids[prompt], ids[:-1]) for prompt, ids in zip(asked, encoded, strict=True)]
        found = dict(zip(new, self.score_tokens(encoded, common).tolist(), strict=True)) if new else {}
        rewards = np.array([found[key] if key in found else known[key] for key in keys], dtype=np.float64)
        self._keep(found)
        return rewards

    def remember(self, prompts: Sequence[str], responses: Responses | Sequence[str], rewards: Rewards) -> None:
        """Take note of rewards that this model gave before, so that it gives the same ones again."""
        self._memory()
        texts = responses.texts.tolist() if isinstance(responses, Responses) else responses
        self._keep(dict(zip(map(_key, self._wholes(prompts, texts)), rewards.tolist(), strict=True)))

    def _wholes(self, prompts: Sequence[str], responses: Sequence[str]) -> list[str]:
        """What is read: each prompt with its response."""
        pairs = zip(prompts, responses, strict=True)
        if not self.chat:
            return [f"{prompt}{response}{self.suffix}" for prompt, response in pairs]
        closed = functools.partial(chat_prompt, self.loaded.tokenizer, add_generation_prompt=False)
        return [closed(list(pair)) + self.suffix for pair in pairs]

    def _memory(self) -> dict[bytes, float]:
        """The rewards it has given, none if its weights have changed since."""
        parameters = self.loaded.model.parameters()
        weights = [(p.data_ptr(), 0 if p.is_inference() else p._version) for p in parameters]
        if weights != self._weights:
            self._judged, self._weights = {}, weights
        return self._judged

    def _keep(self, rewards: dict[bytes, float]) -> None:
        self._judged.update(rewards)
        if len(self._judged) > REMEMBERED:  # the older half is forgotten
            self._judged = dict(list(self._judged.items())[len(self._judged) // 2 :])

    def score_texts(self, texts: Sequence[str]) -> Rewards:
        """Return the reward of whole texts, shape (B,)."""
        return self.score_tokens(self._encode(texts))

    def score_tokens(self, encoded: Sequence[list[int]], common: Sequence[int] | None = None) -> Rewards:
        """Return the reward of texts given as token ids, shape (B,).

        Args:
            encoded: B lists of token ids, special tokens included.
            common: (B,) tokens at the beginning of each text that others may begin with as well; none if not given.
        """
        found = classifier_outputs(
            self.loaded.model,
            encoded,
            common if common is not None else [0] * len(encoded),
            batch_size=self.batch_size,
            pad_id=self.loaded.pad_token_id,
        )
        return self._rewards(found)

    def _rewards(self, outputs: Rewards) -> Rewards:
        """Rewards, shape (B,), from the classifier's outputs, shape (B, outputs)."""
        return outputs[:, 0]

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        encoded = token_ids(self.loaded.tokenizer, texts)
        for index, ids in enumerate(encoded):
            if not 0 < len(ids) <= self.loaded.context:
                raise ValueError(
                    f"text {index} has {len(ids)} tokens ({texts[index][:40]!r}…); {self.loaded.name} reads 1 to "
                    f"{self.loaded.context}: change it, or take a reward model with a longer context"
                )
        return encoded


def _check_loaded(loaded: object) -> None:
    if not isinstance(loaded, LoadedModel):
        raise ValueError(f"loaded is {shown(loaded)}; it must be a classifier: give load_classifier(NAME)")


def _key(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


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
        one_of("output", output, ("probability", "logit"))
        _check_loaded(loaded)
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
        name: stands for the function in the store; change it whenever the function changes. If empty, it is the
            function's own name with a hash of its code and of what it holds; what it uses of its module is not seen.
    """

    def __init__(self, function: Callable[[str, str], Any], *, name: str = "") -> None:
        if not callable(function) or isinstance(function, type):
            raise ValueError(f"function is {shown(function)}; it must be a function of a prompt and a response")
        if not isinstance(name, str):
            raise ValueError(f"name is {name!r}; it must be a text that stands for the function in the store")
        about = repr(_code(function))
        if not name and _UNSEEN in about:
            raise ValueError(
                f"name is empty, and {shown(function)} holds an object that no hash tells apart: give a name"
            )
        code = hashlib.sha256(about.encode("utf-8", "surrogatepass")).hexdigest()[:12]
        self.function = function
        self.name = name or f"{getattr(function, '__name__', type(function).__name__)} {code}"
        self.source = f"{sys.version_info.major}.{sys.version_info.minor} {code}"  # other Pythons compile otherwise
        # Functions of other modules may never meet; if they do in a store, it warns.
        known = _SOURCES.setdefault(
            (type(self).__name__, str(getattr(function, "__module__", "")), self.name), self.source
        )
        if known != self.source:
            warnings.warn(
                f"two reward functions are called {name!r}, which is all that the store knows of them: stored rewards "
                "of one would come back as the other's. Give each a name of its own",
                stacklevel=2,
            )

    @property
    def fingerprint(self) -> str:
        """A hash of the name."""
        return hashlib.sha256(f"function {self.name}".encode()).hexdigest()

    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> Rewards:
        """Return the function's value for each prompt and response, shape (B,).

        Raises:
            ValueError: naming the prompt and response of which the function gives no number.
        """
        pairs = list(zip(prompts, responses, strict=True))
        return np.array([_as_number(self.function(*pair), *pair) for pair in pairs], dtype=np.float64)


_UNSEEN = "an unseen"
_SOURCES: dict[tuple[str, str, str], str] = {}  # of the first function of each kind, module and name


def _code(value: Any, depth: int = 6) -> Any:
    """What a function does, as far as that can be told: its code and what it holds, without places in memory."""
    value = getattr(value, "__func__", value)
    if isinstance(value, str | bytes | Real | complex) or value is None:
        return repr(value)
    if isinstance(value, np.ndarray) and value.dtype != object:
        return hashlib.sha256(value.tobytes()).hexdigest()
    if depth:

        def inside(items: Iterable[Any]) -> list[Any]:
            return [_code(item, depth - 1) for item in items]

        if isinstance(value, CodeType):
            return value.co_code.hex(), value.co_names, inside(value.co_consts)
        if isinstance(value, list | tuple):
            return inside(value)
        if isinstance(value, set | frozenset):
            return sorted(map(repr, inside(value)))
        if isinstance(value, dict):
            return inside(value.items())
        if isinstance(value, FunctionType):
            cells = [cell.cell_contents for cell in value.__closure__ or () if cell != CellType()]
            return inside([value.__code__, value.__defaults__, cells])
        if isinstance(value, functools.partial):
            return inside([value.func, value.args, value.keywords])
        if isinstance(getattr(type(value), "__call__", None), FunctionType):  # noqa: B004 - its code is wanted
            return inside([type(value).__call__, vars(value)])
    return getattr(value, "__qualname__", f"{_UNSEEN} {type(value).__qualname__}")


class CutPenalty:
    """Another reward model, less a fixed penalty for responses that were cut before their end token.

    Args:
        reward_model: of texts, which does not see whether there is an end token.
        end_token_ids: of the model that writes the responses.
        penalty: what a cut response loses, in units of reward, 0 or more.

    Source: Huang et al. 2024, detail 23 (their penalty is a fixed reward instead).
    """

    def __init__(self, reward_model: ClassifierReward, end_token_ids: Sequence[int], *, penalty: float) -> None:
        self.reward_model, self.end_token_ids = reward_model, list(end_token_ids)
        self.penalty = number("penalty", penalty, least=0)

    @property
    def loaded(self) -> LoadedModel:
        """The reward model's classifier."""
        return self.reward_model.loaded

    @property
    def fingerprint(self) -> str:
        """A hash of reward model, end tokens and penalty."""
        about = f"{self.reward_model.fingerprint} {self.end_token_ids} {self.penalty}"
        return hashlib.sha256(about.encode()).hexdigest()

    @property
    def source(self) -> str:
        """A hash of the reward model's code, if it has one."""
        return str(getattr(self.reward_model, "source", ""))

    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> Rewards:
        """Return the reward of texts, which count as ended, shape (B,)."""
        return self.reward_model.score(prompts, responses)

    def score_responses(self, prompts: Sequence[str], responses: Responses) -> Rewards:
        """Return the reward of responses, shape (B,)."""
        rewards = self.reward_model.score(prompts, responses.texts.tolist())
        return rewards - self.penalty * responses.are_cut(self.end_token_ids)

    def remember(self, prompts: Sequence[str], responses: Responses, rewards: Rewards) -> None:
        """Tell the reward model what it said of responses, from rewards that were given before."""
        if hasattr(self.reward_model, "remember"):
            self.reward_model.remember(
                prompts, responses, rewards + self.penalty * responses.are_cut(self.end_token_ids)
            )


def checked_score(reward_model: RewardModel, prompts: Sequence[str], responses: Responses | Sequence[str]) -> Rewards:
    """Return the rewards of responses, after checking that there is one finite number for each.

    Args:
        reward_model: one that looks at tokens has a `score_responses(prompts, responses)`, for `Responses`.
        prompts: of the responses, B.
        responses: B of them.

    Raises:
        ValueError: naming the prompt and response whose reward is not a finite number.
    """
    check_reward_model(reward_model)
    texts = responses.texts.tolist() if isinstance(responses, Responses) else list(responses)
    if isinstance(responses, Responses) and hasattr(reward_model, "score_responses"):
        rewards = reward_model.score_responses(prompts, responses)
    else:
        rewards = reward_model.score(prompts, texts)
    return checked_rewards(rewards, prompts, texts)


def checked_rewards(rewards: Any, prompts: Sequence[str], responses: Responses | Sequence[str]) -> Rewards:
    """Return what a reward model gave as an array; arguments and errors as of `checked_score`."""
    texts = responses.texts.tolist() if isinstance(responses, Responses) else list(responses)
    if hasattr(rewards, "detach"):
        rewards = rewards.detach().cpu().double().numpy()
    try:
        items = None if isinstance(rewards, str | bytes | dict) or getattr(rewards, "ndim", 1) > 1 else list(rewards)
    except TypeError:
        items = None
    if items is None or len(items) != len(texts):
        found = f"shape {rewards.shape}" if isinstance(rewards, np.ndarray) else shown(rewards)
        raise ValueError(
            f"the reward model returned {found} for {len(texts)} responses, the first to prompt "
            f"{shown(next(iter(prompts), None))}; it must return one number each"
        )
    values = np.array([_as_number(*each) for each in zip(items, prompts, texts, strict=True)], dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        first = int(bad[0])
        raise ValueError(
            f"the reward model gave {values[first]} to {bad.size} of {len(values)} responses, the first to prompt "
            f"{prompts[first]!r}, response {texts[first]!r}: mend the reward model"
        )
    return values


def check_reward_model(reward_model: object) -> None:
    """Raise a ValueError that says what to give, unless it has what every reward model has."""
    if isinstance(reward_model, torch.nn.Module | LoadedModel | str | type) or not hasattr(reward_model, "score"):
        remedy = "SentimentReward(load_classifier(NAME)) or ClassifierReward(load_classifier(NAME))"
        if callable(reward_model) and not isinstance(reward_model, torch.nn.Module | type):
            remedy = "FunctionReward(function, name=NAME)"
        raise ValueError(f"reward_model is {shown(reward_model)}; it must be a reward model: give {remedy}")


def _as_number(reward: Any, prompt: str, text: str) -> float:
    """A reward as a float; of a table with one entry, that."""
    value = plain(reward.reshape(()) if getattr(reward, "shape", None) in ((1,), (1, 1)) else reward)
    if not isinstance(value, Real):
        raise ValueError(
            f"the reward of prompt {prompt!r}, response {text!r} is {shown(value)}; it must be one number: let the "
            "reward function return that alone"
        )
    return float(value)
