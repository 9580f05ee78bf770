"""Policies under sliders: what the knobs of best-of-n and its neighbours do, as numbers and as one quick picture."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bonlib.course.figures import COLOURS, new_figure
from bonlib.exact import Array, Outcomes, TradeOff, kl_divergence
from bonlib.inference.draw_counts import TruncatedPoisson
from bonlib.inference.pessimism import pessimistic_policy
from bonlib.inference.rewind import rewind, rewind_at
from bonlib.inference.soft_best_of_n import soft_best_of
from bonlib.inference.stopping import reservation_value
from bonlib.inference_aware import infalign_optimum, wind_optimum

FAMILIES = ("best-of-n", "KL-RL", "soft best-of-n", "rewind")
MORE = ("Poisson n", "stopping", "pessimism", "WIND", "InfAlign")  # the first three of notebook 15, the others of 16
OF_N = ("soft best-of-n", "InfAlign")  # families with a knob of their own beside N
DPI = 100


@dataclass(frozen=True)
class Knobs:
    """One setting of the knob of each family of policies.

    Attributes:
        n: draws N of best-of-n and of soft best-of-n, and those that InfAlign's policy is trained for.
        beta: KL coefficient β of KL-RL, in units of reward.
        temperature: λ of soft best-of-n, in units of reward.
        acceptance: probability α that rewind-and-repeat accepts a draw.
        t: of the Poisson number, above 0, of draws.
        cost: c of a draw, in units of reward, by which it is decided when to stop.
        caution: β of pessimism, in units of reward.
        duel: β of WIND, in units of win rate.
        pull: β of InfAlign, in units of win rate.
    """

    n: float = 4
    beta: float = 0.5
    temperature: float = 0.5
    acceptance: float = 0.25
    t: float = 4
    cost: float = 0.1
    caution: float = 0.5
    duel: float = 0.25
    pull: float = 0.5

    def policy(self, family: str, outcomes: Outcomes) -> Array:
        """Return the policy of `family` at this setting, probabilities of shape (K,)."""
        return _TABLE[family].policy(outcomes, self)

    def curve(self, family: str, outcomes: Outcomes) -> TradeOff:
        """Return what the family reaches as its own knob turns; one that has N besides stays at this N."""
        entry = _TABLE[family]

        def turned(value: float) -> Array:
            return entry.policy(outcomes, replace(self, **{entry.knob: value}))

        # By name best-of-n is worked out in blocks, which is faster.
        return outcomes.trade_off(outcomes.best_of if family == "best-of-n" else turned, entry.places(outcomes))

    def setting(self, family: str) -> str:
        """Return the knob of `family` as it is written in the text."""
        entry = _TABLE[family]
        own = f"{entry.symbol} = {getattr(self, entry.knob):{entry.digits}}"
        return f"N = {self.n:g}, {own}" if family in OF_N else own

    def draws(self, family: str, outcomes: Outcomes) -> str:
        """Return how many draws from the reference a response costs on average."""
        return _TABLE[family].draws(outcomes, self)


class _Family(NamedTuple):
    """What a family of policies is: its knob, how that is written, its policy, places of the knob, and its cost."""

    knob: str
    symbol: str
    policy: Callable[[Outcomes, Knobs], Array]
    places: Callable[[Outcomes], Array]
    draws: Callable[[Outcomes, Knobs], str]
    digits: str = ".3g"


def _scale(outcomes: Outcomes) -> float:
    return float(np.ptp(outcomes.rewards)) or 1.0


def _stopping(outcomes: Outcomes, knobs: Knobs) -> Array:
    return rewind(outcomes, _reservation(outcomes, knobs.cost))


def _reservation(outcomes: Outcomes, cost: float) -> float:
    return float(reservation_value(outcomes.rewards, cost, outcomes.probs))


def _acceptance_of(outcomes: Outcomes, threshold: float) -> float:
    return float(outcomes.probs[outcomes.rewards >= threshold].sum())


def _proposals(outcomes: Outcomes, caution: float) -> float:
    """Draws until pessimism accepts one, the largest ratio of its policy to the reference."""
    possible = outcomes.probs > 0
    return float(np.max(pessimistic_policy(outcomes, caution)[possible] / outcomes.probs[possible]))


def _of_n(outcomes: Outcomes, knobs: Knobs) -> str:
    return f"{knobs.n:g}"


_TABLE = {
    "best-of-n": _Family(
        "n", "N", lambda outcomes, knobs: outcomes.best_of(knobs.n),
        lambda _: 1 + np.append(0, np.geomspace(0.03, 1e4, 40)), _of_n, "g",
    ),
    "KL-RL": _Family(
        "beta", "β", lambda outcomes, knobs: outcomes.tilt(knobs.beta),
        lambda outcomes: _scale(outcomes) * np.geomspace(30, 0.01, 40), lambda *_: "1, once trained",
    ),
    "soft best-of-n": _Family(
        "temperature", "λ", lambda outcomes, knobs: soft_best_of(outcomes, knobs.n, knobs.temperature),
        lambda outcomes: _scale(outcomes) * np.geomspace(30, 0.01, 16), _of_n,
    ),
    "rewind": _Family(
        "acceptance", "α", lambda outcomes, knobs: rewind_at(outcomes, knobs.acceptance),
        lambda outcomes: _acceptances(outcomes), lambda _, knobs: f"{1 / knobs.acceptance:.3g}",
    ),
    "Poisson n": _Family(
        "t", "t", lambda outcomes, knobs: TruncatedPoisson(knobs.t).law(outcomes),
        lambda _: np.geomspace(0.03, 1e4, 40), lambda _, knobs: f"{TruncatedPoisson(knobs.t).mean:.3g}",
    ),
    "stopping": _Family(
        "cost", "c", _stopping, lambda outcomes: _scale(outcomes) * np.geomspace(3, 0.001, 40),
        lambda outcomes, knobs: f"{1 / _acceptance_of(outcomes, _reservation(outcomes, knobs.cost)):.3g}",
    ),
    "pessimism": _Family(
        "caution", "β_χ", lambda outcomes, knobs: pessimistic_policy(outcomes, knobs.caution),
        lambda outcomes: _scale(outcomes) * np.geomspace(30, 0.001, 40),
        lambda outcomes, knobs: f"{_proposals(outcomes, knobs.caution):.3g}",
    ),
    "WIND": _Family(
        "duel", "β_w", lambda outcomes, knobs: wind_optimum(outcomes, knobs.duel),
        lambda _: np.geomspace(10, 0.03, 30), lambda *_: "1, once trained",
    ),
    "InfAlign": _Family(
        "pull", "β_i", lambda outcomes, knobs: infalign_optimum(outcomes, round(knobs.n), knobs.pull),
        lambda _: np.geomspace(100, 1e-5, 50), lambda *_: "1, once trained",
    ),
}  # fmt: skip


class Row(NamedTuple):
    """What is read out for one family; KL in nats."""

    family: str
    setting: str
    kl: float
    win_rate: float
    reward: float
    draws: str


def readout(outcomes: Outcomes, knobs: Knobs, families: Sequence[str] = FAMILIES) -> list[Row]:
    """Return the numbers that belong to the picture, a row a family."""
    rows = []
    for family in families:
        policy = knobs.policy(family, outcomes)
        figures = kl_divergence(policy, outcomes.probs), outcomes.win_rate(policy), outcomes.mean_reward(policy)
        rows.append(Row(family, knobs.setting(family), *figures, knobs.draws(family, outcomes)))
    return rows


def readout_table(rows: Sequence[Row]) -> str:
    """Return the numbers as an HTML table, each family marked in its colour."""
    body = "".join(
        f'<tr><td style="text-align:left"><span style="color:{COLOURS[row.family]}">■</span> {row.family}</td>'
        f"<td>{row.setting}</td><td>{row.kl:.3f}</td><td>{row.win_rate:.3f}</td><td>{row.reward:.3f}</td>"
        f"<td>{row.draws}</td></tr>"
        for row in rows
    )
    head = "".join(f"<th>{name}</th>" for name in ("policy", "knob", "KL (nats)", "win rate", "mean reward", "draws"))
    return f'<table class="readout"><tr>{head}</tr>{body}</table>'


class PoliciesPicture:
    """Families of policies beside their reference, and where they stand in win rate against KL.

    One figure, of which only what a slider moves is drawn again; a new figure a step would take five times as long.

    Args:
        families: which to show, from FAMILIES and MORE.
    """

    def __init__(self, families: Sequence[str] = FAMILIES) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.collections import PolyCollection

        self.families = tuple(families)
        self.figure, (self._left, self._right) = new_figure(2, width=5.2, height=3.8)
        self.figure.set_layout_engine("none")
        self.figure.set_dpi(DPI)
        self._canvas: Any = FigureCanvasAgg(self.figure)
        self._left.set_position((0.085, 0.15, 0.39, 0.73))
        self._right.set_position((0.58, 0.15, 0.395, 0.73))
        self._left.set(xlabel="outcome", ylabel="probability", ylim=(0, 1))
        self._right.set(xlabel="KL to the reference  (nats)", ylabel="win rate against the reference", ylim=(0.49, 1))
        self._bars: dict[str, Any] = {}
        for name in ("reference", *self.families):
            self._bars[name] = PolyCollection([], facecolor=COLOURS[name], linewidth=0, label=name, animated=True)
            self._left.add_collection(self._bars[name])
        self._bars["reference"].set_alpha(0.4)
        self._curves, self._points = {}, {}
        for place, name in enumerate(self.families):
            style = {"color": COLOURS[name], "animated": True}
            width, dash = (
                max(4 - 0.8 * place, 1.2),
                "--" if name == "rewind" else "-",
            )  # what coincides shows at the rims
            self._curves[name] = self._right.plot([], [], lw=width, ls=dash, **style)[0]
            marker = {
                "marker": "os^DvphX<"[place],
                "ms": max(13 - 2 * place, 5),
                "mec": "white",
                "zorder": 3 + place,
            }  # all visible
            self._points[name] = self._right.plot([], [], ls="", clip_on=False, **marker, **style)[0]
        dense = {"fontsize": 10, "columnspacing": 1.2} if len(self.families) > 4 else {}
        corner, columns = (0.07, 1.0), 1 + len(self.families)
        self.figure.legend(frameon=False, loc="upper left", bbox_to_anchor=corner, ncols=columns, **dense)
        self._drawn_curves: dict[str, tuple[Outcomes, float]] = {}
        self._limits: tuple[int, float, float] | None = None
        self._background: Any = None

    def draw(self, outcomes: Outcomes, knobs: Knobs) -> bytes:
        """Return the picture of these outcomes at this setting, as PNG.

        Args:
            outcomes: reference and rewards, at least two outcomes; more than 30 become too thin to see.
            knobs: setting of each family.
        """
        policies = {name: knobs.policy(name, outcomes) for name in self.families}
        places = np.arange(1, len(outcomes) + 1)
        self._bars["reference"].set_verts(_rectangles(places - 0.45, outcomes.probs, 0.9))
        width = 0.8 / len(self.families)
        for shift, name in enumerate(self.families):
            self._bars[name].set_verts(_rectangles(places - 0.4 + shift * width, policies[name], width * 0.9))
            kl, win = kl_divergence(policies[name], outcomes.probs), outcomes.win_rate(policies[name])
            self._points[name].set_data([kl], [win])
            of_n = knobs.n if name in OF_N else 0.0
            if self._drawn_curves.get(name) != (outcomes, of_n):
                curve = knobs.curve(name, outcomes)
                self._curves[name].set_data(curve.kl, curve.win_rate)
                self._drawn_curves[name] = (outcomes, of_n)
        furthest = max(float(np.max(curve.get_xdata())) for curve in self._curves.values())
        likeliest = max(float(np.max(policy)) for policy in (outcomes.probs, *policies.values()))
        # Few different limits, so that the axes seldom change and stay as they were drawn.
        self._set_limits(len(outcomes), _round_up(furthest / 0.95), min(_round_up(likeliest), 1.0))
        return self._png()

    def _set_limits(self, size: int, kl: float, probability: float) -> None:
        if self._limits == (size, kl, probability):
            return
        self._limits = size, kl, probability
        self._left.set(xlim=(0.4, size + 0.6), ylim=(0, probability))
        self._left.set_xticks(range(1, size + 1, 1 if size <= 10 else 3))
        self._right.set_xlim(-0.02 * kl, kl)
        self._canvas.draw()
        self._background = self._canvas.copy_from_bbox(self.figure.bbox)

    def _png(self) -> bytes:
        from PIL import Image

        self._canvas.restore_region(self._background)
        for axis in (self._left, self._right):
            for artist in (*axis.collections, *axis.lines):
                axis.draw_artist(artist)
        stream = io.BytesIO()
        pixels = np.asarray(self._canvas.buffer_rgba())[..., :3]
        Image.fromarray(np.ascontiguousarray(pixels)).save(stream, format="png", compress_level=1)
        return stream.getvalue()


def _acceptances(outcomes: Outcomes) -> Array:
    """From 1 down: each chance to reach a threshold, where the curve has its kinks, and others between."""
    kinks = np.cumsum(outcomes.probs[np.argsort(-outcomes.rewards)])
    between = max(3, 90 // len(kinks))
    steps = [np.linspace(low, high, between) for low, high in pairwise(kinks)]
    return np.unique(np.clip(np.concatenate([kinks, *steps]), 1e-4, 1))[::-1]


def _round_up(value: float) -> float:
    """The next power of √2, and at least 1/8."""
    return float(2 ** (np.ceil(2 * np.log2(max(value, 1 / 8))) / 2))


def _rectangles(left: NDArray[Any], height: Array, width: float) -> Array:
    """Corners of upright bars, shape (bars, 4, 2)."""
    zero = np.zeros_like(height)
    x = np.stack([left, left, left + width, left + width], axis=1)
    return np.stack([x, np.stack([zero, height, height, zero], axis=1)], axis=2)
