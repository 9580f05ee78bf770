"""The figures of the course: one style, one colour for a policy wherever it appears, arrays in and figures out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bonlib.methods import METHODS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# A policy has its colour wherever it appears, from seaborn's colour-blind-safe palette as far as that goes; settings of
# one method are shades of it. What is a formula rather than a policy is black or grey, dashed or dotted.
COLOURS = {
    "reference": "#949494",
    "best-of-n": "#0173b2",
    "KL-RL": "#de8f05",
    "soft best-of-n": "#56b4e9",
    "rewind": "#029e73",
    "Poisson n": "#cc78bc",
    "stopping": "#d55e00",
    "pessimism": "#7a5c99",
    "WIND": METHODS["wind"].colour,
    "InfAlign": METHODS["infalign-ctrl"].colour,
    "random-of-n": "#ca9161",
    "ipo": "#8a9a1b",
    "bound": "#222222",
    "estimate": "#4d4d4d",
    "crude": "#8a8a8a",
    **{name: method.colour for name, method in METHODS.items()},
}
UNLABELLED = "no label"
CURVE = tuple[ArrayLike, ArrayLike, Mapping[str, Any]]  # x, y and how to draw it


def new_figure(columns: int = 1, *, width: float = 5.2, height: float = 3.9) -> tuple[Figure, NDArray[Any]]:
    """Return a figure in the style of the course and its axes, shape (columns,)."""
    figure, axes = new_grid(1, columns, (width * columns, height))
    return figure, axes[0]


def new_grid(rows: int, columns: int, size: tuple[float, float], **shared: Any) -> tuple[Figure, NDArray[Any]]:
    """Return a figure of `size` in inches in the style of the course and its axes, shape (rows, columns).

    Args:
        rows: of panels.
        columns: of panels.
        size: width and height of the whole.
        **shared: sharex and sharey, as for `matplotlib.pyplot.subplots`.
    """
    import matplotlib.pyplot as plt
    import seaborn as sns
    from matplotlib.figure import Figure

    class DescribedFigure(Figure):
        """A figure whose text form, in a terminal or for who cannot see it, says what is drawn."""

        def __repr__(self) -> str:
            return describe(self)

    sns.set_theme(context="notebook", style="ticks", rc={"axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(
        rows, columns, figsize=size, squeeze=False, layout="constrained", FigureClass=DescribedFigure, **shared
    )
    plt.close(figure)  # the notebook shows what the function returns, once
    return figure, axes


def shades(name: str, count: int) -> list[str]:
    """Return shades of a policy's colour from light to dark, for as many settings of it.

    Args:
        name: in COLOURS.
        count: how many.
    """
    import seaborn as sns
    from matplotlib.colors import to_hex

    middle = COLOURS[name]
    lightest, darkest = sns.light_palette(middle, 4)[1], sns.dark_palette(middle, 4)[1]
    return [to_hex(colour) for colour in sns.blend_palette([lightest, middle, darkest], count)]


def describe(figure: Figure) -> str:
    """Return in words what a figure draws: for each panel its title, what its axes are, and its curves by name."""
    panels = [_describe_panel(axis) for axis in figure.axes if axis.get_visible() and axis.axison]
    keys = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    if len(panels) > 1:
        panels = [f"{place}. {panel}" for place, panel in enumerate(panels, 1)]
    return "Figure. " + " ".join([*panels, *([f"In all panels: {_plain('; '.join(keys))}."] if keys else [])])


def _describe_panel(axis: Axes) -> str:
    if hasattr(axis, "_colorbar"):
        return f"Colours: {_plain(axis.get_ylabel() or axis.get_xlabel() or UNLABELLED)}."
    across, up = (
        _axis_label(axis, name) + (", logarithmic" if getattr(axis, f"get_{name}scale")() == "log" else "")
        for name in "xy"
    )
    title = _plain(axis.get_title() or axis.get_title("left"))
    legend = axis.get_legend()
    names = [text.get_text() for text in legend.get_texts()] if legend else []
    if not names:
        names = [label for label in axis.get_legend_handles_labels()[1] if not label.startswith("_")]
    curves = f": {_plain('; '.join(names))}" if names else ""
    return f"{title + ': ' if title else ''}{up}, against {across}{curves}."


def _axis_label(axis: Axes, name: str) -> str:
    """Return the label of an axis: its own, or of a panel that shares it, or of the panels beside or below it.

    Where rows have names instead, these.
    """
    shared = getattr(axis, f"get_shared_{name}_axes")().get_siblings(axis)
    span = {"x": "colspan", "y": "rowspan"}[name]
    beside = [one for one in axis.figure.axes if _span(one, span) is not None and _span(one, span) == _span(axis, span)]
    for one in (axis, *shared, *beside):
        label = getattr(one, f"get_{name}label")()
        if label:
            return _plain(label)
    for one in (axis, *shared):
        ticks = [_plain(text.get_text()) for text in getattr(one, f"get_{name}ticklabels")()]
        words = [tick for tick in ticks if any(letter.isalpha() for letter in tick)]
        if words:
            return "; ".join(words)
    return UNLABELLED


def _span(axis: Axes, name: str) -> range | None:
    """The rows or columns of the grid that a panel covers."""
    place = axis.get_subplotspec()
    return getattr(place, name) if place else None


def _plain(text: str) -> str:
    """Mathematics as one would type it: no dollars, braces or backslashes."""
    text = re.sub(r"\\(?:mathrm|hat|bar|text|tfrac|frac|,|;|!|quad)", " ", text)
    return " ".join(re.sub(r"[${}\\]", "", text).split())


def trade_off(curves: Mapping[str, CURVE]) -> Figure:
    """Draw win rate against KL, up to 6.5 nats, one curve an entry.

    Args:
        curves: label to KL in nats and win rate, each of shape (points,), and keyword arguments of `Axes.plot`.
    """
    figure, (axis,) = new_figure(width=6.4)
    draw_trade_off(axis, curves)
    axis.set_xlim(-0.2, min(6.5, axis.get_xlim()[1]))
    return figure


def draw_trade_off(axis: Axes, curves: Mapping[str, CURVE]) -> None:
    """Draw the curves of `trade_off` into axes."""
    for label, (kl, win, style) in curves.items():
        axis.plot(kl, win, label=label, **style)
    axis.set(xlabel="KL to the reference  (nats)", ylabel="win rate against the reference")
    axis.legend(frameon=False, loc="lower right")


ESTIMATORS: dict[str, dict[str, Any]] = {  # how each estimate of log F looks: no policies, so in none of their colours
    "posterior": {"color": "#00204d", "lw": 3},
    "add_one": {"color": "#41588c"},
    "add_half": {"color": "#7c7b78"},
    "clamp": {"color": "#8c7a3c", "ls": "--"},
    "none": {"color": "#b8a531", "ls": ":"},
    "exponential": {"color": "#b8a531", "ls": "-."},
}


LINES = ("-", "--", ":", "-.")  # of settings, in turn


class Panel(NamedTuple):
    """A column against another: their labels, curves to compare with, and how the axes are drawn."""

    x: str
    y: str
    x_label: str
    y_label: str
    beside: Mapping[str, CURVE] = {}
    log: bool = False
    log_x: bool = False
    x_max: float | None = None


def paths_figure(
    curves: pd.DataFrame,
    panels: Sequence[Panel],
    colours: Mapping[str, str],
    *,
    finals: pd.DataFrame | None = None,
    lines: Mapping[str, str] | None = None,
    tags: Mapping[str, str] | None = None,
    tagged: int = 0,
    width: float = 4.0,
) -> Figure:
    """Draw policies on their way, a line a setting, as `draw_path` does.

    Args:
        curves: a row a measurement, with label, seed, step and the columns of the panels.
        panels: what to draw.
        colours: label to colour, in the order of the legend.
        finals: a row a run with the same columns, measured better at its end; it is marked by a dot, which otherwise
            is where the line ends. A label with no rows in curves has a dot alone.
        lines: label to line style, such as "--"; others take the styles in turn.
        tags: label to what is written beside its line in one panel, for who cannot tell the colours apart.
        tagged: which panel that is.
        width: of a panel, inches.
    """
    figure, axes = new_figure(len(panels), width=width, height=4.2)
    styles = {label: LINES[place % len(LINES)] for place, label in enumerate(colours)} | dict(lines or {})
    for axis, panel in zip(axes, panels, strict=True):
        ends_here = {}
        for label, colour in colours.items():
            mine = curves[curves["label"] == label].dropna(subset=[panel.x, panel.y])
            draw_path(axis, mine, panel.x, panel.y, x_max=panel.x_max, color=colour, ls=styles[label], label=label)
            ends = mine[mine["step"] == mine["step"].max()] if finals is None else finals[finals["label"] == label]
            x, y = ends[panel.x].mean(), ends[panel.y].mean()
            if panel.x_max is None or x <= panel.x_max:
                axis.plot(x, y, "o", ms=6, color=colour, mec=COLOURS["bound"], mew=0.8)
                ends_here[label] = x, y
        for name, (compared_x, compared_y, style) in panel.beside.items():
            axis.plot(compared_x, compared_y, label=name, **style)
        axis.set(xlabel=panel.x_label, ylabel=panel.y_label)
        if panel.x_max is not None:
            axis.set_xlim(right=panel.x_max)
        for direction, logarithmic in (("x", panel.log_x), ("y", panel.log)):
            if logarithmic:
                make_logarithmic(axis, direction)
        if tags and axis is axes[tagged]:
            _tag(axis, {text: ends_here[label] for label, text in tags.items() if label in ends_here})
    legend_above(figure, axes)
    return figure


def draw_path(axis: Axes, rows: pd.DataFrame, x: str, y: str, *, x_max: float | None = None, **style: Any) -> None:
    """Draw a column against another, the mean over seeds at each step, as far as `x_max`.

    Against the step there is a band from the lowest seed to the highest; elsewhere each seed has a thin line.
    """
    rows = rows.dropna(subset=[x, y])  # a panel may be about some of the rows alone
    steps = rows.groupby("step")
    at = steps[x].mean() if x != "step" else steps[y].mean().index.to_series()
    seen = at <= (np.inf if x_max is None else x_max)  # what is not seen shall not stretch the other axis
    mean, low, high = (steps[y].agg(name)[seen] for name in ("mean", "min", "max"))
    axis.plot(at[seen], mean, lw=2.2, **style)
    if rows["seed"].nunique() < 2:
        return
    if x == "step":
        axis.fill_between(at[seen], low, high, color=style["color"], alpha=0.18, lw=0)
        return
    for _, run in rows[rows[x] <= (np.inf if x_max is None else x_max)].groupby("run"):
        axis.plot(run[x], run[y], **(style | {"label": None, "lw": 0.7, "alpha": 0.5}))


def make_logarithmic(axis: Axes, direction: str) -> None:
    """Make an axis, "x" or "y", logarithmic, with few ticks and plain numbers: powers of 2 or 10, as it is long."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set(**{f"{direction}scale": "log"})
    low, high = getattr(axis, f"get_{direction}lim")()
    decades = np.log10(high / low)
    base, subs = (2, (1,)) if decades < 1.5 else (10, (1, 3)) if decades < 2.7 else (10, (1,))
    one = getattr(axis, f"{direction}axis")
    one.set_major_locator(LogLocator(base=base, subs=subs, numticks=20))
    one.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    one.set_minor_locator(NullLocator())


def legend_above(figure: Figure, axes: Iterable[Axes]) -> None:
    """Put one legend of all panels above them, each label once."""
    entries: dict[str, Artist] = {}
    for axis in axes:
        handles, labels = axis.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    columns = len(entries) if len(entries) <= 3 else 4 if len(entries) > 6 or len(entries) == 4 else 3
    place: dict[str, Any] = {"ncols": columns, "loc": "outside upper center"}
    figure.legend(list(entries.values()), list(entries), frameon=False, fontsize=11, **place)


def _tag(axis: Axes, ends: Mapping[str, tuple[float, float]], apart: float = 0.07) -> None:
    """Write words to the right of axes at the height of points, moved apart where they would touch."""
    axis.get_xlim(), axis.get_ylim()  # what asks for them brings them up to date, and the transformation with them
    to_axes = axis.transData + axis.transAxes.inverted()
    heights = {text: float(to_axes.transform(place)[1]) for text, place in ends.items()}
    before = -np.inf
    for text, height in sorted(heights.items(), key=lambda item: item[1]):
        before = max(height, before + apart)
        axis.annotate(text, (1.02, before), xycoords="axes fraction", va="center", fontsize=10)
