"""BoN-SFT by TRL's `SFTTrainer`; BoNBoN, IPO and DPO by its `DPOTrainer`, with the losses of `bonlib.methods`.

Both get the tokens that were drawn. From texts, TRL would put an end token behind responses that were cut before
theirs, and split them into tokens anew. And TRL's IPO divides each log-ratio by its response's length, its "sft" term
by the tokens of a batch: whatever their weights, the two are not BoNBoN, so that its own loss takes their place.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from bonlib.bridge.trl import paced
from bonlib.methods.bon_sft import BonSft
from bonlib.models.texts import encode_prompts
from bonlib.training.off_policy import OffPolicy, resampled
from bonlib.training.settings import TrainingData, TrainSettings

Folder = str | os.PathLike[str]
NOTHING = -100  # the label of a token that is not learned
# Options that would change the objective, or that the loss put in place of TRL's would leave unheard.
NOT_OURS = {
    "beta", "f_divergence_type", "label_smoothing", "label_smoothing_factor", "ld_alpha", "loss_type", "loss_weights",
    "neftune_noise_alpha", "packing", "precompute_ref_log_probs", "sync_ref_model", "use_weighting", "weight_decay",
}  # fmt: skip


def bon_sft_trainer(
    model: Any,
    n: int,
    data: TrainingData,
    settings: TrainSettings,
    folder: Folder,
    *,
    tokenizer: Any,
    peft_config: Any = None,
    **options: Any,
) -> Any:
    """Return TRL's `SFTTrainer` on the best of every N stored draws; `.train()` starts it.

    TRL divides a step's loss by its tokens and not its responses: each step goes where ours does, and is shorter by the
    mean length. It knows no `disable_dropout`: load the model without.

    Args:
        model: folder or hub name, or a loaded model.
        n: number of draws N.
        data: with stored draws and their rewards.
        settings: of our loop; a step takes `prompts * group` responses.
        folder: for checkpoints.
        tokenizer: of the model.
        peft_config: of an adapter that is trained in place of the weights.
        **options: other fields of `SFTConfig`.

    Raises:
        ValueError: if there are fewer than N scored draws a prompt, or an option would change the objective.
    """
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    _check(options)
    _, rows = _examples(BonSft(n, "groups"), data, settings, tokenizer)
    learned = [{"input_ids": prompt + best, "labels": [NOTHING] * len(prompt) + best} for prompt, (best,), _ in rows]
    args = paced(SFTConfig, settings, folder, settings.prompts * settings.group, **{"max_length": None, **options})
    return SFTTrainer(
        model=model,
        args=args,
        train_dataset=Dataset.from_list(learned),
        processing_class=tokenizer,
        peft_config=peft_config,
    )


def pair_trainer(
    model: Any,
    method: OffPolicy,
    data: TrainingData,
    settings: TrainSettings,
    folder: Folder,
    *,
    tokenizer: Any,
    peft_config: Any = None,
    **options: Any,
) -> Any:
    """Return TRL's `DPOTrainer` with the loss of a method that learns from pairs; `.train()` starts it.

    Args:
        model: folder or hub name, or a loaded model.
        method: `Bonbon(n)`, `Dpo(beta)` or `Dpo(beta, identity=True)`.
        data: with stored draws, their rewards and their log-probabilities, which are those of the reference.
        settings: of our loop; a step takes `prompts * group` responses, half as many pairs.
        folder: for checkpoints.
        tokenizer: of the model.
        peft_config: of an adapter that is trained in place of the weights.
        **options: other fields of `DPOConfig`.

    Raises:
        ValueError: if there are too few scored draws a prompt, the method learns from single responses, or an option
            would change the objective.
    """
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    _check(options)
    method, rows = _examples(method, data, settings, tokenizer)
    if len(rows[0][1]) != 2:
        raise ValueError(f"method is {method}, which learns from single responses: take bon_sft_trainer")

    class PairTrainer(DPOTrainer):  # type: ignore[misc]  # TRL has no types
        """DPOTrainer with another loss, on tokens as they were drawn."""

        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

        def _precompute_ref_logps(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset  # they are those of the stored draws

        def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
            labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, NOTHING)
            outputs = model(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                labels=labels,
                use_cache=False,
                fused_lm_head=True,
            )
            log_probs = torch.stack(outputs.log_probs.sum(1).chunk(2), dim=1)
            reference = torch.stack([inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]], dim=1)
            loss = method.loss(log_probs, reference.to(log_probs)).mean()
            return (loss, outputs) if return_outputs else loss

    pairs = [
        {"prompt_ids": prompt, "chosen_ids": best, "rejected_ids": worst, "ref_chosen_logps": of_best,
         "ref_rejected_logps": of_worst}
        for prompt, (best, worst), (of_best, of_worst) in rows
    ]  # fmt: skip
    must = {"max_length": None, "precompute_ref_log_probs": True, "disable_dropout": True}
    args = paced(DPOConfig, settings, folder, settings.prompts * settings.group // 2, **{**must, **options})
    return PairTrainer(
        model=model,
        args=args,
        train_dataset=Dataset.from_list(pairs),
        processing_class=tokenizer,
        peft_config=peft_config,
    )


def _check(options: dict[str, Any]) -> None:
    for name in sorted(NOT_OURS & options.keys()):
        raise ValueError(f"{name} is {options[name]!r}; the objective is the method's own: leave it out")


Row = tuple[list[int], Sequence[list[int]], Sequence[float]]


def _examples(
    method: OffPolicy, data: TrainingData, settings: TrainSettings, tokenizer: Any
) -> tuple[OffPolicy, list[Row]]:
    """The method with what it takes from its examples, and these: tokens of prompt and responses, and log π of each."""
    draws, rewards, _ = data.scored_draws(method.needs_draws, method)
    prompts, chosen, weights, targets = method.examples(rewards, seed=settings.seed)
    if not len(prompts):
        raise ValueError(f"{method} finds no example in the draws: are all rewards of a prompt equal?")
    if targets is not None:
        raise ValueError(f"method is {method}, whose loss is told targets, which TRL does not know: train it here")
    if weights is not None:
        taken = resampled(weights, len(weights), np.random.default_rng(settings.seed))
        prompts, chosen = prompts[taken], chosen[taken]  # each as often as its weight says
    encoded = encode_prompts(tokenizer, 1 << 62, data.prompts, data.sampling.max_new_tokens)
    rows: list[Row] = []
    for prompt, places in zip(prompts.tolist(), chosen.tolist(), strict=True):
        tokens = [[t for t in draws.responses[prompt].token_ids[place].tolist() if t >= 0] for place in places]
        rows.append((encoded[prompt], tokens, draws.responses[prompt].log_probs[places].tolist()))
    return method.balanced(draws.log_probs[prompts, chosen[:, 0]]), rows
