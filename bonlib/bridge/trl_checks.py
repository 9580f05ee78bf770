"""What must hold of TRL's `RLOOTrainer` for it to ascend vBoN's bound; all but a few of these fail silently there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from bonlib.draws.store import check_draws
from bonlib.models.loaded import LoadedModel
from bonlib.training.settings import TrainingData

# What each option of `RLOOConfig` must be, and what vBoN would turn into with another.
REQUIRED: dict[str, tuple[Any, str]] = {
    "beta": (1.0, "the reward holds (N−1) log F≤, so that any other weight of the KL is another N"),
    "temperature": (1.0, "responses would be drawn from, and scored under, another law than the policy's"),
    "top_p": (1.0, "responses would be drawn from another law than the one whose gradient is taken"),
    "top_k": (0, "responses would be drawn from another law than the one whose gradient is taken"),
    "min_p": (None, "responses would be drawn from another law than the one whose gradient is taken"),
    "repetition_penalty": (1.0, "responses would be drawn from another law than the one whose gradient is taken"),
    "generation_kwargs": (None, "it may change the law that responses are drawn from"),
    "vllm_structured_outputs_regex": (None, "responses would be drawn from another law than the policy's"),
    "normalize_advantages": (False, "each batch would have a weight of its own, and the mean over batches another end"),
    "num_iterations": (1, "later steps would learn from responses of an older policy, by a clipped ratio"),
    "reward_clip_range": (None, "log F≤ would be cut, and with it the order of bad responses"),
    "reward_weights": (None, "the reward would count another number of times, which is another N"),
    "mask_truncated_completions": (False, "cut responses would teach nothing, and pay no KL"),
    "sync_ref_model": (False, "the KL would be to a policy that moves, while F stays that of the first reference"),
    "disable_dropout": (True, "the policy that learns would be another than the one that drew"),
    "neftune_noise_alpha": (None, "the policy that learns would be another than the one that drew"),
    "weight_decay": (0.0, "weights would be pulled to 0, which the objective does not ask for"),
}
# Settings of a model's own generation_config that reach `generate` past TRL, with the values that leave the law alone.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("min_length", "min_new_tokens", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size"), (0,)),
    **dict.fromkeys(("typical_p", "encoder_repetition_penalty", "guidance_scale", "num_beams"), (1, 1.0)),
    **dict.fromkeys(("epsilon_cutoff", "eta_cutoff", "top_h"), (0.0,)),
    **dict.fromkeys(
        (
            "bad_words_ids", "begin_suppress_tokens", "exponential_decay_length_penalty", "forced_bos_token_id",
            "forced_eos_token_id", "max_time", "sequence_bias", "stop_strings", "suppress_tokens",
            "watermarking_config",
        ),
        (),
    ),
}  # fmt: skip


MOVED = 0.02  # of the next token's probability: more than rounding to bfloat16 does, less than other positions do


def check_options(args: Any, data: TrainingData) -> None:
    """Raise a ValueError that names the first option under which another objective would be ascended.

    Args:
        args: an `RLOOConfig`.
        data: of the reward.
    """
    for name, (wanted, why) in REQUIRED.items():
        if (found := getattr(args, name)) != wanted and (found or wanted is not None):
            raise ValueError(f"{name} is {found!r}; {why}: take {wanted!r}")
    each, steps = args.gradient_accumulation_steps, args.steps_per_generation
    if steps != each:
        raise ValueError(
            f"steps_per_generation is {steps} with gradient_accumulation_steps {each}; later steps would learn from "
            "responses of an older policy: leave it out"
        )
    length, drawn = args.max_completion_length, data.sampling.max_new_tokens
    if length != drawn:
        raise ValueError(f"max_completion_length is {length}; F≤ is of draws of at most {drawn} tokens: take {drawn}")


def check_model(trainer: Any, data: TrainingData) -> None:
    """Raise a ValueError that names the first thing about a trainer's model by which the objective would be another.

    Args:
        trainer: an `RLOOTrainer`.
        data: of the reward.
    """
    model, name = trainer.model, trainer.model.config.name_or_path
    if trainer.aux_loss_enabled:
        raise ValueError("router_aux_loss_coef is not 0, and the model's router has a loss, which is added: take 0.0")
    _check_noise(model)
    if not trainer.use_vllm:  # which takes nothing from the model's own settings
        _check_law(model.generation_config)
    loaded = LoadedModel(model, trainer.processing_class, str(name))
    encoded = loaded.encode(data.prompts, data.sampling.max_new_tokens)
    _check_prompts(data.prompts, encoded, trainer.processing_class(text=list(data.prompts))["input_ids"])
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        return  # weights are in parts, or not there yet
    if len(set(map(len, encoded))) > 1 and (moved := _moved_by_padding(model, encoded)) > MOVED:
        raise ValueError(
            f"{type(model).__name__} moves {moved:.0%} of its probability where a prompt is padded, since TRL scores "
            "without positions: give prompts of one length, or a model with relative positions"
        )
    reference = () if trainer.ref_model is None else trainer.ref_model.parameters()
    if not all(torch.equal(old.to(new), new) for old, new in zip(reference, model.parameters(), strict=False)):
        raise ValueError(
            f"model has other weights than {name!r}, which TRL loads as the reference: save it, and give the folder"
        )
    if data.draws is not None:
        check_draws(data.draws, loaded)


def _check_noise(model: Any) -> None:
    """Nothing may be left that is random in training; `disable_dropout` knows one class of modules only."""
    for name, module in model.named_modules():
        for field, value in vars(module).items():
            noisy = "drop" in field or "jitter" in field or (field == "p" and "Dropout" in type(module).__name__)
            if noisy and isinstance(value, float) and value > 0:
                raise ValueError(
                    f"{name}.{field} is {value}; the policy that learns would be another than the one that drew: load "
                    "the model with that set to 0"
                )


def _check_law(config: Any) -> None:
    """What TRL does not set, `generate` takes from the model's own settings."""
    for field, neutral in NEUTRAL.items():
        if (value := getattr(config, field, None)) is not None and value not in neutral:
            raise ValueError(
                f"generation_config.{field} is {value!r}, of the model's own; it changes the law that responses are "
                f"drawn from: set model.generation_config.{field} = None"
            )


def _check_prompts(prompts: Sequence[str], ours: Sequence[Sequence[int]], theirs: Sequence[Sequence[int]]) -> None:
    for prompt, mine, other in zip(prompts, ours, theirs, strict=True):
        if list(mine) != list(other):
            raise ValueError(
                f"prompt {prompt[:40]!r} ends in the tokens {list(other[-4:])} for TRL, and in {list(mine[-4:])} for "
                "the draws behind F≤: let the tokenizer add none"
            )


@torch.no_grad()
def _moved_by_padding(model: Any, prompts: Sequence[Sequence[int]]) -> float:
    """How far the next token's law moves when the shortest prompt is padded to the longest: total variation."""
    ordered = sorted(map(list, prompts), key=len)
    shortest, laws = ordered[0], []
    for extra in (0, len(ordered[-1]) - len(shortest)):
        ids = torch.tensor([shortest[:1] * extra + shortest], device=model.device)
        mask = torch.tensor([[0] * extra + [1] * len(shortest)], device=model.device)
        laws.append(model(input_ids=ids, attention_mask=mask).logits[0, -1].float().softmax(0))
    return float((laws[0] - laws[1]).abs().sum() / 2)
