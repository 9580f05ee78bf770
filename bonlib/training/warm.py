"""A training whose first part learns from stored draws, by another method, before the policy draws for itself."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from bonlib.training.learner import OngoingRun
from bonlib.training.off_policy import OffPolicy, OffPolicyLearner, OffPolicyShard
from bonlib.training.on_policy import OnPolicy, ReinforceLearner


class WarmLearner(ReinforceLearner):
    """Learns by one method in the first steps, then by the policy gradient of another.

    Args:
        method: the one that draws from the policy.
        first: the one before, with the same target.
        share: of the steps, which it has.
        run: with stored draws.
    """

    def __init__(self, method: OnPolicy, first: OffPolicy, share: float, run: OngoingRun) -> None:
        if run.settings.ppo is not None:
            raise ValueError(f"ppo is {run.settings.ppo}; a warm start is for REINFORCE: leave it at None")
        super().__init__(method, run)
        self.first, self.begins = OffPolicyLearner(first, run), round(share * run.settings.steps)
        self.learned_from = f"{self.learned_from} {self.first.learned_from}"

    def shard(self, step: int, place: int) -> Any:
        """Return stored draws at first, then new ones."""
        return self.first.shard(step, place) if step < self.begins else super().shard(step, place)

    def loss(self, shard: Any, log_probs: Tensor, values: Tensor | None) -> Tensor:
        """Return the loss of what the shard is for."""
        if isinstance(shard, OffPolicyShard):
            return self.first.loss(shard, log_probs, values)
        return super().loss(shard, log_probs, values)
