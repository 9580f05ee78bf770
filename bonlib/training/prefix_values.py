"""What a response is worth after some of its tokens: log E[F≤^(n−1)] over the ways in which the reference goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from bonlib.cdf import EmpiricalCdf
from bonlib.checks import number, settle, whole
from bonlib.draws.rewards import RewardModel
from bonlib.draws.store import Draws
from bonlib.exact import Array
from bonlib.models.loaded import LoadedModel
from bonlib.models.reading import TokenBatch, next_states, response_states
from bonlib.models.ways import inner
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
    prefixes: int = 25
    held_out: float = 0.0625
    width: int = 256
    steps: int = 2500
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

    In the optimum of vBoN's L, and in best-of-n where no rewards tie, the next token has the log-ratio to the reference
    by which this value rises with it.

    Args:
        features: what is known of each prefix, (E, width), for their means and spreads.
        width: of the hidden layers.

    Attributes:
        explained: share of the variance of F≤^(n−1) on prompts held out, by the number of tokens.
    """

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
        self.explained: dict[int, float] = {}

    def forward(self, features: Tensor) -> Tensor:
        """Return log E[F≤^(n−1)], at most 0, of features (…, width)."""
        return functional.logsigmoid(self.layers((features.float() - self.centre) / self.spread)[..., 0])


class PrefixReader:
    """What is known of prefixes: where the layers of the judge end there, and how the prompt's rewards are spread.

    A reward model that is a causal classifier over the same tokens has read for the reward already. In the place of
    any other the reference reads, from which the values may explain next to nothing: `PrefixValues.explained` tells.

    Args:
        reference: the model that drew.
        reward_model: the judge.
        prompts: P of them.
        rewards: of stored draws, (P, M).
    """

    def __init__(self, reference: LoadedModel, reward_model: RewardModel, prompts: Sequence[str], rewards: Array):
        judge, self.model = getattr(reward_model, "loaded", None), reference.model
        if isinstance(judge, LoadedModel) and judge.tokenizer.get_vocab() == reference.tokenizer.get_vocab():
            self.model = judge.model if _is_causal(judge) else reference.model
        spread = max(float(rewards.std()), 1e-12)
        told = (np.quantile(rewards, QUANTILES, axis=1).T - rewards.mean()) / spread
        self.told = dict(zip(prompts, torch.from_numpy(told).float(), strict=True))

    @torch.no_grad()
    def along(self, prompts: Sequence[str], batch: TokenBatch) -> Tensor:
        """Return what is known before each token of the responses and after the last one, (B, T + 1, width)."""
        said = response_states(self.model, batch, along=True)
        return self._known(prompts, said, torch.arange(said.shape[1], device=said.device))

    @torch.no_grad()
    def next(self, prompts: Sequence[str], batch: TokenBatch) -> Tensor:
        """Return what would be known with each token `instead` of a response's own, (B, T, K, width), 0 in padding."""
        said = next_states(self.model, batch)
        lengths = torch.arange(1, said.shape[1] + 1, device=said.device)
        return self._known(prompts, said, lengths[:, None])

    def _known(self, prompts: Sequence[str], said: Tensor, lengths: Tensor) -> Tensor:
        """What layers said, (B, …, H), with the spread of the prompt's rewards and the number of tokens, (…)."""
        told = torch.stack([self.told[prompt] for prompt in prompts]).to(said.device)
        told = told.view(len(told), *[1] * (said.ndim - 2), -1).expand(*said.shape[:-1], -1)
        length = (lengths / 32).expand(said.shape[:-1])[..., None]
        return torch.cat([said.float(), told, length, torch.log1p(length)], dim=-1)


@torch.no_grad()
def _is_causal(judge: LoadedModel) -> bool:
    """Whether what a model says of the first tokens stays when the last one changes."""
    model, device = inner(judge.model).base_model, judge.device
    first, second = (model(torch.tensor([[2, 3, 4, last]], device=device)).last_hidden_state for last in (5, 6))
    return bool(torch.allclose(first[:, :3], second[:, :3], rtol=1e-3, atol=1e-4))


def response_values(rewards: Array, n: float) -> Array:
    """Return (n−1) log F≤ of stored draws, shape (P, M), from their rewards, by the posterior mean: none is −∞."""
    return np.stack([(n - 1) * EmpiricalCdf(row).log_weak(row) for row in rewards])


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
    features, targets, owner, lengths = [], [], [], []
    for place, (prompt, responses) in enumerate(zip(draws.prompts, draws.responses, strict=True)):
        batch = tokens.batch([prompt] * each, [responses.token_ids[draw].tolist() for draw in range(each)])
        known = reader.along([prompt] * each, batch).cpu()
        real = functional.pad(batch.response_mask.cpu().bool(), (1, 0), value=True)
        order = torch.from_numpy(rng.random(real.shape)).masked_fill(~real, 2.0).argsort(1)
        taken = torch.zeros_like(real).scatter(1, order[:, : recipe.prefixes], True) & real
        features.append(known[taken].half())
        targets.append(worth[place, :each, None].expand(taken.shape)[taken])
        lengths.append(taken.nonzero()[:, 1])
        owner.append(torch.full((len(targets[-1]),), place))
    fitted = torch.cat(features), torch.cat(targets), torch.cat(lengths)
    return _fitted(*fitted, torch.cat(owner), len(draws.prompts), recipe, tokens.device)


@torch.enable_grad()  # a learner asks for values while it takes no gradients
def _fitted(
    features: Tensor,
    targets: Tensor,
    lengths: Tensor,
    owner: Tensor,
    prompts: int,
    recipe: PrefixRecipe,
    device: torch.device,
) -> PrefixValues:
    begins = prompts - int(recipe.held_out * prompts)  # those from there on are held out
    learned, held = (owner < begins).nonzero()[:, 0], owner >= begins
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
    for length in sorted(set(lengths[held].tolist())):
        here = held & (lengths == length)
        said, target = values(features[here].to(device)).exp().cpu(), targets[here]
        values.explained[length] = float(1 - (said - target).square().mean() / target.var(correction=0).clamp(1e-12))
    return values
