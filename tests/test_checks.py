"""Arguments of any kind of number are taken alike, and what is out of range is named."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from bonlib.checks import flag, number, strings, whole
from bonlib.draws.samplers import SamplingSettings
from bonlib.draws.store import SampleStore
from bonlib.estimates import best_of_n_kl
from bonlib.inference.best_of_n import best_of_n, random_of_n
from bonlib.methods.bon_sft import BonSft
from bonlib.methods.dpo import Dpo
from bonlib.methods.vbon import Vbon
from bonlib.methods.vbon_bound import VbonBound
from bonlib.training.settings import Ppo, TrainSettings

FOUR = [4, 4.0, np.int64(4), np.float32(4), np.array(4), torch.tensor(4), torch.tensor(4.0, requires_grad=True)]


@pytest.mark.parametrize("four", FOUR, ids=lambda four: type(four).__name__ + str(getattr(four, "dtype", "")))
def test_numbers_of_any_kind_are_python_numbers(four):
    assert SamplingSettings(four, temperature=four).described() == SamplingSettings(4, 4.0).described()
    made = [SamplingSettings(four, four, 1), TrainSettings(steps=four, prompts=four, seed=four), Vbon(four)]
    made += [BonSft(four), VbonBound(four), Dpo(four, generations=four, pairs=four), Ppo(epochs=four)]
    for each in made:
        json.dumps(dataclasses.asdict(each))
    assert random_of_n(np.zeros((1, 8)), four, seed=four).shape == (1, 2)
    assert best_of_n_kl(np.arange(8), four) == best_of_n_kl(np.arange(8), 4)


@pytest.mark.parametrize("bad", [4.5, "4", True, None, float("nan"), float("inf"), -1, [4], np.bool_(True), 4j])
def test_what_is_not_whole_is_named(bad, tmp_path):
    data = np.zeros((1, 8))
    for name, make in {
        "max_new_tokens": lambda: SamplingSettings(bad),
        "top_k": lambda: SamplingSettings(top_k=bad),
        "steps": lambda: TrainSettings(steps=bad),
        "lora_rank": lambda: TrainSettings(lora_rank=bad),
        "epochs": lambda: Ppo(epochs=bad),
        "seed": lambda: TrainSettings(seed=bad),
        "n": lambda: BonSft(bad),
        "generations": lambda: Dpo(0.1, generations=bad),
    }.items():
        with pytest.raises(ValueError, match=f"^{name} is .* must be a whole number"):
            make()
    with pytest.raises(ValueError, match="seed is"):
        random_of_n(data, 2, seed=bad)
    with pytest.raises(ValueError, match="n is"):
        best_of_n(data, bad)
    if bad != 4.5:
        with pytest.raises(ValueError, match="unused_days is"):
            SampleStore(tmp_path).prune(bad)


def test_the_checks_name_what_they_want():
    assert whole("n", 3, 1, 3) == 3
    assert number("x", np.float32(0.5), above=0) == 0.5
    assert flag("x", np.bool_(True)) is True
    assert strings("prompts", np.array(["a", "b"])) == ["a", "b"]
    for check, message in (
        (lambda: whole("n", 4, 1, 3), "n is 4; it must be a whole number from 1 to 3"),
        (lambda: number("x", 2, above=0, most=1), "x is 2; it must be a finite number above 0 and at most 1"),
        (lambda: flag("x", 1), "x is 1; it must be True or False"),
        (lambda: strings("prompts", "abc"), "prompts is 'abc'; it must be a list"),
        (lambda: strings("prompts", ["a", None]), r"prompts\[1\] is None"),
        (lambda: strings("prompts", ["a", "\ud800"]), r"prompts\[1\] is .*surrogate"),
        (lambda: strings("prompts", [], least=1), "at least one prompt"),
    ):
        with pytest.raises(ValueError, match=message):
            check()
