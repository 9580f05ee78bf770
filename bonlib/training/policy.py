"""The model that learns, as the training loop calls it."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from bonlib.models.peft_folders import unfreeze_adapter
from bonlib.models.reading import TokenBatch, response_logits
from bonlib.models.ways import text_config


class Anchor(torch.nn.Module):
    """A second value for weights that are trained, one copy of them: the policy that the first follows.

    The copy is held as buffers, so that a checkpoint of the module around it has it.

    Args:
        weights: those trained; an adapter's alone, if there is one.
    """

    def __init__(self, weights: Iterable[torch.nn.Parameter]) -> None:
        super().__init__()
        self._weights = list(weights)  # in a list, no module owns them twice
        for place, weight in enumerate(self._weights):
            self.register_buffer(f"copy_{place}", weight.detach().clone())

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the model be the anchor for a while; to draw and to read, not to learn."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def move(self, rate: float) -> None:
        """Take up a share of the weights: anchor ← (1 − rate) anchor + rate · weights."""
        for copied, weight in zip(self.buffers(), self._weights, strict=True):
            copied.lerp_(weight, rate)

    def _swap(self) -> None:
        for copied, weight in zip(self.buffers(), self._weights, strict=True):
            weight.data, copied.data = copied.data, weight.data


class Policy(torch.nn.Module):
    """Log-probabilities of responses, token by token.

    Args:
        model: a causal language model.
        with_values: whether it has a value head, which says what return to expect before each token; 0 at first.
        with_anchor: whether it has an `Anchor`, as `anchor`; at first that is where the model starts.
    """

    def __init__(self, model: Any, with_values: bool = False, with_anchor: bool = False) -> None:
        super().__init__()
        self.model = model
        self.anchor = Anchor(p for p in model.parameters() if p.requires_grad) if with_anchor else None
        self.value_head = None
        if with_values:
            width = text_config(model.config).hidden_size
            self.value_head = torch.nn.Linear(width, 1).to(next(model.parameters()).device)
            torch.nn.init.zeros_(self.value_head.weight)
            torch.nn.init.zeros_(self.value_head.bias)

    def forward(self, batch: TokenBatch) -> tuple[Tensor, Tensor | None]:
        """Return log-probabilities of the response tokens and values before them, each (B, T), 0 in padding.

        A batch with tokens `instead` gets the log-probabilities of these, (B, T, K).
        """
        logits, states = response_logits(self.model, batch, states=self.value_head is not None)
        real = batch.response_mask.bool()
        if batch.instead is not None:
            asked = logits.log_softmax(-1).gather(1, batch.instead[real])
            return asked.new_zeros(batch.instead.shape).index_put((real,), asked), None
        nll = torch.nn.functional.cross_entropy(logits, batch.responses[real], reduction="none")
        log_probs = torch.zeros(real.shape, device=nll.device).masked_scatter(real, -nll)
        if self.value_head is None or states is None:
            return log_probs, None
        with torch.autocast(states.device.type, enabled=False):  # steps of bfloat16 are as wide as the value's clip
            values = self.value_head(states.float())[..., 0]
        return log_probs, values * batch.response_mask

    @torch.no_grad()
    def read(self, batch: TokenBatch) -> Tensor:
        """Return log-probabilities of the response tokens, as exact as those of draws, (B, T)."""
        return self(batch)[0]


def trainable(model: Any, lora_rank: int) -> Any:
    """Return a copy of a model to be trained: whole and in single precision, or an adapter of it alone.

    Args:
        model: where the policy starts. Of one with an adapter, that is trained which `peft` would train.
        lora_rank: of a new adapter; 0 for none.

    Raises:
        ValueError: if a new adapter is asked for on top of one, or there is nothing to train.
    """
    policy = copy.deepcopy(model)
    if hasattr(model, "peft_config"):
        if lora_rank:
            raise ValueError(
                f"lora_rank is {lora_rank}, but the reference has an adapter, which is trained: leave it at 0"
            )
        unfreeze_adapter(policy)
        return policy
    if lora_rank == 0:
        return policy.float().requires_grad_(True)
    import peft

    config = peft.LoraConfig(
        r=lora_rank,
        lora_alpha=2 * lora_rank,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
        fan_in_fan_out=any(type(module).__name__ == "Conv1D" for module in policy.modules()),  # GPT-2's layers
    )
    return peft.get_peft_model(policy.requires_grad_(False), config)
