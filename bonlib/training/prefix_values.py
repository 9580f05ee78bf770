"""What a response is worth after some of its tokens: log E[F≤^(n−1)] over the ways in which the reference goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.special import logsumexp
from torch import Tensor
from torch.nn import functional

from bonlib.cdf import EmpiricalCdf
from bonlib.checks import number, settle, whole
from bonlib.draws.rewards import RewardModel
from bonlib.draws.store import Draws
from bonlib.exact import Array
from bonlib.models.decoding import padded
from bonlib.models.loaded import LoadedModel
from bonlib.models.reading import TokenBatch, response_logits
from bonlib.training.learner import PromptTokens

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)  # of a prompt's rewards: F is relative to them


@dataclass(frozen=True)
class PrefixRecipe:
    """How the values are fitted.

    Attributes:
        draws: stored draws of each prompt that are read.
        prefixes: of each draw, at random.
        held_out: share of the prompts that the fit is judged on.
        width: of the two hidden layers.
        steps: of AdamW.
        batch_size: prefixes a step.
        learning_rate: at its first; it falls to 0 in a straight line.
        seed: of everything random.
    """

    draws: int = 64
    prefixes: int = 24
    held_out: float = 0.0625
    width: int = 256
    steps: int = 1500
    batch_size: int = 2048
    learning_rate: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("draws", "prefixes", "width", "steps", "batch_size"):
            settle(self, **{name: whole(name, getattr(self, name), 1)})
        settle(self, held_out=number("held_out", self.held_out, least=0, below=1))
        settle(self, learning_rate=number("learning_rate", self.learning_rate, above=0))
        settle(self, seed=whole("seed", self.seed))


class PrefixValues(torch.nn.Module):
    """log E[F≤^(n−1)] of a prompt and the first tokens of a response, from what a `PrefixReader` knows of them.

    In best-of-n, as in the optimum of vBoN's L, the next token has the log-ratio to the reference by which this value
    rises with it.

    Args:
        features: what is known of each prefix, (E, width), for their means and spreads.
        width: of the hidden layers.
    """

    explained: float = float("nan")  # share of the variance of F≤^(n−1) on prompts held out

    def __init__(self, features: Tensor, width: int) -> None:
        super().__init__()
        self.centre: Tensor
        self.spread: Tensor
        self.register_buffer("centre", features.mean(0))
        self.register_buffer("spread", features.std(0) + 1e-4)
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(features.shape[1], width),
            torch.nn.GELU(),
            torch.nn.Dropout(0.1),
            torch.nn.Linear(width, width),
            torch.nn.GELU(),
            torch.nn.Linear(width, 1),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Return log E[F≤^(n−1)], at most 0, of features (…, width)."""
        return functional.logsigmoid(self.layers((features.float() - self.centre) / self.spread)[..., 0])


class PrefixReader:
    """What is known of prefixes: what the layers of the reference end with there, and those of the reward model.

    A reward model that is a causal classifier over the same tokens has read for the reward already; without one, the
    values may explain next to nothing, which `PrefixValues.explained` tells.

    Args:
        reference: the model that drew.
        reward_model: the judge.
        rewards: of stored draws, (P, M).
        prompts: P of them.
    """

    def __init__(self, reference: LoadedModel, reward_model: RewardModel, prompts: Sequence[str], rewards: Array):
        self.reference, self.judge = reference.model, None
        judge = getattr(reward_model, "loaded", None)
        if isinstance(judge, LoadedModel) and judge.tokenizer.get_vocab() == reference.tokenizer.get_vocab():
            self.judge = judge.model.base_model if _is_causal(judge.model.base_model, judge.device) else None
        spread = max(float(rewards.std()), 1e-12)
        told = (np.quantile(rewards, QUANTILES, axis=1).T - rewards.mean()) / spread
        self.told = dict(zip(prompts, torch.from_numpy(told).float(), strict=True))

    @torch.no_grad()
    def read(self, prompts: Sequence[str], batch: TokenBatch) -> tuple[Tensor, Tensor]:
        """Return log π of the response tokens, (B, T), and what is known before each of them, (B, T, width)."""
        logits, states = response_logits(self.reference, batch, states=True)
        assert states is not None
        real = batch.response_mask.bool()
        nll = functional.cross_entropy(logits, batch.responses[real], reduction="none")
        log_probs = torch.zeros(real.shape, device=nll.device).masked_scatter(real, -nll)
        length = (torch.arange(real.shape[1], device=nll.device) / 32).expand(real.shape)[..., None]
        told = torch.stack([self.told[prompt] for prompt in prompts]).to(nll.device)[:, None]
        known = [states, told.expand(-1, real.shape[1], -1), length, torch.log1p(length)]
        if self.judge is not None:
            known.append(_states(self.judge, batch))
        return log_probs, torch.cat([each.float() for each in known], dim=2)


@torch.no_grad()
def _is_causal(model: Any, device: torch.device) -> bool:
    """Whether what a model says of the first tokens stays when the last one changes."""
    first, second = (model(torch.tensor([[2, 3, 4, last]], device=device)).last_hidden_state for last in (5, 6))
    return bool(torch.allclose(first[:, :3], second[:, :3], rtol=1e-3, atol=1e-4))


def _states(model: Any, batch: TokenBatch) -> Tensor:
    """What a causal model's layers end with before each token of the responses, (B, T, H)."""
    own = [row[:length].tolist() for row, length in zip(batch.responses, batch.lengths, strict=True)]
    ids, mask = padded(
        [[*prompt, *row] for prompt, row in zip(batch.prompts, own, strict=True)], batch.pad_id, batch.responses.device
    )
    said = model(ids, attention_mask=mask).last_hidden_state
    begins = torch.tensor([len(prompt) - 1 for prompt in batch.prompts], device=ids.device)
    at = (begins[:, None] + torch.arange(batch.responses.shape[1], device=ids.device)).clamp(max=ids.shape[1] - 1)
    return said.gather(1, at[..., None].expand(-1, -1, said.shape[-1]))


def response_values(rewards: Array, n: float) -> Array:
    """Return (n−1) log F≤ of stored draws, shape (P, M), from their rewards, by the posterior mean: none is −∞."""
    return np.stack([(n - 1) * EmpiricalCdf(row).log_weak(row) for row in rewards])


def prompt_values(values: Array) -> Array:
    """Return log E[F≤^(n−1)] of prompts, shape (P,), from `response_values`: −log n, or more where rewards tie."""
    return np.asarray(logsumexp(values, axis=1) - np.log(values.shape[1]))


def fit_prefix_values(
    reader: PrefixReader,
    tokens: PromptTokens,
    draws: Draws,
    rewards: Array,
    n: float,
    recipe: PrefixRecipe | None = None,
) -> PrefixValues:
    """Fit values of prefixes to stored draws of the reference, by cross-entropy with F≤^(n−1) of the whole responses.

    Args:
        reader: of the reference whose draws they are.
        tokens: of the prompts.
        draws: at least two of each of P prompts.
        rewards: of them, (P, M).
        n: number of draws, at least 1.
        recipe: of the fit.

    Raises:
        ValueError: if `n` is below 1.
    """
    n, recipe = number("n", n, least=1, what="the number of draws"), recipe or PrefixRecipe()
    rng, each = np.random.default_rng(recipe.seed), min(recipe.draws, rewards.shape[1])
    worth = torch.from_numpy(response_values(rewards, n)).exp().float()
    features, targets, owner = [], [], []
    for place, (prompt, responses) in enumerate(zip(draws.prompts, draws.responses, strict=True)):
        batch = tokens.batch([prompt] * each, [responses.token_ids[draw].tolist() for draw in range(each)])
        _, known = reader.read([prompt] * each, batch)
        real = batch.response_mask.cpu().bool()
        order = torch.from_numpy(rng.random(real.shape)).masked_fill(~real, 2.0).argsort(1)
        taken = torch.zeros_like(real).scatter(1, order[:, : recipe.prefixes], True) & real
        features.append(known.cpu()[taken].half())
        targets.append(worth[place, :each, None].expand(taken.shape)[taken])
        owner.append(torch.full((len(targets[-1]),), place))
    return _fitted(torch.cat(features), torch.cat(targets), torch.cat(owner), len(draws.prompts), recipe, tokens.device)


def _fitted(
    features: Tensor, targets: Tensor, owner: Tensor, prompts: int, recipe: PrefixRecipe, device: torch.device
) -> PrefixValues:
    begins = prompts - int(recipe.held_out * prompts)  # those from there on are held out
    learned, held = (owner < begins).nonzero()[:, 0], (owner >= begins).nonzero()[:, 0]
    generator = torch.Generator().manual_seed(recipe.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        some = learned[torch.randperm(len(learned), generator=generator)[:50_000]]
        values = PrefixValues(features[some].float(), recipe.width).to(device)
        optimiser = torch.optim.AdamW(values.parameters(), lr=recipe.learning_rate, weight_decay=0.05)
        for step in range(recipe.steps):
            optimiser.param_groups[0]["lr"] = recipe.learning_rate * (1 - step / recipe.steps)
            at = learned[torch.randint(len(learned), (recipe.batch_size,), generator=generator)]
            said, target = values(features[at].to(device)), targets[at].to(device)
            other = torch.log(-torch.expm1(said.clamp(max=-1e-6)))
            optimiser.zero_grad()
            (-(target * said + (1 - target) * other).mean()).backward()
            optimiser.step()
    values.eval().requires_grad_(False)
    if len(held):
        said, target = values(features[held].to(device)).exp().cpu(), targets[held]
        values.explained = float(1 - (said - target).square().mean() / target.var().clamp(min=1e-12))
    return values


def rises(values: Tensor, batch: TokenBatch, begins: Tensor, ends: Tensor) -> Tensor:
    """Return by how much the value rises with each token, (B, T), 0 in padding.

    Args:
        values: before each token, (B, T).
        batch: the responses.
        begins: the value of each prompt, (B,).
        ends: the value of each whole response, (n−1) log F≤, (B,).
    """
    mask, at = batch.response_mask.bool(), torch.arange(len(values), device=values.device)
    known = functional.pad(values, (0, 1))
    known[:, 0] = begins.to(known)
    known[at, mask.sum(1)] = ends.to(known)
    return (known[:, 1:] - known[:, :-1]) * mask
