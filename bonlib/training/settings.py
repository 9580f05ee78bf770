"""What a training run is given: how long and how fast to learn, and from what."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bonlib.checks import flag, number, one_of, settle, strings, whole
from bonlib.draws.rewards import RewardModel, check_reward_model
from bonlib.draws.samplers import SamplingSettings
from bonlib.draws.store import Draws
from bonlib.exact import Array
from bonlib.training.reward_cdf import LogCdf


@dataclass(frozen=True)
class Ppo:
    """Settings of proximal policy optimisation; the defaults are those of vBoN's Table 3.

    Attributes:
        epochs: gradient steps on the same responses.
        clip: of the probability ratio.
        value_clip: of the value function's change.
        value_weight: of its loss.
        trace: λ of the generalised advantage estimate; the discount is 1.
    """

    epochs: int = 4
    clip: float = 0.2
    value_clip: float = 0.2
    value_weight: float = 0.2
    trace: float = 0.95

    def __post_init__(self) -> None:
        settle(
            self,
            epochs=whole("epochs", self.epochs, 1),
            clip=number("clip", self.clip, above=0, below=1),
            value_clip=number("value_clip", self.value_clip, above=0),
            value_weight=number("value_weight", self.value_weight, least=0),
            trace=number("trace", self.trace, least=0, most=1),
        )


@dataclass(frozen=True)
class TrainSettings:
    """How long, with what and how fast a policy is trained.

    Attributes:
        steps: gradient steps (with PPO: batches of responses, each used `ppo.epochs` times).
        prompts: prompts a step.
        group: responses to each of them; the leave-one-out baseline of one is the mean of the others, or where there
            are none, of the other prompts'. Off policy a step takes as many stored draws, `prompts * group`, as
            examples of one or two.
        learning_rate: at its peak; from there it falls in a straight line that would end at 0 after the last step.
        warmup: steps over which it rises, at most half of them.
        decay: whether it falls at all. A method whose target moves with the policy would be stopped by that.
        easing: share of the steps over which an on-policy method's pull grows from none to its own (n from 1, 1/β from
            0). With all of it at once, a policy first gives up responses that it then hardly draws again.
        max_grad_norm: longer gradients are cut to this length.
        ppo: settings of PPO, or None for REINFORCE with a leave-one-out baseline.
        lora_rank: rank of the adapter that is trained in place of the weights; 0 trains the weights, or, of a reference
            with an adapter, that adapter.
        precision: "no" (float32) or "bf16" for matrix products in bfloat16.
        shards: parts that a step is worked in; processes share them out, so it is a multiple of their number.
        measure_every: steps between two measurements.
        checkpoint_every: steps between two checkpoints.
        max_kl: mean log πθ − log π of a step's own draws, in nats, above which an on-policy run counts as diverged.
        seed: of everything random.
    """

    steps: int = 200
    prompts: int = 16
    group: int = 4
    learning_rate: float = 1e-4
    warmup: int = 10
    decay: bool = True
    easing: float = 0.0
    max_grad_norm: float = 1.0
    ppo: Ppo | None = None
    lora_rank: int = 0
    precision: str = "no"
    shards: int = 1
    measure_every: int = 20
    checkpoint_every: int = 50
    max_kl: float = 300.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "prompts", "group", "shards", "measure_every", "checkpoint_every"):
            settle(self, **{name: whole(name, getattr(self, name), 1)})
        for name in ("warmup", "lora_rank"):
            settle(self, **{name: whole(name, getattr(self, name))})
        settle(self, seed=whole("seed", self.seed, most=2**32 - 1))  # as far as NumPy's older generator goes
        for name in ("learning_rate", "max_grad_norm", "max_kl"):
            settle(self, **{name: number(name, getattr(self, name), above=0)})
        settle(self, decay=flag("decay", self.decay))
        settle(self, easing=number("easing", self.easing, least=0, most=1, what="a share of the steps, it"))
        one_of("precision", self.precision, ("no", "bf16"))
        if not (self.ppo is None or isinstance(self.ppo, Ppo)):
            raise ValueError(f"ppo is {self.ppo!r}; it must be a Ppo(...), or None for REINFORCE")
        if self.prompts % self.shards:
            raise ValueError(f"shards is {self.shards}; it must divide the {self.prompts} prompts of a step")
        if self.group * self.prompts // self.shards < 2 and self.ppo is None:
            raise ValueError(
                f"group is {self.group} with {self.prompts} prompts in {self.shards} shards; the leave-one-out "
                "baseline needs at least 2 responses in each shard"
            )

    def described(self) -> dict[str, Any]:
        """Return all fields by name, without those that came late and are as before: older runs keep their identity."""
        late = {"decay": True}
        return {name: value for name, value in asdict(self).items() if late.get(name, ...) != value}

    def pull_at(self, step: int) -> float:
        """Return the part of an on-policy method's pull that is there at a step, counted from 0."""
        return min((step + 1) / max(self.easing * self.steps, 1.0), 1.0)

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        warmup = min(self.warmup, self.steps // 2)
        rising = (step + 1) / max(warmup, 1)
        falling = (self.steps - step) / (self.steps - warmup) if self.decay else 1.0
        return self.learning_rate * min(rising, falling, 1.0)


@dataclass(frozen=True, eq=False)
class TrainingData:
    """What there is to learn from.

    Attributes:
        prompts: P, all different.
        reward_model: judges responses.
        sampling: length of responses; training draws at temperature 1 from all tokens.
        draws: of the reference, at least as many a prompt as the method needs; on-policy methods need none.
        rewards: of these draws, shape (P, M).
        cdf: of the rewards, for methods that use it. Its `fingerprint`, if it has one, tells runs apart.
    """

    prompts: Sequence[str]
    reward_model: RewardModel
    sampling: SamplingSettings
    draws: Draws | None = None
    rewards: Array | None = None
    cdf: LogCdf | None = None

    def __post_init__(self) -> None:
        if not strings("prompts", self.prompts):
            raise ValueError("prompts is empty; training needs at least one")
        check_reward_model(self.reward_model)
        if not self.sampling.plain:
            raise ValueError(
                f"sampling is {self.sampling}; a policy gradient holds for draws of the policy itself: temperature 1 "
                "and top_p 1"
            )
        if self.rewards is not None:
            settle(self, rewards=_finite(self.rewards, self.prompts))
        if self.draws is None:
            return
        if tuple(self.draws.prompts) != tuple(self.prompts):
            raise ValueError("draws has other prompts than prompts, or in another order: draw for these")
        if self.draws.settings is not None and not self.draws.settings.plain:
            raise ValueError(
                f"draws were drawn with {self.draws.settings}; what is learned from are draws of the reference itself: "
                "draw with temperature 1 and top_p 1"
            )
        if self.rewards is not None and self.rewards.shape != self.draws.log_probs.shape:
            raise ValueError(
                f"rewards has shape {self.rewards.shape}, draws {self.draws.log_probs.shape}; score each draw"
            )

    def scored_draws(self, needs: int, method: object) -> tuple[Draws, Array, str]:
        """Return the stored draws, their rewards and a hash of both, if there are as many as a method needs."""
        have = 0 if self.draws is None or self.rewards is None else self.rewards.shape[1]
        if self.draws is None or self.rewards is None or have < needs:
            raise ValueError(f"data has {have} scored draws a prompt; {method} learns from {needs}: draw more")
        both = np.stack([self.rewards, self.draws.log_probs])
        return self.draws, self.rewards, hashlib.sha256(both.tobytes()).hexdigest()


def _finite(rewards: Any, prompts: Sequence[str]) -> Array:
    """Rewards as a table with a row a prompt."""
    table = np.asarray(rewards.detach().cpu().double() if hasattr(rewards, "detach") else rewards, dtype=np.float64)
    if len(table) != len(prompts):
        raise ValueError(f"rewards has {len(table)} rows for {len(prompts)} prompts; it must be (P, M)")
    bad = np.argwhere(~np.isfinite(table))
    if len(bad):
        raise ValueError(
            f"rewards has {table[tuple(bad[0])]} for a draw of prompt {prompts[bad[0][0]]!r}: repair the reward model, "
            "or leave that prompt out"
        )
    return table
