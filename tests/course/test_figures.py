"""The style that notebooks share: what is drawn, in which colours, and how a figure says in words what it shows."""

import numpy as np
import pytest

from bonlib.course import figures
from bonlib.exact import Outcomes

MODEL = Outcomes([0.3, 0.5, 0.2], [0.0, 1.0, 2.0])


@pytest.fixture(autouse=True)
def _no_window(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")


def test_a_trade_off_draws_its_curves_up_to_six_and_a_half_nats():
    kl, win, _ = MODEL.trade_off(MODEL.best_of, np.geomspace(1, 100, 5))
    figure = figures.trade_off({"best-of-n": (kl, win, {"color": "k"}), "far": ([0, 40], [0.5, 1], {})})
    figure.canvas.draw()
    (axis,) = figure.axes
    ours, _ = axis.get_lines()
    np.testing.assert_array_equal(ours.get_xydata(), np.stack([kl, win], axis=1))
    assert axis.get_xlim() == (-0.2, 6.5)


def test_a_figure_says_in_words_what_it_draws():
    figure, (left, right) = figures.new_figure(2)
    left.plot([1, 2], [0, 1], label=r"$\hat K_n$, mean")
    left.set(xscale="log", xlabel="number of draws  $n$", ylabel="KL  (nats)", title="one")
    right.set(ylabel="win rate")
    assert repr(figure) == (
        "Figure. 1. one: KL (nats), against number of draws n, logarithmic: K_n, mean. "
        f"2. win rate, against {figures.UNLABELLED}."
    )


def test_shades_are_different_and_have_the_colour_itself_in_the_middle():
    shades = figures.shades("best-of-n", 5)
    assert len(set(shades)) == 5
    assert shades[2] == figures.COLOURS["best-of-n"]
