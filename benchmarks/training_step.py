"""What a vBoN step costs beside a step of KL-regularised RL, the same in everything but the return: interleaved pairs.

python benchmarks/training_step.py [PAIRS]
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from scipy.stats import bootstrap

from bonlib.course.experiments.setting import imdb_setting
from bonlib.course.profiles import get_profile
from bonlib.methods.kl_rl import KlRl
from bonlib.methods.vbon import Vbon
from bonlib.methods.vbon_bound import VbonBound
from bonlib.training.reward_cdf import SampledCdf
from bonlib.training.settings import TrainingData, TrainSettings
from bonlib.training.trainer import TrainingRun

SAMPLES = 200


def seconds(run: TrainingRun) -> float:
    begun = time.perf_counter()
    run.train_step()
    run.step += 1
    return time.perf_counter() - begun


def main(pairs: int = 50) -> None:
    setting = imdb_setting(get_profile("quick"))
    # The CDF's values do not matter to its cost: it is looked up among so many numbers.
    samples = np.random.default_rng(0).random((len(setting.prompts), SAMPLES))
    cdf = SampledCdf(setting.prompts, samples)
    data = TrainingData(setting.prompts, setting.reward_model, setting.sampling, cdf=cdf)
    settings = TrainSettings(steps=10 * pairs, learning_rate=1e-6, precision="bf16")
    with tempfile.TemporaryDirectory() as folder:
        methods = {"KL-RL": KlRl(0.1), "vBoN, L": VbonBound(8), "vBoN, J": Vbon(8)}
        runs = {
            name: TrainingRun(setting.reference, method, data, settings, Path(folder) / name, None, False)
            for name, method in methods.items()
        }
        for run in runs.values():
            seconds(run)  # the first pays for set-up
        spent = {name: np.empty(pairs) for name in runs}
        rng = np.random.default_rng(0)
        for pair in range(pairs):
            for name in rng.permutation(list(runs)):  # the order must not favour one
                spent[name][pair] = seconds(runs[name])
    for name in ("vBoN, L", "vBoN, J"):
        ratios = spent[name] / spent["KL-RL"]
        low, high = bootstrap((ratios,), np.median, rng=0, n_resamples=2000).confidence_interval
        print(
            f"{name}: median {np.median(spent[name]):.3f} s a step, KL-RL {np.median(spent['KL-RL']):.3f} s; ratio "
            f"{np.median(ratios):.3f}, 95 % interval {low:.3f} to {high:.3f} ({pairs} interleaved pairs)"
        )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
