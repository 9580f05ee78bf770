"""Every method on the enumerable language model, by exact gradients or by samples, and judged by exact sums."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from bonlib.course.experiments.mean_gains import mean_gain
from bonlib.course.making.enumerable import LENGTH, enumerate_log_probs, minimise, response_indices, responses
from bonlib.draws.rewards import RewardModel
from bonlib.exact import Array, Outcomes, Ties
from bonlib.methods.bonbon import Bonbon
from bonlib.methods.bond import Bond, jeffreys_loss
from bonlib.methods.jbond import JBond
from bonlib.models.loaded import LoadedModel
from bonlib.training.gradients import leave_one_out, reinforce_loss
from bonlib.training.off_policy import OffPolicy
from bonlib.training.on_policy import Judged, OnPolicy
from bonlib.training.policy import Anchor
from bonlib.training.reward_cdf import LogCdf

Indices = NDArray[np.intp]
Objective = Callable[[Tensor, float], Tensor]  # from log πθ, (P, 27³), and the share of the training that is over


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

    It is also the true CDF, as training asks for one: `log_strict` and `log_weak` look sampled responses up.

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
        self.prompt_ids = reference.encode(self.prompts, LENGTH)
        with torch.no_grad():
            log_probs = enumerate_log_probs(reference.model, self.prompt_ids)
        self._row = {prompt: row for row, prompt in enumerate(self.prompts)}
        rewards = [reward_model.score([prompt] * len(responses()), responses()) for prompt in self.prompts]
        self._tabulate(log_probs, np.stack(rewards))

    def seen_from(self, log_probs: Tensor) -> EnumeratedPrompts:
        """Return the same prompts and rewards with another policy for the reference, such as an anchor that moved.

        Args:
            log_probs: of all responses under it, shape (P, 27³).
        """
        seen = copy.copy(self)
        seen._tabulate(log_probs.detach(), self.rewards.numpy())
        return seen

    def _tabulate(self, log_probs: Tensor, rewards: Array) -> None:
        self.outcomes = [Outcomes(p, r) for p, r in zip(log_probs.exp().numpy(), rewards, strict=True)]
        self._calibrated = np.stack([o.calibrated_reward for o in self.outcomes])
        self.rewards, self.ref_log_probs, self.log_cdf, strict_cdf = (
            torch.from_numpy(np.stack([getattr(o, name) for o in self.outcomes]))
            for name in ("rewards", "log_probs", "log_cdf", "strict_cdf")
        )
        self.log_strict_cdf = strict_cdf.log()
        about = b"".join(table.numpy().tobytes() for table in (self.ref_log_probs, self.rewards))
        self.fingerprint = hashlib.sha256(about).hexdigest()

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

    def ascend(
        self,
        method: OnPolicy,
        *,
        count: int | None = None,
        cdf: LogCdf | None = None,
        easing: float = 0.0,
        seed: int = 0,
        group: int = 0,
    ) -> Objective:
        """Return what has the gradient that an on-policy method follows, averaged over prompts, or an estimate of it.

        Args:
            method: its returns' own gradient is not used, which is right where its mean is zero, as for all here.
            count: responses drawn from the policy a prompt and step, with the method's advantages, as the trainer does
                it; None to sum over all there are.
            cdf: what the method is told of the rewards' distribution; the truth if None.
            easing: share of the training over which the method's pull grows to its own, as in `TrainSettings`.
            seed: of the draws.
            group: how many of them are compared with each other, a divisor of `count`; 0 for all.
        """
        generator, listed = torch.Generator().manual_seed(seed), responses()
        told = None
        if cdf:  # what it says of all responses, once for all steps
            names, texts = [prompt for prompt in self.prompts for _ in listed], listed * len(self.prompts)
            told = [
                torch.from_numpy(ask(names, texts, self.rewards.flatten().numpy())).view_as(self.rewards)
                for ask in (cdf.log_strict, cdf.log_weak)
            ]

        def objective(log_probs: Tensor, progress: float) -> Tensor:
            now = method.eased(min(1.0, progress / easing)) if easing else method
            if count is None:
                drawn = torch.arange(len(listed)).expand_as(log_probs)
            else:
                drawn = torch.multinomial(log_probs.detach().exp(), count, replacement=True, generator=generator)
            if count is None:
                gain = self._mean_gains(now, log_probs, group)
                gain = _returns(now, self, log_probs, drawn, told).view_as(log_probs) if gain is None else gain
                return -(log_probs.exp() * gain).sum() / len(log_probs)
            judged, known = _judged(self, log_probs, drawn, told, group=group or count)
            advantages = now.advantages(judged, now.returns(judged, known))
            return reinforce_loss(log_probs.gather(1, drawn).flatten(), advantages).mean()

        return objective

    def _mean_gains(self, method: OnPolicy, log_probs: Tensor, group: int) -> Tensor | None:
        """What each response gains if what the policy draws beside it matters, (P, 27³); None if it does not."""
        now = log_probs.detach()
        policies = (o.rebase((p / p.sum()).numpy()) for o, p in zip(self.outcomes, now.exp(), strict=True))
        gains = [gain for policy in policies if (gain := mean_gain(method, policy, group)) is not None]
        if not gains:
            return None
        return torch.from_numpy(np.stack(gains)) - method.kl_coefficient * (now - self.ref_log_probs)

    def imitate(self, n: float) -> Objective:
        """Return the cross-entropy with best-of-n, E_πn[−log πθ]: BoN-SFT on all samples there are."""
        target = self.log_best_of(n).exp()
        return lambda log_probs, progress: -(target * log_probs).sum() / len(log_probs)

    def learn(self, method: OffPolicy, *, count: int, seed: int = 0) -> Objective:
        """Return the mean loss of an off-policy method over draws of the reference.

        All pairs are too many to list (2·10⁸ a prompt), so each step draws fresh ones. Where single draws have targets,
        the mean is over all there are, with the true targets.

        Args:
            method: learns from the best and the worst of its n draws, or of 2 if it has no n, or from targets.
            count: such examples a prompt and step, of those that are drawn. A pair of one draw with itself, where all
                are tied, has no gradient in a difference of log-probabilities.
            seed: of the draws.
        """
        found = [known for outcomes in self.outcomes if (known := method.known(outcomes)) is not None]
        if found:
            chances, targets = (torch.from_numpy(np.concatenate(column)) for column in zip(*found, strict=True))
            reference = self.ref_log_probs.view(-1, 1)

            def exact(log_probs: Tensor, progress: float) -> Tensor:
                return chances @ method.loss(log_probs.view(-1, 1), reference, targets) / len(found)

            return exact
        n, calls = getattr(method, "n", 2), iter(range(1 << 62))
        if isinstance(method, Bonbon):
            best, _ = self.best_and_worst(method.n, 10_000, [seed])
            method = method.balanced(self.ref_log_probs.gather(1, torch.from_numpy(best)))

        def objective(log_probs: Tensor, progress: float) -> Tensor:
            pairs = [torch.from_numpy(drawn) for drawn in self.best_and_worst(n, count, [seed, next(calls)])]
            policy, reference = (
                torch.stack([table.gather(1, which).flatten() for which in pairs], dim=1)
                for table in (log_probs, self.ref_log_probs)
            )
            return method.loss(policy, reference).mean()

        return objective

    def learn_stored(self, method: OffPolicy, *, count: int, seed: int = 0) -> Objective:
        """Return the mean loss of an off-policy method over all its examples from stored draws of the reference.

        Args:
            method: chooses the examples.
            count: stored draws a prompt, the same at each step.
            seed: of the draws and of the choice.

        Raises:
            ValueError: if the draws make no example.
        """
        rng = np.random.default_rng(seed)
        stored = np.stack([rng.choice(len(o), count, p=o.probs) for o in self.outcomes])
        prompts, draws, weights, targets = method.examples(
            np.take_along_axis(self.rewards.numpy(), stored, axis=1), seed=seed
        )
        if not len(prompts):
            raise ValueError(f"count is {count}; {method} finds no example in so few draws: take more")
        at = torch.from_numpy(prompts[:, None]), torch.from_numpy(stored[prompts[:, None], draws])
        reference = self.ref_log_probs[at]
        method = method.balanced(reference[:, 0], weights)
        told = None if targets is None else torch.from_numpy(targets)
        if weights is None:
            return lambda log_probs, progress: method.loss(log_probs[at], reference, told).mean()
        shares = torch.from_numpy(weights / weights.sum())
        return lambda log_probs, progress: shares @ method.loss(log_probs[at], reference, told)


class Distillation:
    """BOND or J-BOND on the enumerable model, as an objective for `train_exactly`; its anchor follows the policy.

    Args:
        prompts: with the reference, which the policy must be when training begins: the anchor is a copy of it.
        method: which of the two, and how its anchor moves.
        policy: the one that is trained.
        count: best-of-n responses and as many of the policy, a prompt and step; None to sum over all there are, with
            J-BOND's reward in its mean over the anchor's two responses.
        seed: of the draws.
    """

    def __init__(
        self,
        prompts: EnumeratedPrompts,
        method: Bond | JBond,
        policy: torch.nn.Module,
        *,
        count: int | None = None,
        seed: int = 0,
    ) -> None:
        self.method, self.policy, self.count, self.seed = method, policy, count, seed
        self._see(prompts)
        self.anchor, self.steps = Anchor(policy.parameters()), 0
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, log_probs: Tensor, progress: float) -> Tensor:
        """Return what has the gradient of divergence and regulariser, from log πθ of all responses, (P, 27³)."""
        if self.steps and self.method.moves_after(self.steps):
            self.anchor.move(self.method.anchor_rate)
            with torch.no_grad(), self.anchor.in_place():
                self._see(self.seen.seen_from(self.policy()))
        self.steps += 1
        return self._exact(log_probs) if self.count is None else self._from_draws(log_probs, self.count)

    def _see(self, prompts: EnumeratedPrompts) -> None:
        """Take prompts with another reference, which stays until the anchor moves."""
        self.seen, self.likelihood = prompts, prompts.imitate(self.method.n)

    def _exact(self, log_probs: Tensor) -> Tensor:
        method, seen, now = self.method, self.seen, log_probs.detach()
        drift = now - seen.ref_log_probs
        if isinstance(method, JBond):
            gain = -math.log(16) * (1 - seen.log_cdf.exp()) ** 2 - drift
        else:
            gain = _returns(method, seen, now, torch.arange(now.shape[1]).expand_as(now)).view_as(now)
        reverse = -(log_probs.exp() * gain).sum() / len(now)
        drifting = (log_probs.exp() * drift).sum() / len(now)
        weight = method.jeffreys_weight
        forward = self.likelihood(log_probs, 1.0)
        return (1 - weight) * forward + weight * (method.n - 1) * reverse + method.regulariser * drifting

    def _from_draws(self, log_probs: Tensor, count: int) -> Tensor:
        method, seen = self.method, self.seen
        drawn = torch.multinomial(log_probs.detach().exp(), count, replacement=True, generator=self.generator)
        best, worst = map(torch.from_numpy, seen.best_and_worst(method.n, count, [self.seed, self.steps]))
        pairs = seen.rewards.gather(1, torch.stack([best, worst], dim=2).flatten(1)).view(-1, 2)
        returns = _returns(method, seen, log_probs, drawn, pairs=pairs)
        own, learned, anchor = (
            table.gather(1, which).flatten()
            for table, which in ((log_probs, drawn), (log_probs, best), (seen.ref_log_probs, drawn))
        )
        advantages, drifts = (leave_one_out(x, group=count) for x in (returns, own.detach() - anchor))
        weight = method.jeffreys_weight
        loss = jeffreys_loss(learned, own, advantages, n=method.n, jeffreys_weight=weight)
        return (loss + method.regulariser * reinforce_loss(own, -drifts)).mean()


def _returns(
    method: OnPolicy,
    seen: EnumeratedPrompts,
    log_probs: Tensor,
    drawn: Tensor,
    told: Sequence[Tensor] | None = None,
    pairs: Tensor | None = None,
) -> Tensor:
    """What responses are worth, flat."""
    return method.returns(*_judged(seen, log_probs, drawn, told, pairs))


def _judged(
    seen: EnumeratedPrompts,
    log_probs: Tensor,
    drawn: Tensor,
    told: Sequence[Tensor] | None = None,
    pairs: Tensor | None = None,
    group: int = 0,
) -> tuple[Judged, LogCdf]:
    """Responses, flat, by their places (P, B), and the CDF they are told of, F and F≤, (P, 27³) each."""
    tables = (log_probs.detach(), seen.ref_log_probs, seen.rewards, *(told or (seen.log_strict_cdf, seen.log_cdf)))
    mine, reference, rewards, strict, weak = (table.gather(1, drawn).flatten() for table in tables)
    names = [prompt for prompt in seen.prompts for _ in range(drawn.shape[1])]
    texts = np.array(responses(), dtype=object)[drawn.flatten().numpy()]
    return Judged(names, texts, mine, reference, rewards, pairs, group), _Known(strict.numpy(), weak.numpy())


class _Known(NamedTuple):
    """A CDF that is looked up already, for the very responses it is asked about."""

    strict: Array
    weak: Array

    def log_strict(self, prompts: Sequence[str], responses: Sequence[str], rewards: ArrayLike) -> Array:
        return self.strict

    def log_weak(self, prompts: Sequence[str], responses: Sequence[str], rewards: ArrayLike) -> Array:
        return self.weak


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


def train_exactly(
    policy: torch.nn.Module, objective: Objective, *, steps: int, learning_rate: float, decay: bool = True
) -> list[float]:
    """Minimise an objective over a policy, in place, by Adam with exact gradients; return its value at each step.

    Args:
        policy: `TabularPolicy` (a learning rate of 0.1 suits it) or `ListedPolicy` (0.006).
        objective: made by `EnumeratedPrompts`.
        steps: at least 1.
        learning_rate: at its peak; it falls to 0 along a cosine.
        decay: whether it does, or stays.

    Raises:
        ValueError: if `steps` or `learning_rate` is out of range.
    """
    if steps < 1 or not 0 < learning_rate < math.inf:
        raise ValueError(f"steps is {steps} and learning_rate {learning_rate}; both must be positive and finite")
    # Probabilities of responses, and with them gradients, span many orders and change by orders: the optimiser must
    # take small ones seriously and forget old ones soon.
    optimiser = torch.optim.Adam(policy.parameters(), lr=learning_rate, betas=(0.9, 0.9), eps=1e-15)
    return minimise(lambda progress: objective(policy(), progress), optimiser, steps, steps // 20, decay)
