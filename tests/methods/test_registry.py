"""Every method registers itself, looks like no other, and trains and resumes without further ado."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from toy_training import SHORT, weights_of

from bonlib import methods
from bonlib.course.experiments.exact_runs import ExactRun, method_of
from bonlib.course.experiments.sentiment import Run
from bonlib.methods import METHODS, get_method
from bonlib.methods.registry import register
from bonlib.training.on_policy import OnPolicy
from bonlib.training.trainer import TrainingRun

BRIEF = replace(SHORT, steps=2, group=2, measure_every=1, checkpoint_every=1)
GIVEN = {"n": 4, "every": 1}  # of the settings that count something; others are a tenth


def settings_of(entry):
    return entry.make(GIVEN.get(entry.setting, 0.1))


def test_every_file_registers_a_method():
    files = {path.stem for path in Path(methods.__file__).parent.glob("[a-z]*.py")} - {"registry"}
    assert {entry.make.__module__.rpartition(".")[2] for entry in METHODS.values()} == files
    assert next(iter(METHODS)) == "vbon"


@pytest.mark.parametrize("field", ["label", "colour", "marker", "place"])
def test_no_two_methods_look_alike(field):
    assert len({getattr(entry, field) for entry in METHODS.values()}) == len(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_what_tables_and_sweeps_ask_for(name):
    entry = get_method(name)
    method = settings_of(entry)
    assert isinstance(method, OnPolicy) == (entry.algorithm != "offline")
    assert all(asdict(entry.make(value)) for value in entry.grid)
    assert set(entry.decides or [entry.setting]) | set(entry.options) == set(asdict(method))
    assert (replace(BRIEF, **entry.training).ppo is not None) == (entry.algorithm == "ppo")
    assert entry.samples
    assert entry.objective
    assert entry.source


@pytest.mark.usefixtures("one_accelerator")
@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_two_steps_and_resumes(name, language_model, training_data, tmp_path):
    def begin(folder):
        group = max(entry.training.get("group", 2), 2)
        settings = replace(BRIEF, **{**entry.training, "prompts": 4, "group": group, "learning_rate": 3e-3})
        return TrainingRun(language_model, settings_of(entry), training_data, settings, folder, None, False)

    entry = METHODS[name]
    whole = begin(tmp_path / "whole").go()
    halves = begin(tmp_path / "halves")
    train_step = halves.train_step

    def interrupted():
        if halves.step == 1:
            raise KeyboardInterrupt
        return train_step()

    halves.train_step = interrupted
    with pytest.raises(KeyboardInterrupt):
        halves.go()
    resumed = begin(tmp_path / "halves").go()
    assert [row["step"] for row in resumed.curve] == [1, 2]
    assert torch.equal(weights_of(whole.policy), weights_of(resumed.policy))
    assert not torch.equal(weights_of(whole.policy), weights_of(language_model))


def test_a_name_is_given_once_and_an_unknown_one_is_named():
    about = {field: getattr(METHODS["dpo"], field) for field in ("make", "setting", "algorithm", "grid", "source")}
    with pytest.raises(ValueError, match="name is 'dpo', which another has"):
        register(name="dpo", label="x", colour="x", marker="x", samples="x", objective="x", **about)
    with pytest.raises(ValueError, match="method is 'ppo'; it must be one of vbon, "):
        get_method("ppo")


def test_options_are_what_may_be_given_beside_the_number():
    assert METHODS["kl-rl-rloo"].options == []
    assert METHODS["vbon"].options == ["warm"]
    assert METHODS["dpo"].options == ["generations", "pairs", "identity"]
    assert METHODS["bond-iterative"].options == [
        "jeffreys_weight",
        "regulariser",
        "n",
        "term_b",
        "anchor_draws",
        "picks",
    ]
    assert METHODS["bond-iterative"].make(20, regulariser=0.5).regulariser == 0.5


def test_a_late_field_leaves_older_runs_their_identity():
    entry, old, new = METHODS["bon-sft"], ("picks", "groups"), ("picks", "weights")
    assert entry.make(8, picks="groups").described() == {"n": 8}
    assert entry.make(8, picks="weights").described() == {"n": 8, "picks": "weights"}
    assert entry.as_stored(()) == dict([old])  # whatever the method's own value is by now
    assert entry.as_stored([("other", 1), new]) == {"other": 1, "picks": "weights"}
    assert METHODS["kl-rl-rloo"].as_stored([("other", 1)]) == {"other": 1}
    assert Run("bon-sft", 8, 0).make() == method_of(ExactRun("bon-sft")) == entry.make(8, picks="groups")
    assert Run("bon-sft", 8, 0, options=(new,)).make() == entry.make(8, picks="weights")
