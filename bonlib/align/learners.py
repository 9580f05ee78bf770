"""What a step learns from, and its loss: from draws of the reference, from the policy's own, or from both (BOND).

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

from bonlib import losses
from bonlib.align.bond import Bond, JBond
from bonlib.align.methods import Bonbon, Judged, OffPolicy, OnPolicy
from bonlib.align.policy import Anchor, Policy
from bonlib.align.reward_cdf import SampledCdf
from bonlib.align.settings import Ppo, TrainingData, TrainSettings
from bonlib.lm.models import LoadedModel
from bonlib.lm.reading import TokenBatch, token_batch
from bonlib.lm.rewards import checked_score
from bonlib.lm.samplers import TransformersSampler
from bonlib.lm.store import Draws

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

    def __init__(self, method: OffPolicy, data: TrainingData, settings: TrainSettings, tokens: PromptTokens) -> None:
        stored, rewards = enough_draws(data, method.needs_draws, method)
        self.examples = method.examples(rewards, seed=settings.seed)
        prompts, draws = self.examples
        if not len(prompts):
            raise ValueError(f"{method} finds no example in the draws: are all rewards of a prompt equal?")
        if isinstance(method, Bonbon):
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
        return losses.leave_one_out(numbers, group=group).float().to(self.tokens.device)

    def loss(self, shard: Shard, log_probs: Tensor, values: Tensor | None) -> Tensor:
        """Return what descends along the policy gradient."""
        return losses.reinforce(log_probs.sum(1), present(shard.advantages)).mean()

    def stepped(self, steps: int) -> None:
        """Do nothing: the reference stays."""


class BondLearner(ReinforceLearner):
    """Descends the Jeffreys divergence from best-of-n of the reference, or of an anchor that follows the policy.

    A step's batch holds the policy's own responses and then as many best-of-n responses to the same prompts.

    Args:
        anchor: of the policy; None if the reference is the anchor for good, and has stored draws.
        others: as for `ReinforceLearner`.
    """

    method: Bond | JBond

    def __init__(self, anchor: Anchor | None, *args: object, **others: object) -> None:
        super().__init__(*args, **others)  # type: ignore[arg-type]
        self.anchor, self.reader = anchor, Policy(self.sampler.loaded.model)
        self.eased(0)  # refuses easing at once
        if anchor is not None:
            self.responses += self.settings.prompts * self.method.anchor_draws
            return
        draws, rewards = enough_draws(self.data, self.method.n, self.method)
        self.learned_from = f"{self.learned_from} {fingerprint_of(rewards, draws.log_probs)}"

    def shard(self, step: int, place: int) -> Shard:
        """Draw responses from the policy, find best-of-n responses of the anchor, and say what the former are worth."""
        settings, data, chosen = self.settings, self.data, self.chosen(step, place)
        judged, tokens = self.answers(chosen, settings.group, [step, place])
        own = self.tokens.batch(judged.prompts, tokens)
        reference = read(self.frozen, own)
        judged = judged._replace(ref_log_probs=summed(reference))
        if self.anchor is None:
            seen, cdf = judged, data.cdf
            rewards = present(data.rewards)[chosen]
            answers = [present(data.draws).responses[i].token_ids for i in chosen]
        else:
            seen, rewards, answers = self.ask_anchor(judged, own, chosen, [step, place])
            cdf = SampledCdf(*distinct([data.prompts[i] for i in chosen], rewards))
        returns = self.eased(step).returns(seen, cdf)
        rng = np.random.default_rng([settings.seed, step, place, 2])
        best = best_of_subsets(rewards, self.method.n, settings.group, rng)
        learned = [answers[row][draw].tolist() for row, draws in enumerate(best) for draw in draws]
        batch = self.tokens.batch([*judged.prompts, *judged.prompts], tokens + learned)
        shard = Shard(batch, judged.prompts, reference, returns, self.figures(judged, returns))
        shard.drifts = self.centred(shard, judged.log_probs - seen.ref_log_probs)
        return shard

    def ask_anchor(
        self, judged: Judged, own: TokenBatch, chosen: Sequence[int], place: Sequence[int]
    ) -> tuple[Judged, Array, list[Array]]:
        """Draw from the anchor.

        Args:
            judged: responses of the policy.
            own: the same as tokens.
            chosen: places of their prompts, P.
            place: of the shard.

        Returns:
            The policy's responses with the anchor in the reference's place; rewards of the anchor's own, (P, draws),
            and these as tokens, (draws, T) a prompt.
        """
        count, group = self.method.anchor_draws, self.settings.group
        with present(self.anchor).in_place():
            drawn, tokens = self.answers(chosen, count, [*place, 1])
            log_probs = summed(read(self.reader, own))
        rewards = drawn.rewards.view(len(chosen), count)
        seen = judged._replace(ref_log_probs=log_probs, anchor_rewards=rewards.repeat_interleave(group, dim=0))
        return seen, rewards.numpy(), list(np.array(tokens).reshape(len(chosen), count, -1))

    def loss(self, shard: Shard, log_probs: Tensor, values: Tensor | None) -> Tensor:
        """Return what descends along the gradient of the divergence and of the regulariser."""
        method, (own, best) = self.method, log_probs.sum(1).chunk(2)
        divergence = losses.jeffreys(
            best, own, present(shard.advantages), n=method.n, jeffreys_weight=method.jeffreys_weight
        )
        return (divergence + method.regulariser * losses.reinforce(own, -present(shard.drifts))).mean()

    def stepped(self, steps: int) -> None:
        """Move the anchor, if it is time."""
        if self.anchor is not None and self.method.moves_after(steps):
            self.anchor.move(self.method.anchor_rate)


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
        rest = present(shard.returns).float().to(paid.device) + paid.sum(1)
        shard.token_rewards[torch.arange(len(last)), last] += rest
        return shard

    def weigh(self, shards: Sequence[Shard]) -> None:
        """Write down advantages, standardised over all tokens of the step, and targets of the values."""
        for shard in shards:
            lengths, values = shard.batch.response_mask.sum(1), present(shard.old_values)
            rewards = present(shard.token_rewards)
            shard.advantages = losses.gae(rewards, values, lengths, discount=1.0, trace=self.ppo.trace)
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
        of_policy = losses.ppo(log_probs[real], old_log_probs, advantages, clip=self.ppo.clip)
        of_values = losses.ppo_value(present(values)[real], old_values, targets, clip=self.ppo.value_clip)
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


def best_of_subsets(rewards: Array, n: int, count: int, rng: np.random.Generator) -> Indices:
    """Return `count` times the best of n random ones of the draws of each prompt, whose rewards are (P, M): (P, count).

    Each is a draw of best-of-n, though those of one prompt depend on each other.
    """
    chosen = np.stack([[rng.permutation(row.size)[:n] for _ in range(count)] for row in rewards])
    places = np.take_along_axis(rewards[:, None, :], chosen, axis=2).argmax(axis=2)
    return np.take_along_axis(chosen, places[..., None], axis=2)[..., 0]


def distinct(prompts: Sequence[str], rewards: Array) -> tuple[list[str], Array]:
    """Return prompts, each once, and its row, the last if it has several."""
    rows = dict(zip(prompts, rewards, strict=True))
    return list(rows), np.stack(list(rows.values()))


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
