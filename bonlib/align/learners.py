"""What a step learns from, and its loss: from draws of the reference, or from the policy's own by REINFORCE or PPO.

The loop asks a learner for the shards of a step, lets it weigh them all together, and then for the loss of each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from bonlib import losses
from bonlib.align.methods import Bonbon, Judged, OffPolicy, OnPolicy
from bonlib.align.policy import Policy
from bonlib.align.settings import Ppo, TrainingData, TrainSettings
from bonlib.lm.kernels import cpu_kernels
from bonlib.lm.models import LoadedModel
from bonlib.lm.reading import TokenBatch, token_batch
from bonlib.lm.rewards import checked_score
from bonlib.lm.samplers import TransformersSampler, encode_prompts

ExpectFinite = Callable[[str, Tensor, Sequence[str]], None]  # what it is, the numbers, the prompts in question


@dataclass(eq=False)
class Shard:
    """A part of a step's responses, with all that their loss needs.

    Attributes:
        batch: what the policy reads, with gradients.
        prompts: of the responses.
        reference: log π; on policy of each token, (B, T), off policy of each example's responses, (E, roles).
        returns: on policy, what each response is worth, (B,), on the CPU.
        figures: on policy, means for the curve and the progress bar.
        advantages: on policy, how much better than expected each response was, (B,); with PPO each token, (B, T).
        old_log_probs, old_values: with PPO, of tokens under the policy that drew them, (B, T).
        token_rewards: with PPO, the return spread over the tokens, (B, T).
        targets: with PPO, what the values should have been, (B, T).
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


class Learner(Protocol):
    """One way to learn."""

    epochs: int  # gradient steps on the same shards

    def shard(self, step: int, place: int) -> Shard:
        """Return what a step learns from, the part at one of its `settings.shards` places."""
        ...

    def weigh(self, shards: Sequence[Shard]) -> None:
        """Write down what has to be known of all shards of this process before the first gradient."""
        ...

    def loss(self, shard: Shard, log_probs: Tensor, values: Tensor | None) -> Tensor:
        """Return the mean loss of a shard, from what the policy says of its tokens, (B, T) each."""
        ...


class PromptTokens:
    """The prompts as token ids, and batches of them with responses."""

    def __init__(self, reference: LoadedModel, data: TrainingData) -> None:
        room, self.pad_id = data.sampling.max_new_tokens, reference.tokenizer.pad_token_id
        encoded = encode_prompts(reference.tokenizer, reference.context, data.prompts, room)
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

    def __init__(self, method: OffPolicy, data: TrainingData, settings: TrainSettings, tokens: PromptTokens) -> None:
        needs, have = method.needs_draws, 0 if data.rewards is None else data.rewards.shape[1]
        if data.draws is None or data.rewards is None or have < needs:
            raise ValueError(f"data has {have} draws a prompt; {method} learns from {needs}: draw more")
        self.examples = method.examples(data.rewards, seed=settings.seed)
        prompts, draws = self.examples
        if not len(prompts):
            raise ValueError(f"{method} finds no example in the draws: are all rewards of a prompt equal?")
        if isinstance(method, Bonbon):
            method = method.balanced(data.draws.log_probs[prompts, draws[:, 0]])
        self.method, self.draws, self.tokens = method, data.draws, tokens
        self.rounds = Rounds(len(prompts), settings.seed)
        self.step_size = settings.prompts * settings.group // draws.shape[1]  # examples
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
        # In float64, which Apple's GPUs have not.
        summed = log_probs.cpu().double().sum(1).view_as(shard.reference)
        return self.method.loss(summed, shard.reference).mean()


class ReinforceLearner:
    """Ascends a method's return by the policy gradient, with a leave-one-out baseline.

    Args:
        method: says what a response is worth.
        data: prompts and their judges.
        settings: sizes of a step.
        tokens: the prompts as tokens.
        policy: draws and learns.
        loaded: its language model.
        reference: where it started.
        expect_finite: stops the run if a number is not.
    """

    epochs = 1

    def __init__(
        self,
        method: OnPolicy,
        data: TrainingData,
        settings: TrainSettings,
        tokens: PromptTokens,
        *,
        policy: torch.nn.Module,
        loaded: LoadedModel,
        reference: LoadedModel,
        expect_finite: ExpectFinite,
    ) -> None:
        if method.needs_cdf and data.cdf is None:
            raise ValueError(f"cdf is None; {method} needs the rewards' distribution: give a SampledCdf")
        self.method, self.data, self.settings, self.tokens = method, data, settings, tokens
        self.policy, self.frozen, self.expect_finite = policy, Policy(reference.model), expect_finite
        self.sampler = TransformersSampler(loaded, batch_size=settings.prompts * settings.group)
        self.rounds = Rounds(len(data.prompts), settings.seed)

    def shard(self, step: int, place: int) -> Shard:
        """Draw responses from the policy, score them and say what each is worth."""
        settings, data = self.settings, self.data
        count = settings.prompts // settings.shards
        chosen = self.rounds.at(step * settings.prompts + place * count, count)
        prompts = [data.prompts[i] for i in chosen for _ in range(settings.group)]
        seed = int(np.random.SeedSequence([settings.seed, step, place]).generate_state(1, np.uint64)[0] >> 1)
        drawn = self.sampler.sample_tokens([self.tokens.ids[prompt] for prompt in prompts], data.sampling, seed=seed)
        log_probs = torch.as_tensor(drawn.log_probs)
        self.expect_finite("a log-probability", log_probs, prompts)
        texts = drawn.texts.tolist()
        rewards = torch.as_tensor(checked_score(data.reward_model, prompts, texts))
        batch = self.tokens.batch(prompts, drawn.token_ids.tolist())
        with torch.no_grad(), cpu_kernels(self.frozen.model):
            reference, _ = self.frozen(batch)
        judged = Judged(prompts, texts, log_probs, reference.cpu().double().sum(1), rewards)
        returns = self.eased(step).returns(judged, data.cdf)
        self.expect_finite("a return", returns, prompts)
        figures = {
            "reward": float(rewards.mean()),
            "kl": float((log_probs - judged.ref_log_probs).mean()),
            "entropy": float(-log_probs.mean()),
            "return": float(returns.mean()),
        }
        return Shard(batch, prompts, reference, returns, figures)

    def eased(self, step: int) -> OnPolicy:
        """Return the method with as much pull as it has at a step."""
        return self.method.eased(self.settings.pull_at(step))

    def weigh(self, shards: Sequence[Shard]) -> None:
        """Write down how much better each response was than the others to its prompt."""
        for shard in shards:
            advantages = losses.leave_one_out(known(shard.returns), group=self.settings.group)
            shard.advantages = advantages.float().to(shard.reference.device)

    def loss(self, shard: Shard, log_probs: Tensor, values: Tensor | None) -> Tensor:
        """Return what descends along the policy gradient."""
        return losses.reinforce(log_probs.sum(1), known(shard.advantages)).mean()


class PpoLearner(ReinforceLearner):
    """Ascends a method's return by proximal policy optimisation, several gradient steps on the same responses.

    Args:
        ppo: its settings.
        add_up: adds a tensor over processes.
        others: as for `ReinforceLearner`.
    """

    def __init__(self, ppo: Ppo, add_up: Callable[[Tensor], Tensor], *args: object, **others: object) -> None:
        super().__init__(*args, **others)  # type: ignore[arg-type]
        self.ppo, self.add_up, self.epochs = ppo, add_up, ppo.epochs

    def shard(self, step: int, place: int) -> Shard:
        """Draw responses, and spread what each is worth over its tokens: they pay their KL, the last gets the rest."""
        shard = super().shard(step, place)
        with torch.no_grad():
            shard.old_log_probs, shard.old_values = self.policy(shard.batch)
        paid = (shard.old_log_probs - shard.reference) * self.eased(step).kl_coefficient
        shard.token_rewards = -paid
        last = shard.batch.response_mask.sum(1) - 1
        rest = known(shard.returns).float().to(paid.device) + paid.sum(1)
        shard.token_rewards[torch.arange(len(last)), last] += rest
        return shard

    def weigh(self, shards: Sequence[Shard]) -> None:
        """Write down advantages, standardised over all tokens of the step, and targets of the values."""
        for shard in shards:
            lengths, values = shard.batch.response_mask.sum(1), known(shard.old_values)
            rewards = known(shard.token_rewards)
            shard.advantages = losses.gae(rewards, values, lengths, discount=1.0, trace=self.ppo.trace)
            shard.targets = shard.advantages + values
        everything = torch.cat([known(shard.advantages)[shard.batch.response_mask.bool()] for shard in shards])
        moments = torch.stack([everything.sum(), everything.square().sum(), torch.ones_like(everything).sum()])
        total, squares, count = self.add_up(moments)
        mean = total / count
        scale = (squares / count - mean**2).clamp(min=1e-12).sqrt()
        for shard in shards:
            shard.advantages = (known(shard.advantages) - mean) / scale

    def loss(self, shard: Shard, log_probs: Tensor, values: Tensor | None) -> Tensor:
        """Return the clipped losses of policy and values, summed over tokens, a mean over responses."""
        real = shard.batch.response_mask.bool()
        old_log_probs, old_values, targets, advantages = (
            known(table)[real] for table in (shard.old_log_probs, shard.old_values, shard.targets, shard.advantages)
        )
        of_policy = losses.ppo(log_probs[real], old_log_probs, advantages, clip=self.ppo.clip)
        of_values = losses.ppo_value(known(values)[real], old_values, targets, clip=self.ppo.value_clip)
        return (of_policy + self.ppo.value_weight * of_values).sum() / len(real)


def known(table: Tensor | None) -> Tensor:
    """Return a tensor that this learner has set."""
    assert table is not None
    return table
