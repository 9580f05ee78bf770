"""What the sliders show at each of their places, as numbers: for a page that has no Python behind it."""

from __future__ import annotations

from typing import Any

import numpy as np

from bonlib.course.figures import COLOURS
from bonlib.course.picture import Knobs, readout
from bonlib.exact import Array, Outcomes

PRESETS: dict[str, Outcomes] = {
    "a fair coin": Outcomes([0.5, 0.5], [0.0, 1.0]),
    "three outcomes": Outcomes([0.3, 0.5, 0.2], [0.0, 1.0, 2.0]),
    "eight alike": Outcomes(np.full(8, 1 / 8), np.linspace(0, 1, 8)),
    "eight, the best rare": Outcomes(np.append(np.ones(7), 0.05) / 7.05, np.linspace(0, 1, 8)),
    "thirty alike": Outcomes(np.full(30, 1 / 30), np.linspace(0, 1, 30)),
}
KNOBS: dict[str, tuple[str, str, list[float]]] = {  # family to its knob, how that is written, and its places
    "best-of-n": ("n", "N", [*range(1, 21), *range(22, 41, 2), *range(45, 101, 5), 150, 200, 300, 500, 700, 1000]),
    "KL-RL": ("beta", "β", [float(f"{0.5 * 10 ** (0.05 * place):.3g}") for place in range(32, -29, -1)]),
    "rewind": ("acceptance", "α", [float(f"{0.25 * 10 ** (0.05 * place):.3g}") for place in range(12, -49, -1)]),
    "Poisson n": ("t", "t", [float(f"{4 * 10 ** (0.05 * place):.3g}") for place in range(-30, 49)]),
    "stopping": ("cost", "c", [float(f"{0.1 * 10 ** (0.05 * place):.3g}") for place in range(26, -31, -1)]),
    "pessimism": ("caution", "β_χ", [float(f"{0.5 * 10 ** (0.05 * place):.3g}") for place in range(32, -29, -1)]),
    "WIND": ("duel", "β_w", [float(f"{0.25 * 10 ** (0.05 * place):.3g}") for place in range(32, -17, -1)]),
    "InfAlign": ("pull", "β_i", [float(f"{0.5 * 10 ** (0.05 * place):.3g}") for place in range(32, -33, -1)]),
}


def frames(outcomes: Outcomes) -> dict[str, Any]:
    """Return what a page needs to show these outcomes under sliders: numbers to five digits, ready for JSON.

    Returns:
        The reference, and by family: its colour, the symbol of its knob, where the slider starts, its curve of KL and
        win rate, and for each place of the slider the policy and a row of the readout.
    """
    shown = {}
    for name, (knob, symbol, places) in KNOBS.items():
        settings = [Knobs(**{knob: place}) for place in places]
        rows = [readout(outcomes, knobs, [name])[0]._asdict() for knobs in settings]
        curve = Knobs().curve(name, outcomes)
        shown[name] = {
            "colour": COLOURS[name],
            "symbol": symbol,
            "start": places.index(getattr(Knobs(), knob)),
            "rows": [row | {key: _digits(row[key]) for key in ("kl", "win_rate", "reward")} for row in rows],
            "policies": [_short(knobs.policy(name, outcomes)) for knobs in settings],
            "curve": [_short(curve.kl), _short(curve.win_rate)],
        }
    return {"reference": _short(outcomes.probs), "families": shown}


def _short(values: Array) -> list[float]:
    return [_digits(value) for value in values]


def _digits(value: float) -> float:
    return float(f"{value:.5g}")
