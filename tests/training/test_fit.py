"""Supervised training that was interrupted goes on, and its minutes add up."""

import copy
import json

import pytest
import torch
from toy_training import weights_of

from bonlib.training.fit import Recipe, fit

pytestmark = [pytest.mark.usefixtures("one_accelerator"), pytest.mark.slow]
RECIPE = Recipe(steps=8, batch_size=2, learning_rate=1e-2, warmup_steps=1)


class Sentences:
    """Sixteen rows of tokens, which interrupt the training when so many have been taken."""

    def __init__(self, stop=None):
        self.stop, self.taken = stop, 0

    def __len__(self):
        return RECIPE.steps * RECIPE.batch_size

    def __getitem__(self, index):
        self.taken += 1
        if self.taken == self.stop:
            raise KeyboardInterrupt
        ids = torch.randint(2, 200, (6,), generator=torch.Generator().manual_seed(index))
        return {"input_ids": ids, "labels": ids}


def test_an_interrupted_training_comes_to_the_same_weights_and_counts_both_parts(language_model, tmp_path):
    def trained(scratch, stop=None):
        loaded = copy.copy(language_model)
        object.__setattr__(loaded, "model", copy.deepcopy(language_model.model))
        return loaded, fit(loaded.model, Sentences(stop), RECIPE, scratch)

    whole, _ = trained(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "halves", stop=10)
    (clock,) = (tmp_path / "halves").rglob("minutes.json")
    assert json.loads(clock.read_text()) < 5
    clock.write_text("5.0")
    resumed, minutes = trained(tmp_path / "halves")
    assert minutes > 5
    assert torch.equal(weights_of(whole), weights_of(resumed))
    assert not torch.equal(weights_of(whole), weights_of(language_model))
    assert not list(tmp_path.rglob("checkpoint-*"))


def test_a_loss_that_is_given_is_the_one_that_is_minimised(language_model, tmp_path):
    model = copy.deepcopy(language_model.model)

    def size(model, inputs):
        return model.transformer.wte.weight.square().mean() * 1e3

    fit(model, Sentences(), RECIPE, tmp_path, loss=size)
    assert model.transformer.wte.weight.norm() < language_model.model.transformer.wte.weight.norm()
    assert torch.equal(model.transformer.h[0].mlp.c_fc.bias, language_model.model.transformer.h[0].mlp.c_fc.bias)
