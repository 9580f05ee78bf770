"""The figures and the sliders: every callback runs, and what it shows are the numbers of `bonlib.exact`."""

import numpy as np
import pytest

from bonlib.cdf import Estimate
from bonlib.course import figures
from bonlib.course.widgets import beta_slider, explore, n_slider
from bonlib.exact import Outcomes, kl_divergence

MODEL = Outcomes([0.3, 0.5, 0.2], [0.0, 1.0, 2.0])


@pytest.fixture(autouse=True)
def _no_window(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")


def bar_heights(figure):
    return [[bar.get_height() for bar in group] for group in figure.axes[0].containers]


@pytest.mark.parametrize("size", [2, 3, 30])
def test_the_policies_figure_shows_the_exact_policies(size):
    rng = np.random.default_rng(size)
    model = Outcomes(rng.dirichlet(np.ones(size)), rng.normal(size=size))
    figure = figures.policies_figure(model, n=5, beta=0.7)
    for heights, policy in zip(bar_heights(figure), (model.probs, model.best_of(5), model.tilt(0.7)), strict=True):
        np.testing.assert_allclose(heights, policy)
    points = [line.get_xydata()[0] for line in figure.axes[1].lines if len(line.get_xydata()) == 1]
    for (kl, win), policy in zip(points, (model.best_of(5), model.tilt(0.7)), strict=True):
        assert kl == pytest.approx(kl_divergence(policy, model.probs))
        assert win == pytest.approx(model.win_rate(policy))
    assert f"KL {kl_divergence(model.best_of(5), model.probs):.3f}" in figure.get_suptitle()


def test_the_other_figures_draw():
    n = np.geomspace(1, 100, 5)
    figures.kl_against_n(n, np.zeros(5), np.ones(5), ceiling=0.5).canvas.draw()
    path = np.array([MODEL.best_of(m) for m in n])
    curve = {"best-of-n": figures.policy_points(MODEL, path)}
    figures.trade_off({"best-of-n": (*curve["best-of-n"], {"color": "k"})}).canvas.draw()
    figures.simplex_figure({"best-of-n": path}, MODEL.probs, curve).canvas.draw()
    table = dict.fromkeys(figures.SELECTIONS, Estimate(np.ones(2), np.ones(2)))
    figures.best_of_n_figure([1, 2], table, table).canvas.draw()
    figures.rewards_by_prompt(np.random.default_rng(0).uniform(size=(3, 5)), ["a", "b", "c"]).canvas.draw()


def test_sliders_redraw_with_their_values(monkeypatch):
    shown, updates = [], []

    class Handle:
        def update(self, figure):
            updates.append(figure)

    def display(thing, display_id=None):
        shown.append(thing)
        return Handle() if display_id else None

    monkeypatch.setattr("IPython.display.display", display)
    calls = []
    n, beta = n_slider(3), beta_slider(0.5)
    explore(lambda n, beta: calls.append((n, beta)) or "figure", n=n, beta=beta)
    assert calls == [(3, 0.5)]
    assert shown[1] == "figure"
    n.value = 7
    assert calls[-1] == (7, 0.5)
    assert updates == ["figure"]


def test_an_error_in_the_callback_is_an_error_of_the_cell():
    def broken(n):
        raise RuntimeError("no picture")

    with pytest.raises(RuntimeError, match="no picture"):
        explore(broken, n=n_slider())
