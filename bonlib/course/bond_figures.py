"""The figures of the notebooks on BOND: policies on their way, one line a setting."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from bonlib.course.figures import COLOURS, CURVE, new_figure, new_grid
from bonlib.course.training_figures import SCORES

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Likelihood alone is BoN-SFT, and the return alone vBoN's L.
WEIGHTS = {0.0: COLOURS["bon-sft"], 0.5: COLOURS["bond"], 1.0: COLOURS["vbon-bound"]}
LINES = ("-", "--", ":", "-.")


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
    """Draw policies on their way, a line a setting: the mean over seeds.

    Against the step there is a band from the lowest seed to the highest; elsewhere each seed has a thin line.

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
            _draw_path(axis, mine, panel, label, colour, styles[label])
            ends = mine[mine["step"] == mine["step"].max()] if finals is None else finals[finals["label"] == label]
            x, y = ends[panel.x].mean(), ends[panel.y].mean()
            if panel.x_max is None or x <= panel.x_max:
                axis.plot(x, y, "o", ms=6, color=colour, mec=COLOURS["bound"], mew=0.8)
                ends_here[label] = x, y
        for name, (x, y, style) in panel.beside.items():
            axis.plot(x, y, label=name, **style)
        axis.set(xlabel=panel.x_label, ylabel=panel.y_label)
        if panel.x_max is not None:
            axis.set_xlim(right=panel.x_max)
        for direction, logarithmic in (("x", panel.log_x), ("y", panel.log)):
            if logarithmic:
                _logarithmic(axis, direction)
        if tags and axis is axes[tagged]:
            _tag(axis, {text: ends_here[label] for label, text in tags.items() if label in ends_here})
    _legend_above(figure, axes)
    return figure


def divergences_figure(curves: pd.DataFrame, columns: Mapping[str, str]) -> Figure:
    """Draw how far policies are from best-of-n while they learn, a column of panels for each n, on logarithmic axes.

    Args:
        curves: a row a measurement, with n, weight (of the reverse divergence), seed, step and the columns.
        columns: of a row of panels, to the label of their axes: two divergences in nats, and the log quantile.
    """
    ns = sorted(curves["n"].unique())
    size = (3.5 * len(ns), 2.7 * len(columns) + 0.4)
    figure, axes = new_grid(len(columns), len(ns), size, sharex=True, sharey="row")
    names = {0.0: "w = 0, likelihood", 0.5: "w = ½, Jeffreys", 1.0: "w = 1, policy gradient"}
    for row, (column, label) in zip(axes, columns.items(), strict=True):
        for axis, n in zip(row, ns, strict=True):
            for line, (weight, colour) in zip(LINES, WEIGHTS.items(), strict=False):
                mine = curves[(curves["n"] == n) & (curves["weight"] == weight)]
                _draw_path(axis, mine, Panel("step", column, "", ""), names[weight], colour, line)
        row[0].set_ylabel(label)
        _logarithmic(row[0], "y")
    for axis, n in zip(axes[0], ns, strict=True):
        axis.set_title(f"N = {n:g}")
    for axis in axes[-1]:
        axis.set_xlabel("step")
    _legend_above(figure, axes.ravel())
    return figure


def budget_figure(rows: pd.DataFrame, best: Mapping[str, CURVE]) -> Figure:
    """Draw win rate and reward against KL, on a logarithmic axis, for runs that drew equally many responses.

    Args:
        rows: a row a run, with label, colour, marker, large (whether it is of the larger budget, drawn as a ring), kl,
            reward and win_rate.
        best: curves to compare with, by column.
    """
    figure, axes = new_figure(2, width=5.0, height=4.6)
    for axis, (column, name) in zip(axes, SCORES.items(), strict=True):
        for label, mine in rows.groupby("label", sort=False):
            colour, large = mine["colour"].iloc[0], bool(mine["large"].iloc[0])
            face = {"facecolors": "none", "s": 170, "linewidths": 1.8} if large else {"s": 50, "facecolors": colour}
            axis.scatter(
                mine["kl"], mine[column], marker=mine["marker"].iloc[0], edgecolors=colour, label=label, **face
            )
        kl, values, bon_style = best[column]
        axis.plot(kl, values, label="best-of-N, estimated", **bon_style)
        axis.set(xlabel="KL to the reference  (nats)", ylabel=name)
        _logarithmic(axis, "x")
    _legend_above(figure, axes)
    return figure


def _draw_path(axis: Axes, rows: pd.DataFrame, panel: Panel, label: str, colour: str, line: str) -> None:
    rows = rows.dropna(subset=[panel.x, panel.y])  # a panel may be about some of the rows alone
    by_step = rows.groupby("step")[[name for name in {panel.x: 0, panel.y: 0} if name != "step"]]
    mean, low, high = by_step.mean(), by_step.min(), by_step.max()
    x = np.asarray(mean.index if panel.x == "step" else mean[panel.x])
    limit = np.inf if panel.x_max is None else panel.x_max
    seen = x <= limit  # what is not seen shall not stretch the other axis
    x, mean, low, high = x[seen], mean[seen], low[seen], high[seen]
    axis.plot(x, mean[panel.y], ls=line, lw=2.2, color=colour, label=label)
    if rows["seed"].nunique() > 1 and panel.x == "step":
        axis.fill_between(x, low[panel.y], high[panel.y], color=colour, alpha=0.18, lw=0)
    if rows["seed"].nunique() > 1 and panel.x != "step":
        for _, run in rows[rows[panel.x] <= limit].groupby("run"):
            axis.plot(run[panel.x], run[panel.y], ls=line, lw=0.7, alpha=0.5, color=colour)


def _logarithmic(axis: Axes, direction: str) -> None:
    """Make an axis logarithmic, with few ticks and plain numbers: powers of 2, 4, 10 or more, as it is long."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set(**{f"{direction}scale": "log"})
    low, high = getattr(axis, f"get_{direction}lim")()
    decades = np.log10(high / low)
    one = getattr(axis, f"{direction}axis")
    if decades < 1.5:
        one.set_major_locator(LogLocator(base=2, numticks=20))
    elif decades < 2.7:
        one.set_major_locator(LogLocator(base=10, subs=(1, 3), numticks=20))
    else:
        one.set_major_locator(LogLocator(base=10, numticks=20))
    one.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    one.set_minor_locator(NullLocator())


def _tag(axis: Axes, ends: Mapping[str, tuple[float, float]], apart: float = 0.07) -> None:
    """Write words to the right of axes at the height of points, moved apart where they would touch."""
    axis.get_xlim(), axis.get_ylim()  # what asks for them brings them up to date, and the transformation with them
    to_axes = axis.transData + axis.transAxes.inverted()
    heights = {text: float(to_axes.transform(place)[1]) for text, place in ends.items()}
    before = -np.inf
    for text, height in sorted(heights.items(), key=lambda item: item[1]):
        before = max(height, before + apart)
        axis.annotate(text, (1.02, before), xycoords="axes fraction", va="center", fontsize=10)


def _legend_above(figure: Figure, axes: Iterable[Axes]) -> None:
    """Put one legend of all panels above them."""
    handles, labels = _together(axes)
    columns = len(labels) if len(labels) <= 3 else 4 if len(labels) > 6 or len(labels) == 4 else 3
    figure.legend(handles, labels, frameon=False, fontsize=11, ncols=columns, loc="outside upper center")


def _together(axes: Iterable[Axes]) -> tuple[list[Artist], list[str]]:
    """Handles and labels of all panels, each label once."""
    found: dict[str, Artist] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    return list(found.values()), list(found)
