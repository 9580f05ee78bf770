"""Sliders over pictures; the first picture comes from an ordinary call, so that a run without a browser shows it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from threading import Lock
from typing import Any

import numpy as np

from bonlib.course.picture import FAMILIES, Knobs, PoliciesPicture, readout, readout_table
from bonlib.exact import Outcomes

SHAPES: dict[str, Callable[[int], Any]] = {
    "uniform": lambda size: np.ones(size),
    "worse is likelier": lambda size: 0.8 ** np.arange(size),
    "better is likelier": lambda size: 0.8 ** np.arange(size)[::-1],
    "one rare best": lambda size: np.append(np.ones(size - 1), 0.02),
}
SMALLEST_WEIGHT = 0.01
LOG_STEP = 0.01  # of sliders that are even in the logarithm, in decades


class PolicyExplorer:
    """Best-of-n, KL-RL and other families of policies under sliders, over outcomes that can be changed as well.

    Args:
        outcomes: reference and rewards to begin with, 2 to 30 outcomes.
        knobs: where the sliders stand at first.
        families: which policies to show.

    Attributes:
        knobs: the sliders of `Knobs`, by its attribute.
        size, shape: the number K of outcomes, and the reference that a new number begins with.
        weights, rewards: a slider for each outcome; the reference is the weights divided by their sum.
    """

    def __init__(self, outcomes: Outcomes, knobs: Knobs | None = None, families: Sequence[str] = FAMILIES) -> None:
        from ipywidgets import Dropdown, IntSlider

        if not 2 <= len(outcomes) <= 30:
            raise ValueError(f"outcomes holds {len(outcomes)}; the sliders take 2 to 30: pool the rarest ones")
        start = knobs or Knobs()
        sliders = {
            "n": partial(IntSlider, round(start.n), 1, max(100, round(start.n)), description="N", layout=_wide()),
            "beta": partial(log_slider, "β", start.beta, 0.02, 20),
            "temperature": partial(log_slider, "λ", start.temperature, 0.01, 100),
            "acceptance": partial(log_slider, "α", start.acceptance, 0.001, 1),
            "t": partial(log_slider, "t", start.t, 0.05, 200),
            "cost": partial(log_slider, "c", start.cost, 0.002, 5),
            "caution": partial(log_slider, "β_χ", start.caution, 0.02, 20),
            "duel": partial(log_slider, "β_w", start.duel, 0.03, 10),
            "pull": partial(log_slider, "β_i", start.pull, 0.01, 20),
        }
        wanted = {
            "best-of-n": ("n",), "KL-RL": ("beta",), "soft best-of-n": ("n", "temperature"), "rewind": ("acceptance",),
            "Poisson n": ("t",), "stopping": ("cost",), "pessimism": ("caution",),
            "WIND": ("duel",), "InfAlign": ("n", "pull"),
        }  # fmt: skip
        used = {knob for family in families for knob in wanted[family]}
        self.knobs = {name: make() for name, make in sliders.items() if name in used}
        self.size = IntSlider(len(outcomes), 2, 30, description="K", layout=_wide())
        self.shape = Dropdown(options=["as given", *SHAPES], value="as given", description="π", layout=_wide("24rem"))
        self.weights: list[Any] = []
        self.rewards: list[Any] = []
        self._given, self._outcomes = outcomes, outcomes
        self._picture = PoliciesPicture(families)
        self._box = self._make_box()
        self._fill_rows(outcomes)
        self._redraw: Callable[[], Any] = self.draw
        for slider in self.knobs.values():
            slider.observe(lambda _: self._redraw(), names="value")
        for control in (self.size, self.shape):
            control.observe(self._reshape, names="value")

    def show(self) -> None:
        """Show sliders, picture and numbers; the numbers are a table in the page, for readers and tests alike."""
        self._redraw = _show_under(self._box, self.draw)

    def draw(self) -> tuple[Any, Any]:
        """Return the picture and the numbers where the sliders stand."""
        from IPython.display import HTML, Image

        knobs = Knobs(**{name: float(slider.value) for name, slider in self.knobs.items()})
        table = readout_table(readout(self._outcomes, knobs, self._picture.families))
        about = "Left: probabilities of each outcome. Right: win rate against KL. The table below has the numbers."
        return Image(self._picture.draw(self._outcomes, knobs), alt=about), HTML(table)

    @property
    def outcomes(self) -> Outcomes:
        """The reference and rewards that the sliders stand for."""
        return self._outcomes

    def _make_box(self) -> Any:
        from ipywidgets import HTML, HBox, Layout, Tab, VBox

        row = Layout(overflow="auto hidden", width="100%", min_height="10rem")
        self._rows = HBox(layout=row), HBox(layout=row)
        note = "outcomes 1 … K, from left to right; "
        pages = {
            "knobs: " + ", ".join(slider.description for slider in self.knobs.values()): list(self.knobs.values()),
            "reference π(y)": [
                HBox([self.size, self.shape]),
                HTML(note + "weights, divided by their sum"),
                self._rows[0],
            ],
            "reward r(y)": [HTML(note + "equal rewards are ties"), self._rows[1]],
        }
        return Tab([VBox(children) for children in pages.values()], titles=list(pages))

    def _fill_rows(self, outcomes: Outcomes) -> None:
        """Put new sliders in the rows, and make them move the outcomes."""
        from ipywidgets import FloatSlider, Layout

        self._outcomes = outcomes
        upright = Layout(width="1.9rem", height="8rem", margin="0")
        low, high = float(self._given.rewards.min()), float(self._given.rewards.max())
        high += 0.2 * (high - low)  # the handles start below the numbers above the sliders
        make = partial(FloatSlider, orientation="vertical", readout=False, layout=upright)
        weights = outcomes.probs / outcomes.probs.max()
        self.weights = [
            make(float(max(weight, SMALLEST_WEIGHT)), min=SMALLEST_WEIGHT, max=1.2, step=0.01, description=str(place))
            for place, weight in enumerate(weights, 1)
        ]
        self.rewards = [
            make(float(reward), min=low, max=high, step=(high - low) / 40 or 1, description=str(place))
            for place, reward in enumerate(outcomes.rewards, 1)
        ]
        for row, sliders in zip(self._rows, (self.weights, self.rewards), strict=True):
            row.children = sliders
            for slider in sliders:
                slider.observe(self._move_outcomes, names="value")
        self._weights, self._rewards = weights, np.array(outcomes.rewards)

    def _reshape(self, _: Any) -> None:
        size, shape = self.size.value, self.shape.value
        if shape == "as given" and size == len(self._given):
            outcomes = self._given
        else:
            weights = SHAPES.get(shape, SHAPES["uniform"])(size)
            outcomes = Outcomes(
                weights / weights.sum(), np.linspace(self._given.rewards.min(), self._given.rewards.max(), size)
            )
        self._fill_rows(outcomes)
        self._redraw()

    def _move_outcomes(self, change: Any) -> None:
        slider = change["owner"]
        values, sliders = (self._weights, self.weights) if slider in self.weights else (self._rewards, self.rewards)
        place = sliders.index(slider)
        # A browser that shows a slider rounds its value to a step; nobody moved it, so the outcomes stay as given.
        if abs(change["new"] - max(values[place], slider.min)) <= 0.51 * slider.step:
            return
        values[place] = change["new"]
        self._outcomes = Outcomes(self._weights / self._weights.sum(), self._rewards)
        self._redraw()


def choose(draw: Callable[..., Any], **options: Mapping[str, Any] | Sequence[float]) -> None:
    """Show what `draw` returns for one of each of several options, under a menu or a slider for each that changes it.

    Args:
        draw: takes one value of each option by name; what it returns is displayed, or each thing of a tuple.
        **options: for each argument of `draw` label in the menu to value, of which the first is shown first; or numbers
            that a slider moves through, from the middle one.
    """
    from ipywidgets import Dropdown, HBox, SelectionSlider

    menus: dict[str, Any] = {
        name: Dropdown(options=list(values.items()), description=name)
        if isinstance(values, Mapping)
        else SelectionSlider(options=values, value=values[len(values) // 2], description=name)
        for name, values in options.items()
    }
    redraw = _show_under(HBox(list(menus.values())), lambda: draw(**{name: menu.value for name, menu in menus.items()}))
    for menu in menus.values():
        menu.observe(lambda _: redraw(), names="value")


def log_slider(symbol: str, value: float, smallest: float, largest: float) -> Any:
    """Return a slider for a positive number, even in its logarithm, labelled with its symbol in the text."""
    from ipywidgets import FloatLogSlider

    # A browser moves a value that is no whole number of steps from the smallest; so we begin where it is.
    smallest, largest = min(smallest, value), max(largest, value)
    below = np.ceil((np.log10(value) - np.log10(smallest)) / LOG_STEP) * LOG_STEP
    return FloatLogSlider(
        value, min=np.log10(value) - below, max=np.log10(largest), step=LOG_STEP, description=symbol,
        readout_format=".3g", layout=_wide(),
    )  # fmt: skip


def _wide(width: str = "32rem") -> Any:
    from ipywidgets import Layout

    return Layout(width=width, max_width="100%")


def _show_under(box: Any, draw: Callable[[], Any]) -> Callable[[], None]:
    """Display a box of widgets and, below it, what `draw` returns; return what draws it again in its place."""
    from IPython.display import display

    def pieces() -> tuple[Any, ...]:
        shown = draw()
        return shown if isinstance(shown, tuple) else (shown,)

    first = pieces()
    display(box)
    places: list[Any]
    if os.environ.get("SERVER_SOFTWARE", "").startswith("voila"):  # it does not replace what a notebook has displayed
        places = [_Place() for _ in first]
        display(*(place.output for place in places))
        for place, piece in zip(places, first, strict=True):
            place.update(piece)
    else:
        places = [display(piece, display_id=True) for piece in first]
    turn = Lock()  # JupyterLab hands the moves of several sliders to the kernel in threads of their own

    def redraw() -> None:
        with turn:
            for place, piece in zip(places, pieces(), strict=True):
                place.update(piece)

    return redraw


class _Place:
    """A widget that shows one thing, and another when told."""

    def __init__(self) -> None:
        from ipywidgets import Output

        self.output = Output()

    def update(self, piece: Any) -> None:
        from IPython import get_ipython

        data, metadata = get_ipython().display_formatter.format(piece)
        self.output.outputs = ({"output_type": "display_data", "data": data, "metadata": metadata},)
