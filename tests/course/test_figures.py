"""The figures draw what they are given."""

import numpy as np
import pytest

from bonlib.course import figures, theory_figures
from bonlib.estimates import Estimate
from bonlib.exact import Outcomes

MODEL = Outcomes([0.3, 0.5, 0.2], [0.0, 1.0, 2.0])


@pytest.fixture(autouse=True)
def _no_window(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")


def test_the_other_figures_draw():
    n = np.geomspace(1, 100, 5)
    theory_figures.kl_against_n({"": theory_figures.KLCurves(n, np.zeros(5), np.ones(5), 0.5)}).canvas.draw()
    path = np.array([MODEL.best_of(m) for m in n])
    curve = {"best-of-n": MODEL.trade_off(MODEL.best_of, n)[:2]}
    figures.trade_off({"best-of-n": (*curve["best-of-n"], {"color": "k"})}).canvas.draw()
    theory_figures.simplex_figure({"best-of-n": path}, MODEL.probs, curve).canvas.draw()
    table = dict.fromkeys(figures.SELECTIONS, Estimate(np.ones(2), np.ones(2)))
    figures.best_of_n_figure([1, 2], table, table).canvas.draw()
    figures.rewards_by_prompt(np.random.default_rng(0).uniform(size=(3, 5)), ["a", "b", "c"]).canvas.draw()


def test_the_figures_of_the_theory_draw():
    n = np.geomspace(1, 100, 5)
    curves = theory_figures.KLCurves(n, np.zeros(5), np.ones(5), 0.5, np.ones(5), (np.zeros(5), np.ones(5)))
    theory_figures.kl_against_n({"one": curves, "another": curves}).canvas.draw()
    theory_figures.uniform_kl({10: curves, 100: curves}).canvas.draw()
    theory_figures.when_to_trust(n, np.ones(5), n).canvas.draw()
    theory_figures.gap_parts(np.ones(3), np.ones(3), MODEL.probs).canvas.draw()
    theory_figures.conjecture_figure(n / 100, {"n": n}, MODEL, (0.4, 0.003)).canvas.draw()
    theory_figures.kl_and_cost({"a": (n, n, {})}, {"a": (n, n, {})}).canvas.draw()
    ascent = dict.fromkeys(theory_figures.OBJECTIVES, np.ones(5))
    theory_figures.ascent_figure(ascent, ascent, dict.fromkeys(ascent, 0.1)).canvas.draw()
    theory_figures.jbond_reward_figure([0.1, 0.5]).canvas.draw()


def test_a_single_panel_has_its_start_enlarged():
    n = np.geomspace(1, 100, 5)
    curves = theory_figures.KLCurves(n, np.zeros(5), np.ones(5), 0.5)
    for titles, insets in (("a", [1]), ("ab", [0, 0])):
        axes = theory_figures.kl_against_n(dict.fromkeys(titles, curves)).axes
        assert [len(axis.child_axes) for axis in axes] == insets


def test_what_nothing_can_be_above_is_drawn_broad():
    n = np.geomspace(1, 100, 5)
    families = {"best-of-n": MODEL.best_of, "best possible tilt": lambda b: MODEL.tilt(b, reward="calibrated")}
    paths = {name: np.array([family(m) for m in n]) for name, family in families.items()}
    curves = {name: MODEL.trade_off(family, n)[:2] for name, family in families.items()}
    ours, best = theory_figures.simplex_figure(paths, MODEL.probs, curves).axes[1].get_lines()
    assert best.get_linewidth() > ours.get_linewidth()
    assert best.get_zorder() < ours.get_zorder()
