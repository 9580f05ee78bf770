"""Moving a slider moves the outcomes and the numbers, and nothing else does."""

import numpy as np
import pytest

from bonlib.course.picture import Knobs, readout, readout_table
from bonlib.course.widgets import PolicyExplorer, choose
from bonlib.exact import Outcomes

MODEL = Outcomes([0.3, 0.5, 0.2], [0.0, 1.0, 2.0])


@pytest.fixture
def page(monkeypatch):
    """What is displayed, and what replaces it."""
    shown, updates = [], []

    class Handle:
        def update(self, thing):
            updates.append(thing)

    def display(thing, display_id=None):
        shown.append(thing)
        return Handle() if display_id else None

    monkeypatch.setattr("IPython.display.display", display)
    return shown, updates


def test_every_knob_of_the_explorer_moves_the_numbers(page):
    shown, updates = page
    explorer = PolicyExplorer(MODEL, Knobs(n=4, beta=0.5))
    explorer.show()
    assert shown[2].data == readout_table(readout(MODEL, Knobs(n=4, beta=0.5)))
    moved = {"n": 9.0, "beta": 0.25, "temperature": 2.0, "acceptance": 0.1}
    for name, value in moved.items():
        explorer.knobs[name].value = value
    assert updates[-1].data == readout_table(readout(MODEL, Knobs(**moved)))
    assert len({update.data for update in updates[1::2]}) == 4
    assert len({update.data for update in updates[0::2]}) == 4


def test_the_explorer_moves_reference_and_rewards(page):
    _, updates = page
    explorer = PolicyExplorer(MODEL)
    np.testing.assert_allclose(explorer.outcomes.probs, MODEL.probs)
    explorer.show()
    explorer.weights[2].value = 1.0
    np.testing.assert_allclose(explorer.outcomes.probs, [0.6 / 2.6, 1 / 2.6, 1 / 2.6])
    explorer.rewards[0].value = 2.0
    np.testing.assert_allclose(explorer.outcomes.rewards, [2, 1, 2])
    assert updates[-1].data == readout_table(readout(explorer.outcomes, Knobs()))


def test_what_a_browser_rounds_is_no_move(page):
    _, updates = page
    given = Outcomes([0.7, 0.2, 0.1], [0.0, 1.0, 3.0])
    explorer = PolicyExplorer(given)
    explorer.show()
    for slider in (*explorer.weights, *explorer.rewards):
        slider.value = slider.min + round((slider.value - slider.min) / slider.step) * slider.step
    np.testing.assert_array_equal(explorer.outcomes.probs, given.probs)
    assert not updates


def test_the_explorer_takes_two_to_thirty_outcomes(page):
    explorer = PolicyExplorer(MODEL)
    explorer.show()
    explorer.size.value = 30
    assert len(explorer.outcomes) == len(explorer.weights) == len(explorer.rewards) == 30
    explorer.shape.value = "one rare best"
    assert explorer.outcomes.probs[-1] < 0.001
    rare = explorer.outcomes.probs[-1] / explorer.outcomes.probs[5]
    explorer.weights[0].value = 0.5
    assert len(explorer.outcomes) == 30
    assert explorer.outcomes.probs[-1] / explorer.outcomes.probs[5] == pytest.approx(rare)
    explorer.shape.value = "as given"
    explorer.size.value = 3
    np.testing.assert_allclose(explorer.outcomes.probs, MODEL.probs)


def test_the_explorer_shows_only_the_knobs_of_its_families():
    assert list(PolicyExplorer(MODEL, families=("best-of-n", "KL-RL")).knobs) == ["n", "beta"]


def test_the_explorer_says_how_many_outcomes_it_takes():
    with pytest.raises(ValueError, match="outcomes holds 40; the sliders take 2 to 30"):
        PolicyExplorer(Outcomes(np.full(40, 1 / 40), np.arange(40)))


def test_a_menu_shows_the_first_choice_and_then_what_was_chosen(page):
    shown, updates = page
    choose(lambda document, temperature: (document, 2 * temperature), document={"a": 1, "b": 7}, temperature={"hot": 3})
    box, *first = shown
    assert first == [1, 6]
    box.children[0].value = 7
    assert updates == [7, 6]
