"""Prompts and a reward that small random models can learn from in a few steps."""

import itertools
from dataclasses import replace

import torch

from bonlib.course.making.adapters import Ranked
from bonlib.course.making.documents import Document
from bonlib.training.settings import TrainSettings
from bonlib.training.trainer import TrainingRun

SHORT = TrainSettings(steps=6, prompts=4, group=4, learning_rate=3e-3, warmup=1, measure_every=2, checkpoint_every=3)
PROMPTS = ["the film", "a bad", "I saw", "nobody knows"]


def vowels(prompt, response):
    return sum(letter in "aeiou" for letter in response) / 10 + len(response) / 1000


DOCUMENTS = [Document(f"the film was {kind} and the end was sad.", ("a very bad film",)) for kind in ("good", "bad")]
EXAMPLES = [
    Ranked(f"the film was {a} {b}\n\nTL;DR:", (good, bad, "laughed"), (0.5, 0.0), ((0, 1), (0, 2), (1, 2)))
    for a, b in itertools.product(["good", "bad"], ["and sad", "indeed"])
    for good, bad in [("a very bad film", "nobody knows why"), ("a film", "my mother")]
]


def begin(model, data, folder, method, **changes):
    """Return a short run that has not begun yet."""
    settings = replace(SHORT, **{"group": 2, "learning_rate": 1e-4, "measure_every": 6, **changes})
    return TrainingRun(model, method, data, settings, folder, None, False)


def weights_of(loaded):
    return torch.cat([p.detach().flatten() for p in loaded.model.parameters()])
