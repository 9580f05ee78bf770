"""Settings of a run and what it learns from: schedules, and what is refused."""

from dataclasses import replace

import pytest
from toy_training import PROMPTS

from bonlib.draws.samplers import SamplingSettings
from bonlib.training.settings import Ppo, TrainSettings


def test_the_learning_rate_rises_and_falls_and_the_pull_grows():
    settings = TrainSettings(steps=10, learning_rate=1.0, warmup=10, easing=0.5)
    rates = [settings.learning_rate_at(step) for step in range(10)]
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2])
    assert [settings.pull_at(step) for step in (0, 3, 4, 9)] == pytest.approx([0.2, 0.8, 1.0, 1.0])
    assert replace(settings, easing=0.0).pull_at(0) == 1.0


WRONG = {
    "group is 1": lambda: TrainSettings(group=1, prompts=2, shards=2),
    "shards is 3": lambda: TrainSettings(prompts=16, shards=3),
    "learning_rate is 0": lambda: TrainSettings(learning_rate=0),
    "precision is 'fp99'": lambda: TrainSettings(precision="fp99"),
    "epochs is 0": lambda: Ppo(epochs=0),
}


@pytest.mark.parametrize("message", WRONG)
def test_bad_arguments_are_named(message):
    with pytest.raises(ValueError, match=message):
        WRONG[message]()


def test_data_that_do_not_fit_are_named(training_data):
    with pytest.raises(ValueError, match="prompts is empty"):
        replace(training_data, prompts=[])
    with pytest.raises(ValueError, match="temperature"):
        replace(training_data, sampling=SamplingSettings(8, temperature=0.7))
    with pytest.raises(ValueError, match="draws has other prompts"):
        replace(training_data, prompts=PROMPTS[::-1])
    with pytest.raises(ValueError, match="rewards has 2 rows for 4 prompts"):
        replace(training_data, rewards=training_data.rewards[:2])


def test_a_setting_that_came_late_does_not_change_the_identity_of_older_runs():
    assert "decay" not in TrainSettings().described()
    assert TrainSettings(decay=False).described()["decay"] is False
