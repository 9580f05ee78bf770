"""What a step learns from, and its loss: from draws of the reference, or from the policy's own.

The loop asks a learner for the shards of a step, lets it weigh them all together, and then for the loss of each.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bonlib.draws.rewards import checked_score
from bonlib.draws.samplers import TransformersSampler
from bonlib.draws.store import Draws
from bonlib.models.loaded import LoadedModel
from bonlib.models.reading import TokenBatch, token_batch
from bonlib.training.gradients import gae, leave_one_out, ppo_loss, ppo_value_loss, reinforce_loss
from bonlib.training.policy import Anchor, Policy
from bonlib.training.protocol import Judged, OnPolicy
from bonlib.training.settings import TrainingData, TrainSettings

T = TypeVar("T")
Array = NDArray[Any]
Indices = NDArray[np.intp]
ExpectFinite = Callable[[str, Tensor, Sequence[str]], None]  # what it is, the numbers, the prompts in question


@dataclass(eq=False)
class Shard:
    """A part of a step's responses, with all that their loss needs.

    Attributes:
        batch: what the policy reads, with gradients.
        prompts: of the responses; with BOND, of the policy's, which come first in the batch.
        reference: log π; on policy of each token, (B, T), off policy of each example's responses, (E, roles).
        returns: on policy, what each response is worth, (B,), on the CPU.
        figures: on policy, means for the curve and the progress bar.
        advantages: on policy, how much better than expected each response was, (B,); with PPO each token, (B, T).
        old_log_probs, old_values: with PPO, of tokens under the policy that drew them, (B, T).
        token_rewards: with PPO, the return spread over the tokens, (B, T).
        targets: with PPO, what the values should have been, (B, T).
        drifts: with BOND, how much more each response's log πθ − log π_anchor is than expected, (B,).
    """

    batch: TokenBatch
    prompts: Sequence[str]
    reference: Tensor
    returns: Tensor | None = None
    figures: Mapping[str, float] | None = None
    advantages: Tensor | None = None
    old_log_probs: Tensor | None = None
    old_values: Tensor | None = None
    token_rewards: Tensor | None = None
    targets: Tensor | None = None
    drifts: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Ingredients:
    """What a learner is made from.

    Attributes:
        method: says what a response is worth, or which examples are learned and by which loss.
        data: prompts and their judges.
        settings: sizes of a step.
        tokens: the prompts as tokens.
        policy: draws and learns.
        loaded: its language model.
        anchor: what follows the policy, where the method has one.
        reference: where it started.
        expect_finite: stops the run if a number is not.
        add_up: adds a tensor over processes.
    """

    method: Any
    data: TrainingData
    settings: TrainSettings
    tokens: PromptTokens
    policy: torch.nn.Module
    loaded: LoadedModel
    anchor: Anchor | None
    reference: LoadedModel
    expect_finite: ExpectFinite
    add_up: Callable[[Tensor], Tensor]


class Learner(Protocol):
    """One way to learn."""

    epochs: int  # gradient steps on the same shards
    responses: int  # drawn, or taken from the store, at each step
    learned_from: str | None  # a hash of stored draws, and of the CDF, that it learns from

    def shard(self, step: int, place: int) -> Shard:
        """Return what a step learns from, the part at one of its `settings.shards` places."""
        ...

    def weigh(self, shards: Sequence[Shard]) -> None:
        """Write down what has to be known of all shards of this process before the first gradient."""
        ...

    def loss(self, shard: Shard, log_probs: Tensor, values: Tensor | None) -> Tensor:
        """Return the mean loss of a shard, from what the policy says of its tokens, (B, T) each."""
        ...

    def stepped(self, steps: int) -> None:
        """Take note that so many steps are done."""
        ...


class PromptTokens:
    """The prompts as token ids, and batches of them with responses."""

    def __init__(self, reference: LoadedModel, data: TrainingData) -> None:
        room, self.pad_id = data.sampling.max_new_tokens, reference.pad_token_id
        encoded = reference.encode(data.prompts, room)
        self.ids = dict(zip(data.prompts, encoded, strict=True))
        self.device = reference.device

    def batch(self, prompts: Sequence[str], responses: Sequence[Sequence[int]]) -> TokenBatch:
        """Return prompts and responses (−1 after their end) as one batch."""
        real = [[token for token in row if token >= 0] for row in responses]
        return token_batch([self.ids[prompt] for prompt in prompts], real, pad_id=self.pad_id, device=self.device)


class Rounds:
    """An endless row of things, each of `count` once a round, in a new random order each round."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed, self.round = count, seed, -1
        self.order = np.empty(0, np.intp)

    def at(self, begin: int, count: int) -> list[int]:
        """Return the things at `count` places of the row."""
        return [self._one(place) for place in range(begin, begin + count)]

    def _one(self, place: int) -> int:
        which, within = divmod(place, self.count)
        if which != self.round:
            self.round, self.order = which, np.random.default_rng([self.seed, which]).permutation(self.count)
        return int(self.order[within])


class OffPolicyLearner:
    """Minimises a method's loss over stored draws of the reference."""

    epochs = 1

    def __init__(self, run: Ingredients) -> None:
        method, data, settings, tokens = run.method, run.data, run.settings, run.tokens
        stored, rewards = enough_draws(data, method.needs_draws, method)
        self.examples = method.examples(rewards, seed=settings.seed)
        prompts, draws = self.examples
        if not len(prompts):
            raise ValueError(f"{method} finds no example in the draws: are all rewards of a prompt equal?")
        if hasattr(method, "balanced"):
            method = method.balanced(stored.log_probs[prompts, draws[:, 0]])
        self.method, self.draws, self.tokens = method, stored, tokens
        self.learned_from: str | None = fingerprint_of(rewards, stored.log_probs)
        self.rounds = Rounds(len(prompts), settings.seed)
        self.responses = settings.prompts * settings.group
        self.step_size = self.responses // draws.shape[1]  # examples
        self.shard_size = self.step_size // settings.shards

    def shard(self, step: int, place: int) -> Shard:
        """Take the next examples."""
        prompts, draws = self.examples
        chosen = self.rounds.at(step * self.step_size + place * self.shard_size, self.shard_size)
        pairs = [(prompts[example], draw) for example in chosen for draw in draws[example]]
        names = [self.draws.prompts[prompt] for prompt, _ in pairs]
        batch = self.tokens.batch(names, [self.draws.responses[p].token_ids[d].tolist() for p, d in pairs])
        reference = torch.tensor([self.draws.responses[p].log_probs[d] for p, d in pairs])
        return Shard(batch, names, reference.view(-1, draws.shape[1]))

    def weigh(self, shards: Sequence[Shard]) -> None:
        """Do nothing: examples do not depend on each other."""

    def loss(self, shard: Shard, log_probs: Tensor, values: Tensor | None) -> Tensor:
        """Return the method's mean loss."""
        return self.method.loss(summed(log_probs).view_as(shard.reference), shard.reference).mean()

    def stepped(self, steps: int) -> None:
        """Do nothing: the draws stay."""


class ReinforceLearner:
    """Ascends a method's return by the policy gradient, with a leave-one-out baseline."""

    epochs = 1

    def __init__(self, run: Ingredients) -> None:
        method, data, settings = run.method, run.data, run.settings
        if method.needs_cdf and data.cdf is None:
            raise ValueError(f"cdf is None; {method} needs the rewards' distribution: give a SampledCdf")
        self.method, self.data, self.settings, self.tokens = method, data, settings, run.tokens
        self.policy, self.frozen, self.expect_finite = run.policy, Policy(run.reference.model), run.expect_finite
        self.sampler = TransformersSampler(run.loaded, batch_size=settings.prompts * settings.group)
        self.rounds = Rounds(len(data.prompts), settings.seed)
        self.responses = settings.prompts * settings.group
        self.learned_from: str | None = getattr(data.cdf, "fingerprint", None) if method.needs_cdf else None

    def shard(self, step: int, place: int) -> Shard:
        """Draw responses from the policy, score them and say what each is worth."""
        judged, tokens = self.answers(self.chosen(step, place), self.settings.group, [step, place])
        batch = self.tokens.batch(judged.prompts, tokens)
        reference = read(self.frozen, batch)
        judged = judged._replace(ref_log_probs=summed(reference))
        returns = self.eased(step).returns(judged, self.data.cdf)
        return Shard(batch, judged.prompts, reference, returns, self.figures(judged, returns))

    def chosen(self, step: int, place: int) -> list[int]:
        """Return which prompts a shard has."""
        count = self.settings.prompts // self.settings.shards
        return self.rounds.at(step * self.settings.prompts + place * count, count)

    def answers(self, chosen: Sequence[int], count: int, place: Sequence[int]) -> tuple[Judged, list[list[int]]]:
        """Return `count` responses to each of some prompts by the model as it is now; log π is still to be filled in.

        Args:
            chosen: places of the prompts.
            count: responses to each, those of one prompt together.
            place: identifies the draw, for its seed.
        """
        prompts = [self.data.prompts[i] for i in chosen for _ in range(count)]
        seed = int(np.random.SeedSequence([self.settings.seed, *place]).generate_state(1, np.uint64)[0] >> 1)
        ids = [self.tokens.ids[prompt] for prompt in prompts]
        drawn = self.sampler.sample_tokens(ids, self.data.sampling, seed=seed)
        log_probs = torch.as_tensor(drawn.log_probs)
        self.expect_finite("a log-probability", log_probs, prompts)
        texts = drawn.texts.tolist()
        rewards = torch.as_tensor(checked_score(self.data.reward_model, prompts, drawn))
        return Judged(
            prompts, texts, log_probs, torch.full_like(log_probs, torch.nan), rewards
        ), drawn.token_ids.tolist()

    def figures(self, judged: Judged, returns: Tensor) -> dict[str, float]:
        """Return the means for the curve, after a check of the returns."""
        self.expect_finite("a return", returns, judged.prompts)
        return {
            "reward": float(judged.rewards.mean()),
            "kl": float((judged.log_probs - judged.ref_log_probs).mean()),
            "entropy": float(-judged.log_probs.mean()),
            "return": float(returns.mean()),
        }

    def eased(self, step: int) -> OnPolicy:
        """Return the method with as much pull as it has at a step."""
        return self.method.eased(self.settings.pull_at(step))

    def weigh(self, shards: Sequence[Shard]) -> None:
        """Write down how much better each response was than the others to its prompt."""
        for shard in shards:
            shard.advantages = self.centred(shard, present(shard.returns))

    def centred(self, shard: Shard, numbers: Tensor) -> Tensor:
        """Return what each response has more of something than the others to its prompt, or of its shard, (B,)."""
        group = self.settings.group if self.settings.group > 1 else len(numbers)
        return leave_one_out(numbers, group=group).float().to(self.tokens.device)

    def loss(self, shard: Shard, log_probs: Tensor, values: Tensor | None) -> Tensor:
        """Return what descends along the policy gradient."""
        return reinforce_loss(log_probs.sum(1), present(shard.advantages)).mean()

    def stepped(self, steps: int) -> None:
        """Do nothing: the reference stays."""


class PpoLearner(ReinforceLearner):
    """Ascends a method's return by proximal policy optimisation, several gradient steps on the same responses."""

    def __init__(self, run: Ingredients) -> None:
        super().__init__(run)
        self.ppo, self.add_up = present(run.settings.ppo), run.add_up
        self.epochs = self.ppo.epochs

    def shard(self, step: int, place: int) -> Shard:
        """Draw responses, and spread what each is worth over its tokens: they pay their KL, the last gets the rest."""
        shard = super().shard(step, place)
        with torch.no_grad():
            shard.old_log_probs, shard.old_values = self.policy(shard.batch)
        paid = (shard.old_log_probs - shard.reference) * self.eased(step).kl_coefficient
        shard.token_rewards = -paid
        last = shard.batch.response_mask.sum(1) - 1
        rest = present(shard.returns).float().to(paid.device) + paid.sum(1)
        shard.token_rewards[torch.arange(len(last)), last] += rest
        return shard

    def weigh(self, shards: Sequence[Shard]) -> None:
        """Write down advantages, standardised over all tokens of the step, and targets of the values."""
        for shard in shards:
            lengths, values = shard.batch.response_mask.sum(1), present(shard.old_values)
            rewards = present(shard.token_rewards)
            shard.advantages = gae(rewards, values, lengths, discount=1.0, trace=self.ppo.trace)
            shard.targets = shard.advantages + values
        everything = torch.cat([present(shard.advantages)[shard.batch.response_mask.bool()] for shard in shards])
        moments = torch.stack([everything.sum(), everything.square().sum(), torch.ones_like(everything).sum()])
        total, squares, count = self.add_up(moments)
        mean = total / count
        scale = (squares / count - mean**2).clamp(min=1e-12).sqrt()
        for shard in shards:
            shard.advantages = (present(shard.advantages) - mean) / scale

    def loss(self, shard: Shard, log_probs: Tensor, values: Tensor | None) -> Tensor:
        """Return the clipped losses of policy and values, summed over tokens, a mean over responses."""
        real = shard.batch.response_mask.bool()
        old_log_probs, old_values, targets, advantages = (
            present(table)[real] for table in (shard.old_log_probs, shard.old_values, shard.targets, shard.advantages)
        )
        of_policy = ppo_loss(log_probs[real], old_log_probs, advantages, clip=self.ppo.clip)
        of_values = ppo_value_loss(present(values)[real], old_values, targets, clip=self.ppo.value_clip)
        return (of_policy + self.ppo.value_weight * of_values).sum() / len(real)


def enough_draws(data: TrainingData, needs: int, method: object) -> tuple[Draws, Array]:
    """Return the stored draws and their rewards, if there are as many as a method needs."""
    have = 0 if data.draws is None or data.rewards is None else data.rewards.shape[1]
    if data.draws is None or data.rewards is None or have < needs:
        raise ValueError(f"data has {have} scored draws a prompt; {method} learns from {needs}: draw more")
    return data.draws, data.rewards


def fingerprint_of(*tables: Array) -> str:
    """Return a hash of tables of one shape."""
    return hashlib.sha256(np.stack(tables).tobytes()).hexdigest()


def read(policy: Policy, batch: TokenBatch) -> Tensor:
    """Return log-probabilities of responses as exact as those of draws, (B, T)."""
    with torch.no_grad():
        return policy(batch)[0]


def summed(log_probs: Tensor) -> Tensor:
    """Return log-probabilities of whole responses, from those of tokens, (B,)."""
    return log_probs.cpu().double().sum(1)  # Apple's GPUs have no float64


def present(table: T | None) -> T:
    """Return what this learner has been given, or has set."""
    assert table is not None
    return table
