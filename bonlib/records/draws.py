"""Records as draws of a model, for methods that learn from stored draws and their rewards."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bonlib.checks import flag, shown, whole
from bonlib.draws.store import Draws
from bonlib.exact import Array
from bonlib.models.loaded import LoadedModel
from bonlib.models.reading import response_log_probs
from bonlib.models.responses import Responses
from bonlib.models.texts import ANCHOR, chat_prompt, response_texts, token_ids
from bonlib.records.records import Records


def draws_of(
    records: Records, model: LoadedModel, *, count: int | None = None, ended: bool | None = None, batch_size: int = 64
) -> tuple[Draws, Array]:
    """Return records as draws of a model, in its tokens and with the log-probabilities that it gives them.

    They are taken for draws of the model itself. Where another drew them, a method learns best-of-n of that one.

    Args:
        records: scored.
        model: whose draws they are to be; conversations are put into its chat template.
        count: draws a prompt, the first of each; prompts with fewer are left out. The number of all if None.
        ended: whether each response came to its end, so that the model's end token belongs to it. If None, the file's
            numbers of tokens tell, with which a cut response has as many as its text; without them all did.
        batch_size: responses read at once.

    Returns:
        The draws, and their rewards, (P, count).

    Raises:
        ValueError: if prompts have different numbers of responses and `count` is None, no prompt has as many, the model
            cannot write a response in its tokens, or one does not fit its context.
    """
    least, most = int(records.counts.min()), int(records.counts.max())
    if count is None and least < most:
        raise ValueError(
            f"prompts have from {least} to {most} responses; say how many to take of each, as count={least}"
        )
    count = whole("count", most if count is None else count, 1, most, what=f"with {most} responses a prompt it")
    kept = np.flatnonzero(records.counts >= count)
    if few := len(records.prompts) - len(kept):
        warnings.warn(f"{few} of {few + len(kept)} prompts have fewer than {count} draws: left out", stacklevel=2)
    rows = (np.cumsum(records.counts) - records.counts)[kept, None] + np.arange(count)
    prompts = _prompts(records, model, kept)
    asked, texts = [prompt for prompt in prompts for _ in range(count)], records.responses[rows.ravel()].tolist()
    tokens = _tokens(model, asked, texts)
    cut = [ended is not None and not flag("ended", ended)] * len(tokens)
    if ended is None and records.in_tokens:
        cut = [length == len(ids) for length, ids in zip(records.lengths[rows.ravel()], tokens, strict=True)]
    tokens = [ids if short else ids + model.end_token_ids[:1] for ids, short in zip(tokens, cut, strict=True)]
    if [] in tokens:
        raise ValueError("ended is False, and a response is empty: leave it out, or say ended=True")
    table = np.full((len(tokens), max(map(len, tokens))), -1, dtype=np.int32)
    for row, ids in zip(table, tokens, strict=True):
        row[: len(ids)] = ids
    unknown = np.full(len(texts), np.nan)
    responses = Responses(np.array(texts, dtype=object), table, unknown, unknown)
    log_probs = response_log_probs(model, asked, responses, batch_size=batch_size)
    if records.log_probs is not None:
        _compare(log_probs, records.log_probs[rows.ravel()], model, records)
    read = Responses(responses.texts, table, log_probs, log_probs)
    each = tuple(read[begin : begin + count] for begin in range(0, len(read), count))
    return Draws(tuple(prompts), each, model=model.name), records.reward[rows]


def _prompts(records: Records, model: LoadedModel, kept: NDArray[np.intp]) -> list[str]:
    if records.messages is None:
        return [str(prompt) for prompt in records.prompts[kept]]
    return [chat_prompt(model.tokenizer, records.messages[place]) for place in kept]


def _tokens(model: LoadedModel, prompts: Sequence[str], responses: Sequence[str]) -> list[list[int]]:
    """The tokens of each response behind those of its prompt, which stay what they are."""
    before = model.encode(prompts, 0)
    wholes = token_ids(model.tokenizer, [prompt + text for prompt, text in zip(prompts, responses, strict=True)])
    found = [ids[len(head) :] if ids[: len(head)] == head else None for head, ids in zip(before, wholes, strict=True)]
    # Where the end of a prompt and the beginning of a response make one token, the response stands behind another text.
    anchor = list(model.tokenizer(ANCHOR, add_special_tokens=False)["input_ids"])
    for place, ids in enumerate(found):
        if ids is None:
            behind = list(model.tokenizer(ANCHOR + responses[place], add_special_tokens=False)["input_ids"])
            parts = behind[: len(anchor)] == anchor
            found[place] = behind[len(anchor) :] if parts else _alone(model, responses[place])
    tokens = [ids or [] for ids in found]
    for text, said in zip(responses, response_texts(model.tokenizer, before, tokens), strict=True):
        if said != text:
            raise ValueError(
                f"{model.name} writes the response {shown(text)} in tokens that read {shown(said)}: leave it out"
            )
    return tokens


def _alone(model: LoadedModel, text: str) -> list[int]:
    return list(model.tokenizer(text, add_special_tokens=False)["input_ids"])


def _compare(read: Array, said: Array, model: LoadedModel, records: Records) -> None:
    """Warn where log-probabilities of a file are not those of the model: another drew, or they are cut."""
    off = np.abs(read - said) / np.maximum(np.abs(said), 1.0)
    if (known := np.isfinite(off)).any() and np.median(off[known]) > 0.03:
        warnings.warn(
            f"log-probabilities in {records.source} are {said[known].mean():.1f} nats on average, and of {model.name} "
            f"{read[known].mean():.1f}: for cut ones say ended=False, or best-of-n of what drew them is learned",
            stacklevel=3,
        )


class RecordedReward:
    """The scores of a file as a reward model, of its own responses alone.

    Args:
        draws: of records.
        rewards: of these, (P, M).
    """

    def __init__(self, draws: Draws, rewards: Array) -> None:
        self._rewards = {
            (prompt, text): float(reward)
            for prompt, texts, row in zip(draws.prompts, draws.texts, rewards, strict=True)
            for text, reward in zip(texts, row, strict=True)
        }
        table = json.dumps([[*pair, reward] for pair, reward in self._rewards.items()]).encode()
        self.fingerprint = hashlib.sha256(table).hexdigest()

    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> Array:
        """Return the reward of each response, shape (B,).

        Raises:
            ValueError: if the file does not have one; it names the first.
        """
        pairs = list(zip(prompts, responses, strict=True))
        if missing := [text for prompt, text in pairs if (prompt, text) not in self._rewards]:
            raise ValueError(
                f"the file has no score for the response {shown(missing[0])}: methods that draw, and measurements, "
                "need a reward model"
            )
        return np.array([self._rewards[pair] for pair in pairs])
