"""What a training run is given: how long and how fast to learn, and from what."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bonlib.align.reward_cdf import LogCdf
from bonlib.lm.rewards import RewardModel
from bonlib.lm.samplers import SamplingSettings
from bonlib.lm.store import Draws


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
        _check("epochs", self.epochs, self.epochs >= 1, "at least 1")
        _check("clip", self.clip, 0 < self.clip < 1, "between 0 and 1")
        _check("value_clip", self.value_clip, self.value_clip > 0, "positive")
        _check("value_weight", self.value_weight, self.value_weight >= 0, "0 or more")
        _check("trace", self.trace, 0 <= self.trace <= 1, "from 0 to 1")


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
            _check(name, getattr(self, name), getattr(self, name) >= 1, "at least 1")
        for name in ("warmup", "lora_rank"):
            _check(name, getattr(self, name), getattr(self, name) >= 0, "0 or more")
        for name in ("learning_rate", "max_grad_norm", "max_kl"):
            _check(name, getattr(self, name), 0 < getattr(self, name) < math.inf, "positive and finite")
        _check("easing", self.easing, 0 <= self.easing <= 1, "a share of the steps, 0 to 1")
        _check("precision", self.precision, self.precision in ("no", "bf16"), "'no' or 'bf16'")
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
    rewards: NDArray[np.float64] | None = None
    cdf: LogCdf | None = None

    def __post_init__(self) -> None:
        if not len(self.prompts):
            raise ValueError("prompts is empty; training needs at least one")
        if not self.sampling.plain:
            raise ValueError(
                f"sampling is {self.sampling}; a policy gradient holds for draws of the policy itself: temperature 1 "
                "and top_p 1"
            )
        if self.draws is not None and tuple(self.draws.prompts) != tuple(self.prompts):
            raise ValueError("draws has other prompts than prompts, or in another order: draw for these")
        if self.rewards is not None and len(self.rewards) != len(self.prompts):
            raise ValueError(f"rewards has {len(self.rewards)} rows for {len(self.prompts)} prompts; it must be (P, M)")
        if self.draws is not None and self.rewards is not None and self.rewards.shape != self.draws.log_probs.shape:
            raise ValueError(
                f"rewards has shape {self.rewards.shape}, draws {self.draws.log_probs.shape}; score each draw"
            )


def _check(name: str, value: object, good: bool, what: str) -> None:
    if not good:
        raise ValueError(f"{name} is {value!r}; it must be {what}")
