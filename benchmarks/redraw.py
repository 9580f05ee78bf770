"""Milliseconds of Python that one move of a slider takes: policies, curves, picture and numbers, for 30 outcomes.

    python benchmarks/redraw.py [--moves 20]

The peer is what a plain callback would do: a new figure of the same size with as many bars, saved as PNG.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "agg")

import argparse
import io
import statistics
import time

import numpy as np

from bonlib.course.figures import new_figure
from bonlib.course.widgets import PolicyExplorer
from bonlib.exact import Outcomes


def milliseconds(action):
    begun = time.perf_counter()
    action()
    return 1e3 * (time.perf_counter() - begun)


def plain_callback(outcomes):
    figure, axes = new_figure(2, width=5.2, height=3.8)
    for shift in range(5):
        axes[0].bar(np.arange(len(outcomes)) + 0.16 * shift, outcomes.best_of(1 + shift), 0.15)
    for _ in range(4):
        axes[1].plot(*outcomes.trade_off(outcomes.best_of, np.geomspace(1, 1e4, 40))[:2])
    figure.savefig(io.BytesIO(), format="png", dpi=100)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--moves", type=int, default=20)
    moves = parser.parse_args().moves
    size = 30
    outcomes = Outcomes(np.full(size, 1 / size), np.linspace(0, 1, size))
    explorer = PolicyExplorer(outcomes)
    rng = np.random.default_rng(0)
    explorer.draw()  # the first picture draws the axes

    def times(sliders):
        for slider in rng.choice(sliders, moves):
            places = np.linspace(slider.min, slider.max, 100)
            value = slider.base ** rng.choice(places) if hasattr(slider, "base") else rng.choice(places)
            yield milliseconds(lambda slider=slider, value=value: setattr(slider, "value", value))

    peer = statistics.median(milliseconds(lambda: plain_callback(outcomes)) for _ in range(moves))
    print(f"a new figure a move: {peer:.0f} ms")
    cases = {slider.description: [slider] for slider in explorer.knobs.values()}
    for symbol, sliders in {**cases, "π(y)": explorer.weights, "r(y)": explorer.rewards}.items():
        taken = sorted(times(sliders))
        median = statistics.median(taken)
        print(f"{symbol:5s} {median:5.1f} ms, slowest {taken[-1]:5.1f} ms, ratio {median / peer:.2f}")


if __name__ == "__main__":
    main()
