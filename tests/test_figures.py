"""The figures draw what they are given."""

import numpy as np
import pytest

from bonlib.cdf import Estimate
from bonlib.course import figures
from bonlib.exact import Outcomes

MODEL = Outcomes([0.3, 0.5, 0.2], [0.0, 1.0, 2.0])


@pytest.fixture(autouse=True)
def _no_window(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")


def test_the_other_figures_draw():
    n = np.geomspace(1, 100, 5)
    figures.kl_against_n(n, np.zeros(5), np.ones(5), ceiling=0.5).canvas.draw()
    path = np.array([MODEL.best_of(m) for m in n])
    curve = {"best-of-n": MODEL.trade_off(MODEL.best_of, n)[:2]}
    figures.trade_off({"best-of-n": (*curve["best-of-n"], {"color": "k"})}).canvas.draw()
    figures.simplex_figure({"best-of-n": path}, MODEL.probs, curve).canvas.draw()
    table = dict.fromkeys(figures.SELECTIONS, Estimate(np.ones(2), np.ones(2)))
    figures.best_of_n_figure([1, 2], table, table).canvas.draw()
    figures.rewards_by_prompt(np.random.default_rng(0).uniform(size=(3, 5)), ["a", "b", "c"]).canvas.draw()
