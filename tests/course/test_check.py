"""The check of a machine, the estimates, and the profiles they speak of."""

import dataclasses
import re

import pytest

from bonlib.__main__ import main
from bonlib.course.check import (
    Finding,
    Machine,
    findings,
    fitting_profile,
    missing_gpu,
    profile_lines,
    sampling_cost,
    this_machine,
)
from bonlib.course.profiles import PROFILES, get_profile


def test_everything_is_well_here(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("BONLIB_STORE", str(tmp_path))
    assert main(["check"]) == 0
    out = capsys.readouterr().out
    assert len(re.findall(r"\[OK\] \w[\w -]*: (?!fits)", out)) == 17
    assert "draws to sample" in out
    assert "the largest profile that fits is" in out


@pytest.mark.parametrize(
    ("machine", "fits"),
    [
        (Machine(1, 2), "none"),
        (Machine(2, 4), "quick"),
        (Machine(2, 24), "laptop"),
        (Machine(64, 7), "quick"),
        (Machine(8, 24, 16, "T4"), "gpu"),
        (Machine(16, 128, 141, "H200"), "paper"),
    ],
)
def test_the_profile_follows_from_cores_memory_and_gpu(machine, fits):
    assert fitting_profile(machine) == fits
    assert (f"[OK] {fits}: fits" in profile_lines(machine)) == (fits != "none")
    assert "[--] paper: wants" in profile_lines(Machine(2, 24))[-1]


def test_a_machine_says_what_a_profile_wants_and_it_has_not():
    assert str(Machine(2, 24.6)) == "this machine: 2 cores, 25 GB of memory, no CUDA GPU"
    assert Machine(1, 6).lacks(get_profile("gpu")) == "2 cores, 16 GB of memory, a CUDA GPU with 16 GB"
    assert this_machine().cores >= 1
    assert this_machine().memory_gb > 0.5


def test_what_is_missing_is_named_with_its_remedy():
    broken = dataclasses.replace(get_profile("quick"), reward_model="imdb-lost")
    bad = [finding for finding in findings(broken) if not finding.ok]
    assert len(bad) == 1
    assert str(bad[0]).startswith("[FAIL] reward model: FileNotFoundError: model 'imdb-lost'")
    assert "restore data/models" in str(bad[0])
    assert str(Finding("x", True, "y", "z")) == "[OK] x: y"


def test_estimates_follow_the_sizes():
    quick = get_profile("quick")
    small, large = (
        sampling_cost(dataclasses.replace(quick, imdb=dataclasses.replace(quick.imdb, test_prompts=prompts)))
        for prompts in (10, 1000)
    )
    assert large.draws - small.draws == 990 * (quick.imdb.draws + quick.imdb.opponents)
    assert large.megabytes / small.megabytes == pytest.approx(large.draws / small.draws)
    assert large.seconds > small.seconds
    more = dataclasses.replace(quick, cdf=dataclasses.replace(quick.cdf, prompts=quick.cdf.prompts + 1))
    assert sampling_cost(more).draws - sampling_cost(quick).draws == 850
    paper = get_profile("paper")
    assert sampling_cost(paper).seconds is None
    assert "time unknown" in str(sampling_cost(paper))


def test_profiles_are_frozen_and_ordered_by_size():
    quick, laptop, gpu, paper = PROFILES.values()
    assert [profile.name for profile in PROFILES.values()] == ["quick", "laptop", "gpu", "paper"] == list(PROFILES)
    with pytest.raises(dataclasses.FrozenInstanceError):
        quick.seed = 3
    assert (paper.language_model, paper.reward_model) == ("lvwerra/gpt2-imdb", "lvwerra/distilbert-imdb")
    assert (paper.imdb.train_prompts, paper.imdb.test_prompts, paper.imdb.prompt_tokens) == (5000, 512, (2, 8))
    assert laptop.imdb.test_prompts > quick.imdb.test_prompts
    assert not missing_gpu(laptop)
    assert gpu.language_model == "imdb-smollm2"  # whose adapter is what is trained
    assert not gpu.training.lora_rank
    for profile in PROFILES.values():
        assert max(profile.imdb.ns) <= profile.imdb.draws
