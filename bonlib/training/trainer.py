"""The one loop that trains every method: take or draw examples, compute a loss, step; with checkpoints that resume.

A step's work is cut into shards. Each has a seed of its own, drawn from the run's seed and the step, and nothing else
is random: a resumed run, and one on several processes, sees the same responses as an undisturbed one.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from bonlib.draws.store import check_draws
from bonlib.models.kernels import keep_freed_memory
from bonlib.models.loaded import LoadedModel, load_language_model
from bonlib.training.learner import TrainingMethod
from bonlib.training.policy import Policy, trainable
from bonlib.training.run_folder import Progress, RunFolder
from bonlib.training.settings import TrainingData, TrainSettings

Measure = Callable[[LoadedModel], Mapping[str, float]]
CAUSES = {  # of divergence, by the beginning of what is said of it
    "a return": "a return that is not finite: log F of a response is −inf (smooth the CDF), or its reward is extreme",
    "the KL": "too weak a pull back or too long steps: raise beta, lower n, slow the anchor (rate, every), or lower "
    "learning_rate",
    "": "steps too long or numbers too large for the format: lower learning_rate, or take precision 'no' in another "
    "process",
}
PROGRESS = ("step", "seconds", "responses", "curve", "recent")  # attributes of a run that a checkpoint keeps


@dataclass(frozen=True, eq=False, repr=False)
class Trained:
    """A trained policy and how it came about.

    Attributes:
        policy: the model; `folder / "policy"` holds it for `transformers`.
        curve: one row for each measured step: means since the last one (loss, gradient norm, learning rate; reward, KL,
            entropy and return of the responses, where the method draws any), what `measure` returned, and step, seconds
            and responses so far.
        responses: drawn from the policy and its anchor while training, or taken from the reference's draws, in all.
        seconds: spent, measurements left out.
        folder: of the run.
        main_process: whether this process is the one that writes and reports.
    """

    policy: LoadedModel
    curve: list[dict[str, float]]
    responses: int
    seconds: float
    folder: Path
    main_process: bool = True

    def __repr__(self) -> str:
        steps = int(self.curve[-1]["step"]) if self.curve else 0
        return f"{self.policy.name} after {steps} steps and {self.responses:,} responses, in {self.folder}"

    def _repr_html_(self) -> str:
        import pandas as pd

        table = pd.DataFrame(self.curve).to_html(index=False, float_format="{:.3g}".format)
        return f"<p>{self!r}; means since the row before:</p>{table}"


class DivergedError(RuntimeError):
    """Training came to numbers that are not finite, or left the reference beyond any use; the message says where."""


def train(
    reference: LoadedModel,
    method: TrainingMethod,
    data: TrainingData,
    settings: TrainSettings,
    folder: str | os.PathLike[str],
    *,
    measure: Measure | None = None,
    show: bool = True,
) -> Trained:
    """Train a policy that starts as the reference, and save it.

    Args:
        reference: where the policy starts; it is not changed.
        method: its settings, such as `Vbon(8)`, from a file of `bonlib.methods`.
        data: prompts, rewards and draws.
        settings: how long and how fast.
        folder: of this run alone. Checkpoints go there; an interrupted run goes on from the newest and comes to the
            same numbers; a finished one is loaded.
        measure: returns figures of the policy so far, for the curve; called every `settings.measure_every` steps and
            at the end, on the main process.
        show: whether to show a progress bar.

    Raises:
        ValueError: if method, data and settings do not fit, or the folder holds a run with others.
        DivergedError: if a loss or gradient is not finite, or the policy runs away. The last checkpoint is kept.
    """
    _check_kinds(reference=reference, method=method, data=data, settings=settings)
    return TrainingRun(reference, method, data, settings, Path(folder), measure, show).go()


def _check_kinds(**given: object) -> None:
    kinds: dict[str, tuple[type, str]] = {
        "reference": (LoadedModel, "load one with bonlib.models.loaded.load_language_model"),
        "method": (TrainingMethod, "give its settings, such as Vbon(n=8) of bonlib.methods.vbon"),
        "data": (TrainingData, "put prompts, reward model and draws into a TrainingData"),
        "settings": (TrainSettings, "give TrainSettings(steps=…)"),
    }
    for name, (kind, remedy) in kinds.items():
        if not isinstance(given[name], kind):
            raise ValueError(f"{name} is {given[name]!r}; it must be a {kind.__name__}: {remedy}")


@dataclass(eq=False)
class TrainingRun:
    """One training run; its fields are the arguments of `train`."""

    reference: LoadedModel
    method: TrainingMethod
    data: TrainingData
    settings: TrainSettings
    folder: Path
    measure: Measure | None = None
    show: bool = True

    def __post_init__(self) -> None:
        from accelerate import Accelerator
        from accelerate.utils import DistributedDataParallelKwargs, set_seed

        reference, settings = self.reference, self.settings
        keep_freed_memory()
        # Tied weights are stored once, as they should be, and each checkpoint would say so.
        logging.getLogger("accelerate.utils.other").setLevel(logging.ERROR)
        set_seed(settings.seed)  # of an adapter's first weights; all other draws have generators of their own
        if self.data.draws is not None:
            check_draws(self.data.draws, reference)
        try:
            self.accelerator = Accelerator(
                cpu=reference.device.type == "cpu",
                mixed_precision=settings.precision,
                # Buffers are the anchor: the same in all processes, and as large as the model.
                kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
            )
        except ValueError as error:
            raise ValueError(
                f"precision is {settings.precision!r}, but this process has trained with another: start a new one"
            ) from error
        if settings.shards % self.accelerator.num_processes:
            raise ValueError(
                f"shards is {settings.shards} for {self.accelerator.num_processes} processes; take a multiple of that"
            )
        self.files = RunFolder(self.folder, self.accelerator)
        policy = Policy(
            trainable(reference.model, settings.lora_rank),
            with_values=settings.ppo is not None,
            with_anchor=self.method.asks_anchor,
        )
        self.learned = [parameter for parameter in policy.parameters() if parameter.requires_grad]
        # The returns shrink as the policy improves, so the optimiser must forget their early size soon.
        optimiser = torch.optim.AdamW(
            self.learned, lr=settings.learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True
        )
        self.anchor = policy.anchor
        self.policy, self.optimiser = self.accelerator.prepare(policy, optimiser)
        self.policy.eval()  # dropout would make the policy that learns another than the one that draws
        self.loaded = replace(reference, model=policy.model, name=f"policy from {reference.name}")
        self.learner = self.method.learner(self)
        self.curve: list[dict[str, float]] = []
        self.recent: list[dict[str, float]] = []  # steps that are not in the curve yet
        self.step, self.seconds, self.responses = 0, 0.0, 0

    # -- the loop --------------------------------------------------------------------------------------------------

    def go(self) -> Trained:
        """Train from the newest checkpoint to the last step, or load what is finished."""
        self.files.claim(self._about())
        policy = self.loaded
        if self.files.finished:
            vars(self).update(self.files.final_progress())
            dtype = str(next(self.policy.parameters()).dtype).removeprefix("torch.")
            policy = load_language_model(self.folder / "policy", device=self.reference.device.type, dtype=dtype)
        else:
            vars(self).update(self.files.resume())
            self._train()
            self.files.finish(policy, self._progress())
        main = self.accelerator.is_main_process
        return Trained(policy, self.curve, self.responses, self.seconds, self.folder, main)

    def _train(self) -> None:
        steps, shown = self.settings.steps, self.show and self.accelerator.is_main_process
        # Every refresh stays in a notebook's output for good.
        with tqdm(
            total=steps,
            initial=self.step,
            desc=self.folder.name,
            unit="step",
            disable=not shown,
            mininterval=5,
            leave=False,
        ) as bar:
            while self.step < steps:
                begun = time.perf_counter()
                figures = self.train_step()
                self.recent.append(figures)
                self.step += 1
                self.seconds += time.perf_counter() - begun
                if self.step == steps or self.step % self.settings.measure_every == 0:
                    self.curve.append(self._point())
                if self.step < steps and self.step % self.settings.checkpoint_every == 0:
                    self.files.save(self.step, self._progress())
                named = [name for name in ("reward", "kl", "entropy", "loss") if name in figures]
                bar.set_postfix({name: f"{figures[name]:.3g}" for name in named}, refresh=False)
                bar.update()

    def _point(self) -> dict[str, float]:
        """One row of the curve: means over the steps since the last one, and what is measured now."""
        row: dict[str, float] = {"step": self.step, "seconds": self.seconds, "responses": self.responses}
        row |= {name: float(np.mean([figures[name] for figures in self.recent])) for name in self.recent[0]}
        self.recent = []
        return row | dict(self.measure(self.loaded) if self.measure and self.accelerator.is_main_process else {})

    def train_step(self) -> dict[str, float]:
        """One batch of responses or examples, and the gradient steps it is used for."""
        settings, accelerator = self.settings, self.accelerator
        rate = settings.learning_rate_at(self.step)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        mine = range(accelerator.process_index, settings.shards, accelerator.num_processes)
        shards = [self.learner.shard(self.step, place) for place in mine]
        prompts = [prompt for shard in shards for prompt in shard.prompts]
        self.learner.weigh(shards)
        for _ in range(self.learner.epochs):
            total, parts = 0.0, [part for shard in shards for part in self.learner.parts(shard)]
            for place, part in enumerate(parts):
                syncs = place + 1 == len(parts)
                with nullcontext() if syncs else accelerator.no_sync(self.policy):
                    log_probs, values = self.policy(part.batch)
                    self.expect_finite("a log-probability", log_probs, part.prompts)
                    loss = self.learner.loss(part, log_probs, values) / settings.shards
                    # Processes average their gradients; each shard counts as one part of the whole step.
                    accelerator.backward(loss * accelerator.num_processes)
                    total += float(loss.detach())
            norm = accelerator.clip_grad_norm_(self.learned, settings.max_grad_norm)
            self.expect_finite("the gradient's length", norm, prompts)
            self.optimiser.step()
            self.optimiser.zero_grad()
        figures = {"loss": total * accelerator.num_processes}
        for name in shards[0].figures:
            figures[name] = float(np.mean([shard.figures[name] for shard in shards]))
        if accelerator.num_processes > 1:
            local = torch.tensor(list(figures.values()), device=accelerator.device)
            figures = dict(zip(figures, accelerator.reduce(local, "mean").tolist(), strict=True))
        self.responses += self.learner.responses
        self.learner.stepped(self.step + 1)
        if figures.get("kl", 0.0) > settings.max_kl:
            self._diverged(f"the KL to the reference is {figures['kl']:.0f} nats", prompts)
        return {"learning_rate": rate, "gradient_norm": float(norm), **figures}

    def add_up(self, numbers: Tensor) -> Tensor:
        """Return the sum of a tensor over processes."""
        return self.accelerator.reduce(numbers, "sum")

    # -- trouble ---------------------------------------------------------------------------------------------------

    def expect_finite(self, name: str, numbers: Tensor, prompts: Sequence[str]) -> None:
        """Stop the run if a number is not finite."""
        if not bool(numbers.isfinite().all()):
            self._diverged(f"{name} is {float(numbers[~numbers.isfinite()].flatten()[0])}", prompts)

    def _diverged(self, what: str, prompts: Sequence[str]) -> None:
        weights = [name for name, p in self.policy.named_parameters() if not bool(p.isfinite().all())]
        if weights:
            cause = f"weights that are not finite ({weights[0]}): the step before was too long, lower learning_rate"
        else:
            cause = next(why for beginning, why in CAUSES.items() if what.startswith(beginning))
        prompts = list(dict.fromkeys(prompts))
        kept = self.files.newest
        raise DivergedError(
            f"step {self.step + 1} of {self.folder.name}: {what}. Batch: {prompts[:4]} and {max(len(prompts) - 4, 0)} "
            f"more. Likely cause: {cause}. Last good checkpoint: {kept or 'none yet'}"
        )

    # -- where it is -----------------------------------------------------------------------------------------------

    def _about(self) -> dict[str, Any]:
        """What makes this run another than others."""
        return {
            "method": type(self.method).__name__,
            **self.method.described(),
            "settings": self.settings.described(),
            "sampling": self.data.sampling.described(),
            "reference": self.reference.fingerprint,
            "reward_model": self.data.reward_model.fingerprint,
            "prompts": hashlib.sha256(json.dumps(list(self.data.prompts)).encode()).hexdigest(),
            "learned_from": self.learner.learned_from,
        }

    def _progress(self) -> Progress:
        return {name: getattr(self, name) for name in PROGRESS}
