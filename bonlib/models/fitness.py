"""What a model must be for draws, log-probabilities and rewards to mean anything: checked once, when it is loaded."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from bonlib.checks import one_line
from bonlib.models.texts import token_ids
from bonlib.models.ways import UnfitModelError, class_of, random_inside

LENGTH = 16  # tokens of the text by which a model is checked; the second half of them is changed
FINE = {torch.float32: 1e-5, torch.float64: 1e-9}  # of a causal model's logits before a change, in their spread
COARSE = 2e-2  # the same in half precision


def check_causal(loaded: Any) -> None:
    """Refuse a `LoadedModel` whose words depend on those after them, or that has no words to say.

    Raises:
        UnfitModelError: naming the class, why, and what to take instead.
    """
    model, name = loaded.model, class_of(loaded.model)
    ordinary = _ordinary_ids(loaded)
    length = min(LENGTH, loaded.context)
    texts = torch.tensor([[ordinary[(7 * i + shift) % len(ordinary)] for i in range(length)] for shift in (0, 1)])
    texts[1, : length // 2] = texts[0, : length // 2]
    first, other = (_plain_pass(model, text) for text in texts)
    if first.ndim != 2 or len(first) < length:
        raise UnfitModelError(
            f"{name} returns logits of shape {tuple(first.shape)} for a text of {length} tokens: it is no causal "
            "language model of text; take one, such as gpt2 or llama"
        )
    _refuse_nan(name, first)
    before = slice(len(first) - length, len(first) - length + length // 2)
    spread = first.std().clamp(min=torch.finfo(torch.float32).tiny)
    change = float((first[before] - other[before]).abs().max() / spread)
    if change > FINE.get(model.dtype, COARSE):
        _refuse_random(name, first, _plain_pass(model, texts[0]))
        raise UnfitModelError(
            f"{name} is not causal: what it says of a word changes with the words after it, as in masked models; take "
            "a causal language model, such as gpt2 or llama (of BERT's kind: one saved with is_decoder=True)"
        )


def check_classifier(loaded: Any) -> None:
    """Refuse a `LoadedModel` that cannot judge a plain text, or says other things of it each time; raises likewise."""
    model, name = loaded.model, class_of(loaded.model)
    (ids,) = token_ids(loaded.tokenizer, ["A short text, which says little."])
    ids = [token for token in ids if token < loaded.vocabulary][: loaded.context] or _ordinary_ids(loaded)[:LENGTH]
    first, again = (_plain_pass(model, torch.tensor(ids)) for _ in range(2))
    if first.shape != (model.config.num_labels,):
        raise UnfitModelError(
            f"{name} returns shape {tuple(first.shape)} for a text, not {model.config.num_labels} numbers: take a "
            "sequence classifier"
        )
    _refuse_nan(name, first)
    _refuse_random(name, first, again)


def _ordinary_ids(loaded: Any) -> list[int]:
    """Some tokens that stand for text."""
    special = set(loaded.tokenizer.all_special_ids)
    known = min(loaded.vocabulary, len(loaded.tokenizer), 1000)
    return [token for token in range(known) if token not in special]


@torch.no_grad()  # not inference_mode: a model may keep what it computes here, and be trained later
def _plain_pass(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """What a model says of one text given as tokens alone, without the axis of the batch, in single precision."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found: torch.Tensor = model(ids[None].to(next(model.parameters()).device)).logits
        return found[0].float().cpu()
    except Exception as error:  # any of what a model's code can raise
        raise UnfitModelError(
            f"{class_of(model)} cannot read a plain text ({one_line(error)}): take a model of text that needs nothing "
            "else"
        ) from error


def _refuse_nan(name: str, first: torch.Tensor) -> None:
    if first.isnan().any():
        raise UnfitModelError(
            f"{name} returns NaN for a plain text: its files are damaged, or it needs another dtype; take whole ones"
        )


def _refuse_random(name: str, first: torch.Tensor, again: torch.Tensor) -> None:
    if not torch.allclose(first, again, rtol=COARSE, atol=COARSE * float(first[first.isfinite()].std(correction=0))):
        raise random_inside(name)


def check_tokenizer(loaded: Any) -> None:
    """Refuse a tokenizer that gives ordinary text tokens which the model does not know.

    Tokens that only a text with their very name has, such as one for pictures or padding, may be beyond: a prompt with
    one is refused when it comes.

    Raises:
        ValueError: naming the first such token, and the remedy.
    """
    tokenizer, known = loaded.tokenizer, loaded.vocabulary
    if len(tokenizer) <= known and max(tokenizer.get_vocab().values(), default=0) < known:
        return
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    special |= set(tokenizer.all_special_ids)
    beyond = {place: token for token, place in tokenizer.get_vocab().items() if place >= known and place not in special}
    if beyond:
        first = min(beyond)
        raise ValueError(
            f"the tokenizer of {loaded.name!r} has {len(beyond)} tokens that the model does not know, the first "
            f"{beyond[first]!r} ({first}, the model has {known}): take the model's own tokenizer, or "
            "`model.resize_token_embeddings(len(tokenizer))` and train them"
        )
