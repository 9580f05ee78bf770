"""vBoN by TRL's `RLOOTrainer`: its reward, its options, and the trainer made of both and checked.

RLOO takes β (log πθ − log π) off the reward of a whole response, and its baseline is the mean of the others. With
reward (N−1) log F≤ and β = 1 that is the return of `bonlib.methods.vbon_bound` to the letter, and so is the gradient.
(Reward log F≤ with β = 1/(N−1) has the same optimum; but its gradients are N−1 times shorter, there is no N = 1, and N
would stand in two places that must agree.)
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from bonlib.bridge.trl_checks import REQUIRED, check_model, check_options
from bonlib.draws.rewards import checked_score
from bonlib.methods.vbon_bound import VbonBound
from bonlib.models.responses import Responses
from bonlib.training.settings import TrainingData, TrainSettings


class VbonReward:
    """(N−1) log F≤ of responses, as a reward function of TRL's `RLOOTrainer` with β = 1.

    F≤ comes from rewards of stored draws of the reference, never from the group: `SampledCdf` gives the mean of log F≤
    under its posterior, which is finite for every response, and unbiased where the logarithm of a count is not.

    Args:
        n: number of draws N, real, at least 1.
        data: what our own loop would learn from: the reward model, and a CDF of the reference's rewards.
        settings: of our loop, for their easing: the share of the steps over which N grows from 1.

    Raises:
        ValueError: if `n` is out of range, or `data` has no CDF.
    """

    __name__ = "vbon"  # TRL's name for it in logs

    def __init__(self, n: float, data: TrainingData, settings: TrainSettings | None = None) -> None:
        self.method, self.data, self.settings = VbonBound(n), data, settings or TrainSettings()
        if data.cdf is None:
            raise ValueError("cdf is None; vBoN needs the rewards' distribution: give TrainingData a SampledCdf")

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]] | None = None,
        trainer_state: Any = None,
        **columns: Any,
    ) -> list[float]:
        """Return (N−1) log F≤ of each response, nats.

        Args:
            prompts: B texts.
            completions: B texts.
            completion_ids: B lists of their tokens, for reward models that ask for them.
            trainer_state: says how far training is.
            **columns: what else TRL passes.

        Raises:
            ValueError: if prompts are conversations, one is not among those of the CDF, or F≤ of a response is 0.
        """
        if not all(isinstance(prompt, str) for prompt in prompts):
            raise ValueError(
                "prompts are conversations; the stored draws have texts: give bonlib.models.texts.chat_prompt's of them"
            )
        responses: Any = list(completions)
        if completion_ids is not None:
            tokens = np.full((len(completion_ids), max(map(len, completion_ids), default=0)), -1, np.int32)
            for row, ids in zip(tokens, completion_ids, strict=True):
                row[: len(ids)] = ids
            unknown = np.full(len(tokens), np.nan)
            responses = Responses(np.array(completions, dtype=object), tokens, unknown, unknown)
        rewards = checked_score(self.data.reward_model, prompts, responses)
        assert self.data.cdf is not None
        log_cdf = self.data.cdf.log_weak(prompts, completions, rewards)
        if not np.isfinite(log_cdf).all():  # TRL would take such an advantage for 0
            worst = completions[int(np.argmin(np.isfinite(log_cdf)))]
            raise ValueError(
                f"log F≤ of the response {worst[:40]!r} is not finite: give a SampledCdf with its posterior"
            )
        part = 1.0 if trainer_state is None else self.settings.pull_at(trainer_state.global_step)
        return [float(value) for value in (self.method.eased(part).n - 1) * log_cdf]


def vbon_config(data: TrainingData, settings: TrainSettings, folder: str | os.PathLike[str], **options: Any) -> Any:
    """Return an `RLOOConfig` under which TRL does what our loop does with the same settings.

    Args:
        data: of which the length of responses is taken.
        settings: of our loop; its adapter is left to `peft_config`, and its easing to the reward.
        folder: for checkpoints.
        **options: other fields of `RLOOConfig`, such as `use_vllm=True` or `bf16=True`.

    Raises:
        ValueError: if settings are for PPO, ask for more prompts a step than there are, or do not fit the processes.
    """
    from trl import RLOOConfig

    if settings.ppo is not None:
        raise ValueError("ppo is set; RLOOTrainer has no critic: leave ppo out of the settings")
    if settings.prompts > len(data.prompts):  # TRL's sampler would give no batch at all
        raise ValueError(f"prompts is {settings.prompts} a step, and data has {len(data.prompts)}: lower it")
    ours = {
        "num_generations": settings.group,
        "max_completion_length": data.sampling.max_new_tokens,
        **{name: value for name, (value, _) in REQUIRED.items()},
    }
    return paced(RLOOConfig, settings, folder, settings.prompts * settings.group, **{**ours, **options})


def paced(kind: Any, settings: TrainSettings, folder: str | os.PathLike[str], examples: int, **options: Any) -> Any:
    """Return settings for one of TRL's trainers under which it learns at the pace of our loop.

    Args:
        kind: their class.
        settings: of our loop.
        folder: for checkpoints.
        examples: in a step.
        **options: other fields of them.

    Raises:
        ValueError: if there is a `lora_rank`, the shards cannot be shared out, or processes do not know of each other.
    """
    if settings.lora_rank:
        raise ValueError(f"lora_rank is {settings.lora_rank}; TRL takes a peft_config: give it that, and rank 0")
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if settings.shards % processes:
        raise ValueError(f"shards is {settings.shards} for {processes} processes; take a multiple of that")
    if examples % settings.shards or not examples:
        raise ValueError(f"shards is {settings.shards} for {examples} examples a step; it must divide them")
    ours = {
        "output_dir": os.fspath(folder),
        "max_steps": settings.steps,
        "per_device_train_batch_size": examples // settings.shards,
        "gradient_accumulation_steps": settings.shards // processes,
        "learning_rate": settings.learning_rate,
        "warmup_steps": min(settings.warmup, settings.steps // 2),
        "lr_scheduler_type": "linear" if settings.decay else "constant_with_warmup",
        "adam_beta2": 0.95,
        "max_grad_norm": settings.max_grad_norm,
        "bf16": settings.precision == "bf16",  # TRL's default is True
        "seed": settings.seed,
        "logging_steps": settings.measure_every,
        "save_steps": settings.checkpoint_every,
        "report_to": "none",
        "use_cpu": not torch.accelerator.is_available(),
    }
    config = kind(**{**ours, **options})
    if config.world_size != processes:  # as when something asked accelerate for its state, without cpu=True, before
        raise ValueError(
            f"WORLD_SIZE is {processes}, and TRL counts {config.world_size}; each process would train alone: on CPUs "
            "take use_cpu=True, and make no PartialState or Accelerator before"
        )
    return config


def vbon_trainer(
    model: Any,
    n: float,
    data: TrainingData,
    settings: TrainSettings,
    folder: str | os.PathLike[str],
    *,
    peft_config: Any = None,
    **options: Any,
) -> Any:
    """Return TRL's `RLOOTrainer`, made for vBoN and checked; `.train()` starts it.

    Args:
        model: folder or hub name, or a model that is as it was loaded: TRL loads the reference by the model's name.
        n: number of draws N, real, at least 1.
        data: prompts, reward model and CDF; stored draws, if there are any, are compared with the model.
        settings: of our loop.
        folder: for checkpoints.
        peft_config: of an adapter that is trained in place of the weights.
        **options: other fields of `RLOOConfig`.

    Raises:
        ValueError: if something of this would make it another objective.
    """
    from datasets import Dataset
    from trl import RLOOTrainer

    trainer = RLOOTrainer(
        model=model,
        reward_funcs=VbonReward(n, data, settings),
        args=vbon_config(data, settings, folder, **options),
        train_dataset=Dataset.from_dict({"prompt": list(data.prompts)}),
        peft_config=peft_config,
    )
    check_vbon(trainer)
    return trainer


def check_vbon(trainer: Any) -> None:
    """Raise a ValueError that names the first thing by which an `RLOOTrainer` would not ascend vBoN's bound L.

    Args:
        trainer: whose one reward function is a `VbonReward`.
    """
    rewards = trainer.reward_funcs
    if len(rewards) != 1 or not isinstance(rewards[0], VbonReward):
        raise ValueError(f"reward_funcs is {trainer.reward_func_names}; vBoN's is one VbonReward alone")
    check_options(trainer.args, rewards[0].data)
    check_model(trainer, rewards[0].data)
