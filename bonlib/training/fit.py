"""Supervised training by `transformers.Trainer`: resumes, and counts its minutes over interruptions."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from bonlib.models.kernels import keep_freed_memory, release_freed_memory

SPARED_EVERY = 50  # steps


@dataclass(frozen=True)
class Recipe:
    """How one of the models is trained; kept beside the model as `recipe.json`."""

    context: int = 256
    steps: int = 12_000
    batch_size: int = 16
    learning_rate: float = 2e-3
    warmup_steps: int = 300
    weight_decay: float = 0.1
    seed: int = 0


def fit(
    model: Any,
    dataset: Any,
    recipe: Recipe,
    scratch: Path,
    collate: Any = None,
    loss: Callable[[Any, Any], torch.Tensor] | None = None,
    parts: int = 1,
) -> float:
    """Train `model` in place, from the newest checkpoint if an interrupted run of the same recipe left one.

    Checkpoints are removed when done.

    Args:
        model: of `transformers`, or with an adapter.
        dataset: of examples.
        recipe: sizes and settings.
        scratch: where checkpoints go.
        collate: makes a batch of examples, if they are not tensors.
        loss: of the model on a batch; the model's own if None.
        parts: that a batch is read in, one after another, for less memory; a divisor of its size.

    Returns:
        The minutes of all its sessions.
    """
    from transformers import Trainer, TrainerCallback, TrainingArguments
    from transformers.trainer_utils import get_last_checkpoint

    class Clock(TrainerCallback):  # type: ignore[misc]
        """Adds up the minutes over interruptions, which are part of what the model card states; and spares memory."""

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step % SPARED_EVERY == 0:
                release_freed_memory()
            if state.global_step % args.save_steps == 0:
                clock_file.write_text(json.dumps(minutes()))

    class Fitted(Trainer):  # type: ignore[misc]
        """Minimises the given loss."""

        def compute_loss(self, model: Any, inputs: Any, *args: Any, **options: Any) -> Any:
            return loss(model, inputs) if loss else super().compute_loss(model, inputs, *args, **options)

    def minutes() -> float:
        return earlier + (time.perf_counter() - begun) / 60

    keep_freed_memory()
    key = json.dumps([asdict(recipe), model.config.to_dict()], sort_keys=True, default=str)
    checkpoints = scratch / hashlib.sha256(key.encode()).hexdigest()[:12]
    checkpoints.mkdir(parents=True, exist_ok=True)
    clock_file = checkpoints / "minutes.json"
    newest = get_last_checkpoint(str(checkpoints))
    earlier = json.loads(clock_file.read_text()) if newest and clock_file.exists() else 0.0
    begun = time.perf_counter()
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        max_steps=recipe.steps,
        per_device_train_batch_size=recipe.batch_size // parts,
        gradient_accumulation_steps=parts,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=recipe.warmup_steps,
        weight_decay=recipe.weight_decay,
        adam_beta2=0.95,
        max_grad_norm=1.0,
        bf16=next(model.parameters()).dtype == torch.float32,  # else it is in that format already
        use_cpu=not torch.cuda.is_available(),
        seed=recipe.seed,
        logging_steps=100,
        save_steps=min(500, max(1, recipe.steps // 4)),
        save_total_limit=1,
        report_to="none",
        remove_unused_columns=False,
    )
    trainer = Fitted(model=model, args=arguments, train_dataset=dataset, data_collator=collate, callbacks=[Clock()])
    trainer.train(resume_from_checkpoint=newest)
    spent = minutes()
    shutil.rmtree(checkpoints)
    return spent
