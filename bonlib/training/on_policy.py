"""Methods that draw from the policy as it learns, and how: REINFORCE with a leave-one-out baseline, or PPO."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from bonlib.draws.rewards import checked_score
from bonlib.draws.samplers import TransformersSampler
from bonlib.models.reading import TokenBatch
from bonlib.training.gradients import gae, leave_one_out, ppo_loss, ppo_value_loss, reinforce_loss
from bonlib.training.learner import Learner, OngoingRun, PromptTokens, Rounds, Shard, TrainingMethod, summed
from bonlib.training.policy import Policy
from bonlib.training.reward_cdf import LogCdf
from bonlib.training.settings import Ppo


class Judged(NamedTuple):
    """Responses of the policy and what is known about them, B of each.

    Attributes:
        prompts: what each answers.
        texts: the responses.
        log_probs: under the policy, no gradient, shape (B,).
        ref_log_probs: under the reference, or where a method has an anchor, under that, shape (B,).
        rewards: shape (B,), float64.
        anchor_rewards: of the anchor's responses to the same prompt, shape (B, draws), where a method has it draw any.
        group: how many consecutive ones are compared with each other, to one prompt unless it has a single response.
    """

    prompts: Sequence[str]
    texts: Sequence[str]
    log_probs: Tensor
    ref_log_probs: Tensor
    rewards: Tensor
    anchor_rewards: Tensor | None = None
    group: int = 0

    def log_weak(self, cdf: LogCdf | None) -> Tensor:
        """Return log F≤ of the responses, shape (B,), as a CDF tells it."""
        return self._told(cdf, "log_weak")

    def log_strict(self, cdf: LogCdf | None) -> Tensor:
        """Return log F of the responses, shape (B,), as a CDF tells it."""
        return self._told(cdf, "log_strict")

    def calibrated(self, cdf: LogCdf | None) -> Tensor:
        """Return c = (F + F≤)/2 of the responses, shape (B,), as a CDF tells it."""
        return (self.log_weak(cdf).exp() + self.log_strict(cdf).exp()) / 2

    def log_strict_and_tied(self, cdf: LogCdf | None) -> tuple[Tensor, Tensor]:
        """Return log F of the responses and log(F≤ − F), the probability of a reward as good, shape (B,) each.

        An estimate may not know of a response itself, whose probability under the reference is known: it is made room
        for.
        """
        log_weak, log_strict = self.log_weak(cdf), self.log_strict(cdf)
        log_gap = log_weak + torch.log(-torch.expm1(log_strict - log_weak))
        log_gap = torch.where(log_weak > log_strict, log_gap, -torch.inf)
        log_tied = torch.maximum(log_gap, self.ref_log_probs)
        room = torch.log1p(-log_tied.exp().clamp(max=1 - 1e-12))
        return torch.minimum(log_strict, room), log_tied

    def _told(self, cdf: LogCdf | None, name: str) -> Tensor:
        if cdf is None:
            raise ValueError("cdf is None; this method needs the rewards' distribution: give a SampledCdf")
        found = getattr(cdf, name)(self.prompts, self.texts, self.rewards.cpu().numpy())
        return torch.as_tensor(found).to(self.log_probs)


@dataclass(frozen=True)
class OnPolicy(TrainingMethod):
    """A method that draws from the policy as it learns."""

    @property
    def kl_coefficient(self) -> float:
        """What its return takes off for each nat of log πθ − log π; PPO spreads that over tokens."""
        return 1.0

    @property
    def needs_group(self) -> int:
        """How many responses to a prompt it compares with each other at least; above 1, PPO cannot train it."""
        return 1

    @abstractmethod
    def eased(self, part: float) -> Self:
        """Return the method with a part of its pull away from the reference, above 0 and at most 1."""

    @abstractmethod
    def returns(self, judged: Judged, cdf: LogCdf | None) -> Tensor:
        """Return what each response is worth, shape (B,); the policy gradient ascends its mean."""

    def advantages(self, judged: Judged, returns: Tensor) -> Tensor:
        """Return by how much each response is to be favoured, shape (B,): its return less the mean of the others'.

        A method whose returns depend on the others of the group has another: there that mean is no mere baseline.
        """
        return leave_one_out(returns, group=judged.group)

    def learner(self, run: OngoingRun) -> Learner[Any]:
        """Return what learns by this method."""
        return ReinforceLearner(self, run) if run.settings.ppo is None else PpoLearner(self, run, run.settings.ppo)


@dataclass(eq=False)
class DrawnShard(Shard):
    """Responses of the policy.

    Attributes:
        returns: what each response is worth, (B,), on the CPU.
        advantages: how much better than expected each response was, (B,); with PPO each token, (B, T).
    """

    returns: Tensor
    advantages: Tensor


D = TypeVar("D", bound=DrawnShard)


class OnPolicyLearner(Learner[D]):
    """Draws responses from the policy and scores them."""

    def __init__(self, method: OnPolicy, run: OngoingRun) -> None:
        data, settings = run.data, run.settings
        if method.needs_cdf and data.cdf is None:
            raise ValueError(f"cdf is None; {method} needs the rewards' distribution: give a SampledCdf")
        if settings.group < method.needs_group:
            raise ValueError(
                f"group is {settings.group}; {method} compares {method.needs_group} responses to a prompt: take as many"
            )
        self.method, self.data, self.settings = method, data, settings
        self.group = settings.group if settings.group > 1 else settings.prompts // settings.shards
        self.tokens = PromptTokens(run.reference, data)
        self.reference, self.expect_finite = Policy(run.reference.model), run.expect_finite
        self.responses = settings.prompts * settings.group
        self.sampler = TransformersSampler(run.loaded, batch_size=self.responses)
        self.rounds = Rounds(len(data.prompts), settings.seed)
        self.learned_from = getattr(data.cdf, "fingerprint", None) if method.needs_cdf else None

    def eased(self, step: int) -> OnPolicy:
        """Return the method with as much pull as it has at a step."""
        return self.method.eased(self.settings.pull_at(step))

    def chosen(self, step: int, place: int) -> list[int]:
        """Return which prompts a shard has."""
        count = self.settings.prompts // self.settings.shards
        return self.rounds.at(step * self.settings.prompts + place * count, count)

    def drawn(self, step: int, place: int) -> tuple[Judged, list[list[int]], TokenBatch, Tensor]:
        """Return the policy's responses of a shard: judged, as tokens, as a batch; and log π of each token, (B, T)."""
        judged, tokens = self.answers(self.chosen(step, place), self.settings.group, [step, place])
        batch = self.tokens.batch(judged.prompts, tokens)
        reference = self.reference.read(batch)
        return judged._replace(ref_log_probs=summed(reference), group=self.group), tokens, batch, reference

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
        rewards = torch.as_tensor(checked_score(self.data.reward_model, prompts, drawn))
        unknown = torch.full_like(log_probs, torch.nan)
        return Judged(prompts, drawn.texts.tolist(), log_probs, unknown, rewards), drawn.token_ids.tolist()

    def figures(self, judged: Judged, returns: Tensor) -> dict[str, float]:
        """Return the means for the curve, after a check of the returns."""
        self.expect_finite("a return", returns, judged.prompts)
        return {
            "reward": float(judged.rewards.mean()),
            "kl": float((judged.log_probs - judged.ref_log_probs).mean()),
            "entropy": float(-judged.log_probs.mean()),
            "return": float(returns.mean()),
        }

    def centred(self, numbers: Tensor) -> Tensor:
        """Return what each response has more of something than the others to its prompt, or of its shard, (B,)."""
        return leave_one_out(numbers, group=self.group).float().to(self.tokens.device)


class ReinforceLearner(OnPolicyLearner[DrawnShard]):
    """Ascends a method's return by the policy gradient, with the method's advantages."""

    def shard(self, step: int, place: int) -> DrawnShard:
        """Draw responses, and say how much better each is than the others to its prompt."""
        judged, _, batch, reference = self.drawn(step, place)
        method = self.eased(step)
        returns = method.returns(judged, self.data.cdf)
        figures = self.figures(judged, returns)
        advantages = method.advantages(judged, returns).float().to(self.tokens.device)
        return DrawnShard(batch, judged.prompts, reference, figures, returns, advantages)

    def loss(self, shard: DrawnShard, log_probs: Tensor, values: Tensor | None) -> Tensor:
        """Return what descends along the policy gradient."""
        return reinforce_loss(log_probs.sum(1), shard.advantages).mean()


@dataclass(eq=False, kw_only=True)
class PpoShard(DrawnShard):
    """Responses of the policy, token by token, each shape (B, T).

    Attributes:
        token_rewards: the return spread over the tokens.
        old_log_probs, old_values: of tokens under the policy that drew them.
        targets: what the values should have been.
    """

    token_rewards: Tensor
    old_log_probs: Tensor
    old_values: Tensor
    targets: Tensor


class PpoLearner(OnPolicyLearner[PpoShard]):
    """Ascends a method's return by proximal policy optimisation, several gradient steps on the same responses."""

    def __init__(self, method: OnPolicy, run: OngoingRun, ppo: Ppo) -> None:
        super().__init__(method, run)
        if method.needs_group > 1:
            raise ValueError(f"ppo is {ppo}; {method} weighs whole responses: leave it at None, for REINFORCE")
        self.run, self.ppo, self.epochs = run, ppo, ppo.epochs

    def shard(self, step: int, place: int) -> PpoShard:
        """Draw responses, and spread what each is worth over its tokens: they pay their KL, the last gets the rest."""
        judged, _, batch, reference = self.drawn(step, place)
        method = self.eased(step)
        returns = method.returns(judged, self.data.cdf)
        figures = self.figures(judged, returns)
        with torch.no_grad():
            log_probs, values = self.run.policy(batch)
        paid = (log_probs - reference) * method.kl_coefficient
        lengths, rewards = batch.response_mask.sum(1), -paid
        rewards[torch.arange(len(lengths)), lengths - 1] += returns.float().to(paid.device) + paid.sum(1)
        advantages = gae(rewards, values, lengths, discount=1.0, trace=self.ppo.trace)
        return PpoShard(
            batch,
            judged.prompts,
            reference,
            figures,
            returns,
            advantages,
            token_rewards=rewards,
            old_log_probs=log_probs,
            old_values=values,
            targets=advantages + values,
        )

    def weigh(self, shards: Sequence[PpoShard]) -> None:
        """Standardise the advantages over all tokens of the step."""
        everything = torch.cat([shard.advantages[shard.batch.response_mask.bool()] for shard in shards])
        moments = torch.stack([everything.sum(), everything.square().sum(), torch.ones_like(everything).sum()])
        total, squares, count = self.run.add_up(moments)
        mean = total / count
        scale = (squares / count - mean**2).clamp(min=1e-12).sqrt()
        for shard in shards:
            shard.advantages = (shard.advantages - mean) / scale

    def loss(self, shard: PpoShard, log_probs: Tensor, values: Tensor | None) -> Tensor:
        """Return the clipped losses of policy and values, summed over tokens, a mean over responses."""
        assert values is not None  # a policy that PPO trains has a value head
        real = shard.batch.response_mask.bool()
        of_policy = ppo_loss(log_probs[real], shard.old_log_probs[real], shard.advantages[real], clip=self.ppo.clip)
        of_values = ppo_value_loss(values[real], shard.old_values[real], shard.targets[real], clip=self.ppo.value_clip)
        return (of_policy + self.ppo.value_weight * of_values).sum() / len(real)
