"""What may lower the noise of vBoN for no further draw: stored draws, random numbers chosen well, means of weights.

Each estimator is tried on the enumerable model, where the true gradient is known, and on movie reviews.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bonlib.checks import one_of
from bonlib.course.experiments.enumerated import EnumeratedPrompts, ListedPolicy, Objective, train_exactly
from bonlib.course.experiments.exact_runs import N, rate_of, reference, world
from bonlib.course.experiments.results import RESULTS, add_run, done_runs, provenance
from bonlib.course.experiments.sentiment import Run
from bonlib.course.profiles import Profile
from bonlib.course.runner import commit_of_workbook
from bonlib.methods.bon_regression import BonRegression
from bonlib.methods.vbon import Vbon
from bonlib.training.gradients import leave_one_out, reinforce_loss
from bonlib.training.learner import Learner, OngoingRun, summed
from bonlib.training.on_policy import DrawnShard, Judged, ReinforceLearner
from bonlib.training.policy import Anchor, Policy

ESTIMATORS = {
    "others": "the mean of the other draws as a baseline, as everywhere else",
    "stored": "the mean over stored draws, by their likelihood ratios, as a baseline",
    "common": "the random numbers of a round of the prompts again in each round",
    "spaced": "draws of a prompt by random numbers that are evenly spaced, with the baseline of `stored`",
}
WAYS = {
    "averaged": "as `others`, and the mean of the weights over the second half of the training",
    "anchor": "as `others`, and an anchor that has followed the weights, which is the policy in the end",
    "warm": "BoN regression from as many stored draws as half of the training would take, then `others`",
}
TABLE = RESULTS / "exact_noise.parquet"
COUNT, STEPS, ROUND, SEEDS = 8, 150, 10, 5  # draws a prompt and step, steps, those to a round, and seeds on the letters
STORED = 32  # draws a prompt that a baseline is made from
ANCHOR_RATE = 0.02  # share of the weights that an anchor takes up at each step
TRIES = 400  # gradients that a variance is taken of
AFTER = (0, 10, 50)  # steps of exact training after which it is


def spaced(uniforms: Tensor) -> Tensor:
    """Return numbers in [0, 1), (P, count), evenly spaced on a circle, from the first of each row.

    Each is as random as before on its own.
    """
    count = uniforms.shape[1]
    return (uniforms[:, :1] + torch.arange(count) / count) % 1


def estimate(prompts: EnumeratedPrompts, n: float, estimator: str, count: int, seed: int) -> Objective:
    """Return what has vBoN's policy gradient for its mean, from draws of the policy.

    Args:
        prompts: with the truth about rewards.
        n: number of draws of best-of-n.
        estimator: one of `ESTIMATORS`.
        count: draws a prompt and step.
        seed: of the draws and the stored ones.
    """
    one_of("estimator", estimator, ESTIMATORS)
    target, steps = prompts.log_best_of(n), itertools.count()
    chances = prompts.ref_log_probs.exp()
    stored = torch.multinomial(chances, STORED, replacement=True, generator=torch.Generator().manual_seed(seed))

    def objective(log_probs: Tensor, progress: float) -> Tensor:
        step, now = next(steps), log_probs.detach()
        rng = np.random.default_rng([seed, step % ROUND if estimator == "common" else step])
        uniforms, upto = torch.from_numpy(rng.random((len(now), count))), now.exp().cumsum(1)
        numbers = spaced(uniforms) if estimator == "spaced" else uniforms
        drawn = torch.searchsorted(upto, numbers * upto[:, -1:], right=True)
        returns = target - now
        gained = returns.gather(1, drawn)
        if estimator in ("stored", "spaced"):
            ratios = (now - prompts.ref_log_probs).gather(1, stored)
            advantages = gained - (ratios.softmax(1) * returns.gather(1, stored)).sum(1, keepdim=True)
        else:
            advantages = leave_one_out(gained.flatten(), group=count).view_as(gained)
        return reinforce_loss(log_probs.gather(1, drawn).flatten(), advantages.flatten()).mean()

    return objective


def noise_of(estimator: str, after: int) -> dict[str, float]:
    """Return how noisy an estimator's gradient is on the letters, for a policy on its way to best-of-N.

    Args:
        estimator: one of `ESTIMATORS`.
        after: steps of exact training.

    Returns:
        The mean square of the distance from the true gradient, as a share of the true one's square, and its error; and
        the distance of the mean of all tries from the true one, as a share of its length.
    """
    prompts = world("letters")
    policy = ListedPolicy(copy.deepcopy(reference().model), prompts.prompt_ids)
    exact, drawn = prompts.ascend(Vbon(N)), estimate(prompts, N, estimator, COUNT, 0)
    if after:
        train_exactly(policy, exact, steps=after, learning_rate=rate_of("vbon", "network"))
    learned, log_probs = list(policy.parameters()), policy()

    def gradient(objective: Objective) -> Tensor:
        found = torch.autograd.grad(objective(log_probs, 1.0), learned, retain_graph=True, allow_unused=True)
        return torch.cat([part.flatten() for part in found if part is not None])

    truth = gradient(exact)
    off = torch.stack([gradient(drawn) - truth for _ in range(TRIES)])
    squares = off.square().sum(1) / truth.square().sum()
    error = float(squares.std()) / TRIES**0.5
    return {"noise": float(squares.mean()), "noise_se": error, "bias": float(off.mean(0).norm() / truth.norm())}


def followed(anchor: Tensor, weights: Tensor, count: Tensor | int) -> Tensor:
    """Return what an anchor is after a step."""
    return torch.lerp(anchor, weights, ANCHOR_RATE)


def ends_of(way: str, seed: int) -> dict[str, float]:
    """Return where training on the letters ends, by an estimator or one of `WAYS`."""
    prompts, steps = world("letters"), STEPS
    policy = ListedPolicy(copy.deepcopy(reference().model), prompts.prompt_ids)
    if way == "warm":
        steps //= 2
        stored = prompts.learn_stored(BonRegression(N), count=COUNT * steps, seed=seed)
        train_exactly(policy, stored, steps=steps, learning_rate=rate_of("bon-regression", "network"))
    objective = estimate(prompts, N, "others" if way in WAYS else way, COUNT, seed)
    mean = torch.optim.swa_utils.AveragedModel(policy, avg_fn=followed if way == "anchor" else None)

    def watched(log_probs: Tensor, progress: float) -> Tensor:
        if progress > 0.5 or way == "anchor":
            mean.update_parameters(policy)
        return objective(log_probs, progress)

    train_exactly(policy, watched, steps=steps, learning_rate=rate_of("vbon", "network"))
    with torch.no_grad():
        return prompts.judge((mean if way in ("averaged", "anchor") else policy)(), N).means()


def run_letters() -> None:
    """Measure every estimator's noise on the letters, and train by it with several seeds; done rows stay."""
    about = {"count": COUNT, **provenance(torch.device("cpu"), commit_of_workbook())}
    tasks: list[tuple[Callable[[str, int], dict[str, float]], str, int]] = [
        *((noise_of, "after", after) for after in AFTER),
        *((ends_of, "seed", seed) for seed in range(SEEDS)),
    ]
    for (measure, name, value), estimator in itertools.product(tasks, [*ESTIMATORS, *WAYS]):
        identity = f"{estimator}, {name} {value}"
        # Within a step, numbers that come again later are as random as others.
        if identity in done_runs(TABLE) or (measure is noise_of and estimator in ("common", *WAYS)):
            continue
        found = measure(estimator, value)
        add_run(TABLE, identity, {"estimator": estimator, name: value, **found, **about})
        print(f"{identity}: " + ", ".join(f"{key} {figure:.3f}" for key, figure in found.items()), flush=True)


class CommonNumbers(ReinforceLearner):
    """Draws by the same random numbers for the same prompts in each round."""

    def within(self, step: int) -> int:
        """Return which step of its round a step is."""
        return step % max(len(self.data.prompts) // self.settings.prompts, 1)

    def chosen(self, step: int, place: int) -> list[int]:
        """Return which prompts a shard has: those of the first round."""
        return super().chosen(self.within(step), place)

    def answers(self, chosen: Sequence[int], count: int, place: Sequence[int]) -> tuple[Judged, list[list[int]]]:
        """Return responses as in the first round."""
        return super().answers(chosen, count, [self.within(place[0]), *place[1:]])


class StoredBaseline(ReinforceLearner):
    """Compares a response with the mean of its prompt as stored draws tell it."""

    def __init__(self, method: Vbon, run: OngoingRun) -> None:
        super().__init__(method, run)
        self.draws, self.rewards, fingerprint = run.data.scored_draws(STORED, method)
        self.learned_from, self.reader = f"{self.learned_from} {fingerprint}", Policy(run.loaded.model)

    def shard(self, step: int, place: int) -> DrawnShard:
        """Draw responses, and say how much better each is than its prompt's mean."""
        shard = super().shard(step, place)
        chosen = self.chosen(step, place)
        prompts = [self.data.prompts[i] for i in chosen for _ in range(STORED)]
        kept = [self.draws.responses[i][:STORED] for i in chosen]
        tokens = [row for responses in kept for row in responses.token_ids.tolist()]
        log_probs = summed(self.reader.read(self.tokens.batch(prompts, tokens)))
        ref_log_probs = torch.from_numpy(np.concatenate([responses.log_probs for responses in kept]))
        texts = [text for responses in kept for text in responses.texts.tolist()]
        rewards = torch.from_numpy(self.rewards[chosen, :STORED].flatten())
        judged = Judged(prompts, texts, log_probs, ref_log_probs, rewards, group=STORED)
        returns = self.eased(step).returns(judged, self.data.cdf)
        ratios = (log_probs - ref_log_probs).view(-1, STORED).softmax(1)
        means = (ratios * returns.view(-1, STORED)).sum(1)
        own = shard.returns - means.repeat_interleave(len(shard.returns) // len(chosen))
        return replace(shard, advantages=own.float().to(self.tokens.device))


class Averaged(ReinforceLearner):
    """Ends at the mean of the weights over the second half of the training."""

    def __init__(self, method: Vbon, run: OngoingRun) -> None:
        super().__init__(method, run)
        self.weights = [weight for weight in run.policy.parameters() if weight.requires_grad]
        self.mean = Anchor(self.weights)
        run.policy.add_module("mean", self.mean)  # so that checkpoints have it

    def rate(self, steps: int) -> float:
        """Return what share of the weights the mean takes up after so many steps."""
        return 1 / max(steps - self.settings.steps // 2, 1)

    def stepped(self, steps: int) -> None:
        """Go on with the mean, and put it in the policy's place at the end."""
        self.mean.move(self.rate(steps))
        if steps == self.settings.steps:
            with torch.no_grad():
                for weight, mean in zip(self.weights, self.mean.buffers(), strict=True):
                    weight.copy_(mean)


class Followed(Averaged):
    """Ends at an anchor that has followed the weights."""

    def rate(self, steps: int) -> float:
        """Return the same at every step."""
        return ANCHOR_RATE


LEARNERS: dict[str, Callable[[Vbon, OngoingRun], Learner[Any]]] = {
    "others": ReinforceLearner,
    "stored": StoredBaseline,
    "common": CommonNumbers,
    "averaged": Averaged,
    "anchor": Followed,
}


@dataclass(frozen=True)
class VbonBy(Vbon):
    """vBoN with one of `LEARNERS`."""

    estimator: str = "others"

    @property
    def needs_draws(self) -> int:
        """Those that a baseline is made from, or that a warm start learns from."""
        return STORED if self.estimator == "stored" else super().needs_draws

    def learner(self, run: OngoingRun) -> Learner[Any]:
        """Return what learns by it."""
        return super().learner(run) if self.warm else LEARNERS[self.estimator](self, run)


@dataclass(frozen=True)
class EstimatorRun(Run):
    """A run of vBoN with the estimator that its options name."""

    def make(self) -> VbonBy:
        """Return the method."""
        return VbonBy(self.value, **dict(self.options))


def noise_grid(profile: Profile, methods: Sequence[str] = ()) -> list[Run]:
    """Return the runs on reviews: vBoN by each other estimator, and what else methods may take from stored draws.

    BOND and BoN-SFT learn from them by weights; BoN regression from others than the best, or without likelihood.
    """
    variants: list[tuple[str, float, tuple[tuple[str, Any], ...]]] = [
        *(("bon-regression", 8, (option,)) for option in REGRESSIONS),
        *((method, n, (("picks", "weights"),)) for method in ("bond", "bon-sft") for n in (8, 32)),
        *(("vbon", 8, (("estimator", estimator),)) for estimator in LEARNERS if estimator != "others"),
        ("vbon", 8, (("warm", 0.5),)),
    ]
    return [
        (EstimatorRun if method == "vbon" else Run)(method, value, seed, "noise", options=options)
        for seed in profile.training.seeds
        for method, value, options in variants
        if not methods or method in methods
    ]


REGRESSIONS = (("sampling", "half"), ("sampling", "reference"), ("likelihood", 0.0))
