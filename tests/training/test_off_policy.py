"""Learning from stored draws."""

from dataclasses import replace

import pytest
import torch
from toy_training import SHORT, weights_of

from bonlib.methods.bon_sft import BonSft
from bonlib.methods.bonbon import Bonbon
from bonlib.methods.dpo import Dpo
from bonlib.training.trainer import train

pytestmark = pytest.mark.usefixtures("one_accelerator")


@pytest.mark.parametrize("method", [Dpo(0.1), Bonbon(4)], ids=["dpo", "bonbon"])
def test_shards_do_not_change_what_off_policy_methods_learn(method, language_model, training_data, tmp_path):
    one = train(language_model, method, training_data, SHORT, tmp_path / "1", show=False)
    two = train(language_model, method, training_data, replace(SHORT, shards=2), tmp_path / "2", show=False)
    # Adam turns rounding into steps where a gradient is all but 0, so single weights may differ a little.
    assert [row["loss"] for row in one.curve] == pytest.approx([row["loss"] for row in two.curve], rel=1e-4)
    assert torch.dist(weights_of(one.policy), weights_of(two.policy)) < 0.01 * torch.dist(
        weights_of(one.policy), weights_of(language_model)
    )


def test_draws_that_do_not_suffice_are_named(language_model, training_data, tmp_path):
    with pytest.raises(ValueError, match="draw more"):
        train(language_model, BonSft(65), training_data, SHORT, tmp_path / "a", show=False)
    tied = replace(training_data, rewards=0 * training_data.rewards)
    with pytest.raises(ValueError, match="finds no example in the draws"):
        train(language_model, Dpo(0.1), tied, SHORT, tmp_path / "b", show=False)
