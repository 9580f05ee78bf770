"""The folder of a run: one run alone, whose files are whole."""

from dataclasses import replace

import pytest
from toy_training import PROMPTS, SHORT

from bonlib.methods.dpo import Dpo
from bonlib.methods.vbon_bound import VbonBound
from bonlib.training.reward_cdf import SampledCdf
from bonlib.training.trainer import train

pytestmark = pytest.mark.usefixtures("one_accelerator")


def test_a_folder_of_another_run_is_refused(language_model, training_data, tmp_path):
    data = training_data
    train(language_model, Dpo(0.1), data, SHORT, tmp_path, show=False)
    with pytest.raises(ValueError, match="other settings"):
        train(language_model, Dpo(0.2), data, SHORT, tmp_path, show=False)
    with pytest.raises(ValueError, match="other settings"):
        train(language_model, Dpo(0.1), replace(data, rewards=-data.rewards), SHORT, tmp_path, show=False)
    train(language_model, VbonBound(4), data, replace(SHORT, steps=1), tmp_path / "vbon", show=False)
    fewer = replace(data, cdf=SampledCdf(PROMPTS, data.rewards[:, :8]))
    with pytest.raises(ValueError, match="other settings"):
        train(language_model, VbonBound(4), fewer, replace(SHORT, steps=1), tmp_path / "vbon", show=False)
