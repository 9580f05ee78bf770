"""What a training step costs, ours beside TRL's and our methods beside each other; and whether both learn the same.

    python benchmarks/trainers.py [--rounds 20] [--precision no bf16] [--only rloo dpo vbon methods] [--kept-memory]
    python benchmarks/trainers.py --results FOLDER [--steps 80] [--seeds 3]

Steps are interleaved, so that a busy machine slows both sides alike. Both train the same tiny model on the same prompts
with the same reward model, learning rate, KL coefficient, optimiser and length of gradient, without dropout, logging,
evaluation or checkpoints. TRL draws by its own path, `generate`; gradients are not recomputed, and for DPO the
reference's log-probabilities are worked out before, as ours are stored with the draws. It trains in a process of its
own, by its own `train()`, and waits there while ours takes a step. `--kept-memory` gives that process what ours asks of
the C library too: not to hand freed memory back. "vbon" is vBoN beside KL-RL, which differ in the return alone;
"methods" all of ours.

`--results` trains by RLOO on both sides to the end and measures the policies by the same draws: reward and KL to the
reference, means and standard errors over seeds. What is finished in the folder is not trained again.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import multiprocessing
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import torch
from datasets import Dataset
from scipy.stats import bootstrap
from transformers import TrainerCallback
from transformers.utils import logging as transformers_logging
from trl import DPOConfig, DPOTrainer, RLOOConfig, RLOOTrainer

from bonlib.course.experiments.setting import imdb_setting
from bonlib.course.profiles import get_profile
from bonlib.draws.rewards import SentimentReward
from bonlib.draws.samplers import TransformersSampler
from bonlib.draws.store import SampleStore
from bonlib.methods.bon_sft import BonSft
from bonlib.methods.bonbon import Bonbon
from bonlib.methods.bond import Bond
from bonlib.methods.dpo import Dpo
from bonlib.methods.jbond import JBond
from bonlib.methods.kl_rl import KlRl
from bonlib.methods.vbon import Vbon
from bonlib.methods.vbon_bound import VbonBound
from bonlib.models.kernels import keep_freed_memory
from bonlib.models.reading import response_log_probs
from bonlib.training.reward_cdf import SampledCdf
from bonlib.training.settings import Ppo, TrainingData, TrainSettings
from bonlib.training.trainer import TrainingRun, train

GROUP, PROMPTS, DRAWS = 4, 16, 16
BETA, RATE = 0.1, 1e-4


class Turns(TrainerCallback):
    """Reports the seconds of each of TRL's steps to another process, and waits for its word to go on."""

    def __init__(self, pipe):
        self.pipe = pipe

    def on_train_begin(self, args, state, control, **kwargs):
        """Wait for the first turn."""
        self.pipe.recv()
        self.begun = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        """Report, and wait for the next one."""
        self.pipe.send(time.perf_counter() - self.begun)
        self.pipe.recv()
        self.begun = time.perf_counter()


def trl_settings(kind, folder, precision, *, steps, seed=0, **options):
    return kind(
        output_dir=str(folder),
        max_steps=steps,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        beta=BETA,
        adam_beta2=0.95,
        max_grad_norm=1.0,
        bf16=precision == "bf16",
        use_cpu=True,
        seed=seed,
        gradient_checkpointing=False,
        disable_dropout=True,
        report_to="none",
        save_strategy="no",
        logging_steps=10**9,
        disable_tqdm=True,
        **options,
    )


def trl_rloo(setting, folder, precision, callbacks, *, steps, seed=0):
    """TRL's trainer, and the list of its responses' lengths."""
    reward_model, lengths = SentimentReward(setting.reward_model.loaded), []

    def reward(prompts, completions, completion_ids, **columns):
        lengths.extend(map(len, completion_ids))
        return reward_model.score(prompts, completions).tolist()

    settings = trl_settings(
        RLOOConfig,
        folder,
        precision,
        steps=steps,
        seed=seed,
        per_device_train_batch_size=PROMPTS * GROUP,
        num_generations=GROUP,
        max_completion_length=setting.sampling.max_new_tokens,
    )
    trainer = RLOOTrainer(
        model=copy.deepcopy(setting.reference.model).float(),
        reward_funcs=reward,
        args=settings,
        train_dataset=Dataset.from_dict({"prompt": list(setting.prompts)}),
        processing_class=copy.deepcopy(setting.reference.tokenizer),
        callbacks=callbacks,
    )
    return trainer, lengths


def trl_dpo(setting, examples, folder, precision, callbacks, *, steps):
    """TRL's trainer on pairs given as tokens, and the lengths of all their responses."""

    class Tokens(DPOTrainer):
        def _prepare_dataset(self, dataset, *args, **options):
            return dataset

    settings = trl_settings(
        DPOConfig,
        folder,
        precision,
        steps=steps,
        per_device_train_batch_size=PROMPTS * GROUP // 2,
        precompute_ref_log_probs=True,
    )
    trainer = Tokens(
        model=copy.deepcopy(setting.reference.model).float(),
        args=settings,
        train_dataset=Dataset.from_dict(examples),
        processing_class=copy.deepcopy(setting.reference.tokenizer),
        callbacks=callbacks,
    )
    return trainer, [len(row) for name in ("chosen_ids", "rejected_ids") for row in examples[name]]


def pairs_as_tokens(learner):
    """The pairs that our learner has, as TRL's collator takes them."""
    prompts, pairs = learner.examples
    draws = learner.draws

    def tokens(column):
        rows = (draws.responses[p].token_ids[pair[column]] for p, pair in zip(prompts, pairs, strict=True))
        return [row[row >= 0].tolist() for row in rows]

    ids = [learner.tokens.ids[draws.prompts[p]] for p in prompts]
    return {"prompt_ids": ids, "chosen_ids": tokens(0), "rejected_ids": tokens(1)}


def theirs(kind, examples, precision, steps, kept_memory, pipe):
    """Train by TRL, in this process of its own, whenever the other one says so."""
    quietly()
    if kept_memory:
        keep_freed_memory()
    setting = imdb_setting(get_profile("quick"))
    with tempfile.TemporaryDirectory() as folder:
        common = {"steps": steps, "callbacks": [Turns(pipe)]}
        if kind == "rloo":
            trainer, lengths = trl_rloo(setting, folder, precision, **common)
        else:
            trainer, lengths = trl_dpo(setting, examples, folder, precision, **common)
        trainer.train()
    pipe.send(float(np.mean(lengths)))


def quietly():
    """Keep the libraries from talking."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    datasets.disable_progress_bars()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")


def our_settings(precision, steps, **options):
    sizes = {"prompts": PROMPTS, "group": GROUP, "learning_rate": RATE, "warmup": 0, "decay": False}
    return TrainSettings(steps=steps, precision=precision, **{**sizes, **options})


def training_data(setting, folder):
    store = SampleStore(folder)
    draws = store.draw(setting.sampler, setting.prompts, DRAWS, setting.sampling, seed=0)
    rewards = store.score(setting.reward_model, draws)
    return TrainingData(
        setting.prompts,
        setting.reward_model,
        setting.sampling,
        draws=draws,
        rewards=rewards,
        cdf=SampledCdf(setting.prompts, rewards),
    )


def begun(setting, method, data, settings, folder):
    return TrainingRun(setting.reference, method, data, settings, folder, None, False)


def seconds(run):
    start = time.perf_counter()
    run.train_step()
    run.step += 1
    return time.perf_counter() - start


def told(name, theirs, ours, words=("TRL", "ours")):
    """A line: medians, and the ratio of pairs with its interval."""
    ratios = np.array(theirs) / np.array(ours)
    low, high = bootstrap((ratios,), np.median, rng=0, n_resamples=2000).confidence_interval
    print(
        f"{name}: {words[0]} {np.median(theirs):.3f} s a step, {words[1]} {np.median(ours):.3f} s; ratio "
        f"{np.median(ratios):.2f}, 95 % interval {low:.2f} to {high:.2f} ({len(ratios)} interleaved pairs)",
        flush=True,
    )


def compare(kind, setting, data, precision, rounds, folder, kept_memory):
    """Ours and TRL's in turns."""
    method = KlRl(BETA) if kind == "rloo" else Dpo(BETA)
    steps = rounds + 2  # the first ones pay for set-up
    run = begun(setting, method, data, our_settings(precision, steps), folder / f"{kind} {precision}")
    examples = pairs_as_tokens(run.learner) if kind == "dpo" else None
    pipe, far_end = multiprocessing.Pipe()
    spawned = multiprocessing.get_context("spawn")
    other = spawned.Process(target=theirs, args=(kind, examples, precision, steps, kept_memory, far_end))
    other.start()
    spent = {"TRL": [], "ours": []}
    for _ in range(steps):
        pipe.send("go on")
        spent["TRL"].append(pipe.recv())
        spent["ours"].append(seconds(run))
    pipe.send("finish")
    length = pipe.recv()
    other.join()
    told(f"{kind.upper()}, {precision}", spent["TRL"][2:], spent["ours"][2:])
    mine = run.learner.shard(0, 0).batch
    prompt = np.mean([len(prompt) for prompt in mine.prompts])
    print(
        f"    {PROMPTS * GROUP} responses a step on both sides; prompts of {prompt:.1f} tokens; responses of "
        f"{length:.1f} (TRL) and {np.mean(mine.lengths):.1f} (ours)"
    )


def compare_methods(setting, data, precision, rounds, folder, count):
    """Our methods, or the first few, beside KL-RL by RLOO; in random order, as none may be favoured."""
    ppo = {"ppo": Ppo()}
    methods = {
        "KL-RL, RLOO": (KlRl(BETA), {}),
        "vBoN, L": (VbonBound(8), {}),
        "vBoN, J": (Vbon(8), {}),
        "KL-RL, PPO (4 epochs)": (KlRl(BETA), ppo),
        "BOND": (Bond(8), {}),
        "J-BOND": (JBond(anchor_rate=0.02), {}),
        "BoN-SFT": (BonSft(8), {}),
        "DPO": (Dpo(BETA), {}),
        "BoNBoN": (Bonbon(8), {}),
    }
    runs = {}
    for name, (method, options) in list(methods.items())[:count]:
        # So slowly that their responses stay alike, and as long.
        settings = our_settings(precision, 10 * rounds, learning_rate=1e-6, **options)
        runs[name] = begun(setting, method, data, settings, folder / f"{name} {precision}")
    for run in runs.values():
        seconds(run)  # the first pays for set-up
    spent = {name: [] for name in runs}
    rng = np.random.default_rng(0)
    for _ in range(rounds):
        for name in rng.permutation(list(runs)):
            spent[name].append(seconds(runs[name]))
    base, *others = spent
    for name in others:
        told(f"Methods, {precision}", spent[name], spent[base], (name, base))


def same_results(setting, folder, steps, seeds):
    """Train on both sides, and measure both alike; a row a run in the folder."""
    data = TrainingData(setting.prompts, setting.reward_model, setting.sampling)
    for seed in range(seeds):
        for side in ("ours", "TRL"):
            file = folder / f"{side} {steps} steps seed {seed}.json"
            if file.exists():
                continue
            if side == "ours":
                settings = our_settings("no", steps, seed=seed)
                policy = train(setting.reference, KlRl(BETA), data, settings, folder / file.stem, show=False).policy
            else:
                trainer, _ = trl_rloo(setting, folder / "trl", "no", [], steps=steps, seed=seed)
                trainer.train()
                policy = replace(setting.reference, model=trainer.model.eval(), name="TRL")
            prompts = [prompt for prompt in setting.prompts for _ in range(16)]
            drawn = TransformersSampler(policy).sample(prompts, setting.sampling, seed=10_000 + seed)
            row = {
                "reward": float(setting.reward_model.score(prompts, drawn.texts.tolist()).mean()),
                "kl": float((drawn.log_probs - response_log_probs(setting.reference, prompts, drawn)).mean()),
            }
            folder.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(row))
    for side in ("ours", "TRL"):
        files = sorted(folder.glob(f"{side} {steps} steps seed *.json"))
        table = {name: np.array([json.loads(file.read_text())[name] for file in files]) for name in ("reward", "kl")}
        errors = {name: values.std(ddof=1) / len(values) ** 0.5 for name, values in table.items()}
        print(
            f"{side}, RLOO, {steps} steps, {len(files)} seeds: reward {table['reward'].mean():.4f} ± "
            f"{errors['reward']:.4f}, KL {table['kl'].mean():.3f} ± {errors['kl']:.3f} nats"
        )


def main():
    parser, kinds = argparse.ArgumentParser(), ("rloo", "dpo", "vbon", "methods")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--precision", nargs="+", choices=("no", "bf16"), default=["no"])
    parser.add_argument("--only", nargs="+", choices=kinds, default=["rloo", "dpo", "vbon"])
    parser.add_argument("--kept-memory", action="store_true")
    parser.add_argument("--results", type=Path)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    quietly()
    setting = imdb_setting(get_profile("quick"))
    if arguments.results:
        same_results(setting, arguments.results, arguments.steps, arguments.seeds)
        return
    print(f"{setting}\n{torch.get_num_threads()} threads")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        data = training_data(setting, folder)
        for precision in arguments.precision:
            for kind in arguments.only:
                if kind in ("vbon", "methods"):
                    count = 3 if kind == "vbon" else None
                    compare_methods(setting, data, precision, arguments.rounds, folder / kind, count)
                else:
                    compare(kind, setting, data, precision, arguments.rounds, folder, arguments.kept_memory)


if __name__ == "__main__":
    main()
