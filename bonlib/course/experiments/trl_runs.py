"""TRL's trainers beside our loop on the enumerable model, judged by exact sums: the table of TRAINERS.md.

`python -m bonlib.course.experiments.trl_runs` does the runs that have no row yet, and prints the table.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from bonlib.bridge.trl import VbonReward, vbon_config, vbon_trainer
from bonlib.checks import one_of
from bonlib.course.experiments.exact_runs import FEW, ExactRun, N, loop_settings, reference, run_exactly, world
from bonlib.course.experiments.results import RESULTS, add_run, claim, done_runs, provenance, read_rows
from bonlib.course.making.enumerable import LENGTH, PROMPTS, letter_sentiment
from bonlib.course.runner import BUILD, commit_of_workbook
from bonlib.draws.samplers import SamplingSettings
from bonlib.exact import Array
from bonlib.training.settings import TrainingData, TrainSettings

TABLE = RESULTS / "trl.parquet"
LABELS = {
    "loop": "our loop",
    "rloo": "TRL, `RLOOTrainer`",
    "grpo": 'TRL, `GRPOTrainer`, `scale_rewards="none"`',
    "grpo-k3": "the same, `use_bias_correction_kl=False`: k3 as GRPO's paper has it",
    "grpo-scaled": '`GRPOTrainer` with its default `scale_rewards="group"`',
}
GRPO: dict[str, dict[str, Any]] = {
    "grpo": {"scale_rewards": "none"},
    "grpo-k3": {"scale_rewards": "none", "use_bias_correction_kl": False},
    "grpo-scaled": {"scale_rewards": "group"},
}
QUIET: dict[str, Any] = {"disable_tqdm": True, "gradient_checkpointing": False, "save_strategy": "no"}
FIGURES = {"mean_reward": 3, "kl": 3, "win_rate": 4, "reverse_kl": 3, "forward_kl": 3}  # and their digits


@dataclass(frozen=True)
class TrlRun:
    """One training by vBoN's L, from the same start with the same settings.

    Attributes:
        trainer: a key of `LABELS`.
        learning_rate: at its peak.
        steps: of Adam.
        count: responses a prompt and step.
        seed: of the draws.
    """

    trainer: str
    learning_rate: float = 3e-3
    steps: int = 300
    count: int = FEW
    seed: int = 0

    def __post_init__(self) -> None:
        one_of("trainer", self.trainer, LABELS)

    @property
    def identity(self) -> str:
        """A hash of all of it."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:12]


def run_once(run: TrlRun) -> dict[str, Any]:
    """Train and judge; return the figures of its row."""
    if run.trainer == "loop":
        same = ExactRun(
            "vbon-bound", training="trainer", learning_rate=run.learning_rate, steps=run.steps, count=run.count,
            seed=run.seed,
        )  # fmt: skip
        found = run_exactly(same)
        return {**asdict(run), **{name: found[name] for name in (*FIGURES, "processor_seconds")}}
    begun = time.process_time()
    with TemporaryDirectory() as folder:
        trainer = _trainer(run, Path(folder))
        trainer.train()
    found = world("letters").judge(replace(reference(), model=trainer.model.eval()), N).means()
    found["mean_reward"] = found.pop("reward")
    return {**asdict(run), **found, "processor_seconds": time.process_time() - begun}


def _trainer(run: TrlRun, folder: Path) -> Any:
    settings = loop_settings(run.steps, run.count, run.learning_rate, run.seed)
    data = TrainingData(PROMPTS, letter_sentiment(), SamplingSettings(max_new_tokens=LENGTH), cdf=world("letters"))
    model = reference().model.config.name_or_path
    if run.trainer == "rloo":
        return vbon_trainer(model, N, data, settings, folder, **QUIET)
    return _grpo(model, data, settings, folder, **GRPO[run.trainer])


def _grpo(model: str, data: TrainingData, settings: TrainSettings, folder: Path, **options: Any) -> Any:
    """GRPO with all that it shares with RLOO as in the other runs."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    ours = vbon_config(data, settings, folder, **QUIET)
    shared = (
        "output_dir", "max_steps", "per_device_train_batch_size", "num_generations", "max_completion_length", "beta",
        "learning_rate", "warmup_steps", "lr_scheduler_type", "adam_beta2", "max_grad_norm", "bf16", "seed",
        "logging_steps", "save_steps", "report_to", "disable_dropout", "temperature", "top_p", "top_k", *QUIET,
    )  # fmt: skip
    return GRPOTrainer(
        model=model,
        reward_funcs=VbonReward(N, data, settings),
        args=GRPOConfig(**{name: getattr(ours, name) for name in shared}, **options),
        train_dataset=Dataset.from_dict({"prompt": list(data.prompts)}),
    )


def grid(seeds: int = 3) -> list[TrlRun]:
    """Return the runs of the table."""
    names = list(LABELS)
    return [TrlRun(name, seed=seed) for part in (names[:3], names[3:]) for seed in range(seeds) for name in part]


def run_all(runs: Iterable[TrlRun], *, table: Path = TABLE) -> None:
    """Do every run that has no row yet; several processes may do so at once."""
    from trl import __version__ as version

    about = provenance(torch.device("cpu"), commit_of_workbook()) | {"trl": version}
    for run in runs:
        with claim(BUILD / "trl_runs" / f"{run.identity}.lock") as ours:
            if not ours or run.identity in done_runs(table):
                continue
            row = run_once(run)
            add_run(table, run.identity, row | about)
        figures = ", ".join(f"{name} {row[name]:.4f}" for name in FIGURES)
        print(f"{run.trainer} seed {run.seed}: {figures}, {row['processor_seconds']:.0f} s", flush=True)


def table_of_runs(path: Path = TABLE) -> str:
    """Return the table of TRAINERS.md: means over seeds ± their standard error, and what no run can pass, exactly."""
    rows = read_rows(path)
    prompts = world("letters")
    ends = {
        "where all start: the reference": prompts.ref_log_probs,
        "L's optimum, exactly": (prompts.ref_log_probs + (N - 1) * prompts.log_cdf).log_softmax(1),
        f"best-of-{N} itself": prompts.log_best_of(N),
    }
    heads = ["trainer", "reward", "KL to the reference", "win rate", f"KL to best-of-{N}", "KL from it"]
    lines = [" | ".join(heads), " | ".join(["---"] * len(heads))]
    for name, label in LABELS.items():
        own = rows[rows["trainer"] == name]
        cells = [_mean_and_error(own[figure].to_numpy(), digits) for figure, digits in FIGURES.items()]
        lines.append(" | ".join([label, *cells]))
    for label, log_probs in ends.items():
        found = prompts.judge(log_probs, N).means()
        found["mean_reward"] = found["reward"]
        lines.append(" | ".join([label, *(f"{abs(found[f]):.{digits}f}" for f, digits in FIGURES.items())]))
    return "\n".join(f"| {line} |" for line in lines)


def _mean_and_error(values: Array, digits: int) -> str:
    error = values.std(ddof=1) / len(values) ** 0.5
    return f"{values.mean():.{digits}f} ± {error:.{digits}f}"


if __name__ == "__main__":
    run_all(grid())
    print(table_of_runs())
