"""Early stopping on a model is early stopping on draws that are there already."""

import numpy as np
import pytest

from bonlib.draws.rewards import FunctionReward
from bonlib.draws.samplers import SamplingSettings, TransformersSampler
from bonlib.draws.store import SampleStore
from bonlib.inference.best_of_n import BestOfN, RandomOfN
from bonlib.inference.draw_until import draw_until
from bonlib.inference.smc import SequentialMonteCarlo
from bonlib.inference.speculative_rejection import SpeculativeRejection
from bonlib.inference.stopping import StopAt, StopByGain, spacing_gain
from bonlib.inference.tree_best_of_n import TreeBestOfN

PROMPTS = ["the film", "a", "so bad", "nobody knows why"]
VOWELS = FunctionReward(lambda prompt, response: sum(letter in "aeiou" for letter in response), name="vowels")
SETTINGS = SamplingSettings(8)
RULES = [StopAt(10, 3.0), StopAt(10, 99.0), StopByGain(10, 0.5, spacing_gain), BestOfN(10), RandomOfN(10)]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize("at_once", [1, 4, 10])
def test_it_is_the_choice_from_draws_made_beforehand(language_model, tmp_path, rule, at_once):
    sampler = TransformersSampler(language_model)
    found = draw_until(
        SampleStore(tmp_path / "rounds"), sampler, VOWELS, PROMPTS, rule, SETTINGS, seed=3, at_once=at_once
    )
    store = SampleStore(tmp_path / "all")
    draws = store.draw(sampler, PROMPTS, rule.n, SETTINGS, seed=3)
    rewards = store.score(VOWELS, draws)
    kept, spent = rule.choose(rewards, seed=3)
    np.testing.assert_array_equal(found.choice.kept, kept)
    np.testing.assert_array_equal(found.choice.spent, spent)
    np.testing.assert_array_equal(found.rewards, rewards[np.arange(4), kept])
    assert found.responses.texts.tolist() == draws.texts[np.arange(4), kept].tolist()
    np.testing.assert_array_equal(found.made, np.minimum(-(-spent // at_once) * at_once, rule.n))


def test_no_more_is_drawn_than_it_says(language_model, tmp_path):
    counted = []

    class Counting(TransformersSampler):
        def sample(self, prompts, settings, *, seed):
            counted.extend(prompts)
            return super().sample(prompts, settings, seed=seed)

    store, rule = SampleStore(tmp_path), StopAt(12, 3.0)
    found = draw_until(store, Counting(language_model), VOWELS, PROMPTS, rule, SETTINGS, seed=0, at_once=2)
    assert [counted.count(prompt) for prompt in PROMPTS] == found.made.tolist()
    assert found.made.min() < 12
    again = draw_until(store, Counting(language_model), VOWELS, PROMPTS, rule, SETTINGS, seed=0, at_once=2)
    np.testing.assert_array_equal(again.made, found.made)
    assert len(counted) == found.made.sum()


def test_bad_arguments_are_named(language_model, tmp_path):
    store, sampler = SampleStore(tmp_path), TransformersSampler(language_model)
    with pytest.raises(ValueError, match="at_once is 0"):
        draw_until(store, sampler, VOWELS, PROMPTS, StopAt(4, 1.0), SETTINGS, seed=0, at_once=0)
    wrong = {"best": "make one", StopAt: "make one", TreeBestOfN(4, 1, 4, (2,)): "give it to steer"}
    wrong |= {SequentialMonteCarlo(4, 1.0, (2,)): "give it to steer"}
    for rule, remedy in wrong.items():
        with pytest.raises(ValueError, match=rf"rule is .*; it must be a rule that chooses among draws: {remedy}"):
            draw_until(store, sampler, VOWELS, PROMPTS, rule, SETTINGS, seed=0)
    with pytest.raises(ValueError, match="store is 'folder'; it must be a SampleStore: give"):
        draw_until("folder", sampler, VOWELS, PROMPTS, StopAt(4, 1.0), SETTINGS, seed=0)
    with pytest.raises(ValueError, match="settings is 24; it must be SamplingSettings"):
        draw_until(store, sampler, VOWELS, PROMPTS, StopAt(4, 1.0), 24, seed=0)
    with pytest.raises(ValueError, match=r"rule is .* needs partial"):
        draw_until(store, sampler, VOWELS, PROMPTS, SpeculativeRejection(4, (2,)), SETTINGS, seed=0)
