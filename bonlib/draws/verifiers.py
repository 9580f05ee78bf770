"""Rewards for answers: verifiers, which find one in a response and say whether it is right; and self-certainty."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bonlib.answers import self_certainty
from bonlib.checks import number, shown, whole
from bonlib.draws.rewards import FunctionReward, Rewards, _common
from bonlib.models.loaded import LoadedModel
from bonlib.models.reading import response_logits, token_batch
from bonlib.models.texts import token_ids

Truth = Mapping[str, Any] | Callable[[str], Any]
# 7, -3.5, .5, 12,000 or 1e-3; in 3-5 the sign is none of the number's.
NUMBER = r"(?:(?<![\w.)])[-+\u2212])?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<![\w.])\.\d+)(?:[eE][-+]?\d+)?"


class Verifier(FunctionReward):
    """A reward model that is 1 for a right answer and 0 for a wrong one, or for none.

    Args:
        extract: takes a response, returns its answer, or None if it has none.
        same: takes an answer and the right one, returns whether they are the same.
        truth: the right answer to each prompt, as a mapping or a function of the prompt.
        name: as that of `bonlib.draws.rewards.FunctionReward`; a hash of all three if empty.
    """

    def __init__(
        self,
        extract: Callable[[str], Hashable | None],
        same: Callable[[Any, Any], bool],
        truth: Truth,
        *,
        name: str = "",
    ) -> None:
        if not callable(truth) and not isinstance(truth, Mapping):
            raise ValueError(
                f"truth is {shown(truth)}; it must be a dict from prompt to answer, or a function of a prompt"
            )
        self.extract = extract
        super().__init__(partial(_verdict, extract, same, truth if callable(truth) else dict(truth)), name=name)

    def answers(self, prompts: Sequence[str], responses: Sequence[str]) -> NDArray[np.object_]:
        """Return the answer of each response, None where it has none, shape (B,)."""
        found = np.empty(len(responses), dtype=object)
        found[:] = [self.extract(response) for _, response in zip(prompts, responses, strict=True)]
        return found

    def verify(self, prompts: Sequence[str], responses: Sequence[str]) -> NDArray[np.bool_]:
        """Return whether each response's answer is right, shape (B,).

        Raises:
            ValueError: if the truth lacks a prompt.
        """
        return self.score(prompts, responses) == 1


def exact_match(truth: Truth, *, normalise: Callable[[str], str] = str.strip) -> Verifier:
    """Return a verifier whose answer is the whole response.

    Args:
        truth: right answers, texts.
        normalise: what is made of both texts before they are compared; str.strip or, say, str.casefold.
    """
    return Verifier(partial(_whole_text, normalise), partial(_equal_texts, normalise), truth)


def regex(truth: Truth, pattern: str, *, normalise: Callable[[str], str] = str.strip) -> Verifier:
    r"""Return a verifier whose answer is what a pattern finds first.

    Args:
        truth: right answers, texts.
        pattern: a regular expression; its first group is the answer, or all that it finds if it has none, such as
            ``r"The answer is (\w+)"``.
        normalise: what is made of both texts before they are compared.

    Raises:
        ValueError: if the pattern is none.
    """
    return Verifier(partial(_found, _checked(pattern), normalise), partial(_equal_texts, normalise), truth)


def numeric(truth: Truth, *, pattern: str | None = None, tolerance: float = 0.0) -> Verifier:
    """Return a verifier whose answer is a number.

    Args:
        truth: right answers, numbers or texts of one.
        pattern: a regular expression that finds it, as of `regex`; the last number of the response if None.
        tolerance: by which an answer may be off, 0 or more.

    Raises:
        ValueError: if the pattern is none, or the tolerance is out of range.
    """
    off = float(number("tolerance", tolerance, least=0))
    extract = _last_number if pattern is None else partial(_found, _checked(pattern), _as_number)
    return Verifier(extract, partial(_close, off), truth)


class SelfCertainty:
    """How sure a language model is of the words of a response, of which no answer need be known.

    The text is read as the model's tokenizer cuts it, without an end token; an empty one has 0.

    Args:
        loaded: the causal language model, usually the one that wrote the responses.
        batch_size: texts it reads at once.

    Source: Kang et al. 2025; the formula is `bonlib.answers.self_certainty`.
    """

    def __init__(self, loaded: LoadedModel, *, batch_size: int = 16) -> None:
        self.loaded, self.batch_size = loaded, whole("batch_size", batch_size, 1)

    @property
    def fingerprint(self) -> str:
        """A hash of weights and tokenizer."""
        return hashlib.sha256(f"{self.loaded.fingerprint} self-certainty".encode()).hexdigest()

    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> Rewards:
        """Return the self-certainty of each response after its prompt, nats, shape (B,).

        Raises:
            ValueError: if the lists differ in length, or a text is longer than the model's context.
        """
        wholes = token_ids(self.loaded.tokenizer, [a + b for a, b in zip(prompts, responses, strict=True)])
        if too_long := [ids for ids in wholes if len(ids) > self.loaded.context]:
            raise ValueError(
                f"a text has {len(too_long[0])} tokens; {self.loaded.name} reads {self.loaded.context}: leave it out"
            )
        before = dict(zip(prompts, self.loaded.encode(prompts, 0), strict=True)) if len(prompts) else {}
        # Where the border makes one token of two, the response begins with it.
        begins = [max(_common(before[prompt], ids), 1) for prompt, ids in zip(prompts, wholes, strict=True)]
        said = [ids[begin:] for begin, ids in zip(begins, wholes, strict=True)]
        found = np.zeros(len(wholes))
        # Like lengths together, so that little is padding.
        places = sorted((place for place in range(len(said)) if said[place]), key=lambda place: len(wholes[place]))
        for start in range(0, len(places), self.batch_size):
            part = places[start : start + self.batch_size]
            heads = [wholes[place][: begins[place]] for place in part]
            tails = [said[place] for place in part]
            batch = token_batch(heads, tails, pad_id=self.loaded.pad_token_id, device=self.loaded.device)
            with torch.no_grad():
                logits = response_logits(self.loaded.model, batch).logits.cpu()
            found[part] = [self_certainty(each.numpy()) for each in torch.split(logits, batch.lengths)]
        return found


def _verdict(
    extract: Callable[[str], Hashable | None], same: Callable[[Any, Any], bool], truth: Any, prompt: str, response: str
) -> float:
    if callable(truth):
        right = truth(prompt)
    elif prompt in truth:
        right = truth[prompt]
    else:
        raise ValueError(f"truth has no answer to the prompt {shown(prompt)}: add it")
    answer = extract(response)
    return float(answer is not None and same(answer, right))


def _whole_text(normalise: Callable[[str], str], response: str) -> str | None:
    return normalise(response) or None


def _equal_texts(normalise: Callable[[str], str], answer: str, right: Any) -> bool:
    return answer == normalise(str(right))


def _found(pattern: str, made: Callable[[str], Hashable | None], response: str) -> Hashable | None:
    match = re.search(pattern, response, re.DOTALL)
    text = match and match[1 if match.re.groups else 0]
    return made(text) if text else None


def _last_number(response: str) -> float | None:
    found = re.findall(NUMBER, response)
    return _as_number(found[-1]) if found else None


def _as_number(text: str) -> float | None:
    try:
        return float(text.replace(",", "").replace("\N{MINUS SIGN}", "-"))
    except ValueError:
        return None


def _close(tolerance: float, answer: float, right: Any) -> bool:
    wanted = _as_number(str(right))
    if wanted is None or not math.isfinite(wanted):
        raise ValueError(f"truth holds {shown(right)}; a numeric answer is compared with a number: repair it")
    return abs(answer - wanted) <= tolerance


def _checked(pattern: str) -> str:
    try:
        re.compile(pattern)
    except (re.error, TypeError) as error:
        raise ValueError(f"pattern is {shown(pattern)}, no regular expression: {error}") from error
    return pattern
