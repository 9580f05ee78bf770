"""The figures of the notebooks on BOND: policies on their way, one line a setting."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from bonlib.course.figures import COLOURS, CURVE, new_figure, new_grid
from bonlib.course.training_figures import SCORES

if TYPE_CHECKING:
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
    width: float = 4.6,
) -> Figure:
    """Draw policies on their way, a line a setting: the mean over seeds.

    Against the step there is a band from the lowest seed to the highest; elsewhere each seed has a thin line.

    Args:
        curves: a row a measurement, with label, seed, step and the columns of the panels.
        panels: what to draw.
        colours: label to colour, in the order of the legend.
        finals: a row a run with the same columns, measured better at its end; it is marked by a dot, which otherwise
            is where the line ends.
        width: of a panel, inches.
    """
    figure, axes = new_figure(len(panels), width=width, height=3.9)
    for axis, panel in zip(axes, panels, strict=True):
        for place, (label, colour) in enumerate(colours.items()):
            mine = curves[curves["label"] == label]
            _draw_path(axis, mine, panel, label, colour, LINES[place % len(LINES)])
            ends = mine[mine["step"] == mine["step"].max()] if finals is None else finals[finals["label"] == label]
            x, y = ends[panel.x].mean(), ends[panel.y].mean()
            if panel.x_max is None or x <= panel.x_max:
                axis.plot(x, y, "o", ms=5, color=colour, mec=COLOURS["bound"], mew=0.6)
        for name, (x, y, style) in panel.beside.items():
            axis.plot(x, y, label=name, **style)
        axis.set(xlabel=panel.x_label, ylabel=panel.y_label)
        if panel.log:
            axis.set_yscale("log")
        if panel.log_x:
            axis.set_xscale("log")
        if panel.x_max is not None:
            axis.set_xlim(right=panel.x_max)
    handles, labels = _together(axes)
    axes[-1].legend(handles, labels, frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def divergences_figure(curves: pd.DataFrame, columns: Mapping[str, str], *, log: bool = True) -> Figure:
    """Draw how far policies are from best-of-n while they learn, a row of panels for each n.

    Args:
        curves: a row a measurement, with n, weight (of the reverse divergence), seed, step and the columns.
        columns: of a row of panels, to the label of their axes: two divergences in nats, and the log quantile.
        log: whether divergences have logarithmic axes.
    """
    ns = sorted(curves["n"].unique())
    figure, axes = new_grid(len(ns), len(columns), (4.3 * len(columns), 2.9 * len(ns)), sharex=True)
    names = {0.0: "w = 0, likelihood", 0.5: "w = ½, Jeffreys", 1.0: "w = 1, policy gradient"}
    for row, n in zip(axes, ns, strict=True):
        for axis, (column, label) in zip(row, columns.items(), strict=True):
            for line, (weight, colour) in zip(LINES, WEIGHTS.items(), strict=False):
                mine = curves[(curves["n"] == n) & (curves["weight"] == weight)]
                _draw_path(axis, mine, Panel("step", column, "", ""), names[weight], colour, line)
            axis.set_ylabel(label, fontsize=10)
            if log and "quantile" not in column:
                axis.set_yscale("log")
        row[0].set_title(f"N = {n:g}", loc="left", fontsize=11)
    for axis in axes[-1]:
        axis.set_xlabel("step")
    axes[0, -1].legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def budget_figure(rows: pd.DataFrame, best: Mapping[str, CURVE]) -> Figure:
    """Draw win rate and reward against KL, on a logarithmic axis, for runs that drew equally many responses.

    Args:
        rows: a row a run, with label, colour, marker, kl, reward and win_rate.
        best: curves to compare with, by column.
    """
    figure, axes = new_figure(2, width=5.4, height=4.2)
    for axis, (column, name) in zip(axes, SCORES.items(), strict=True):
        for label, mine in rows.groupby("label", sort=False):
            style = {"color": mine["colour"].iloc[0], "marker": mine["marker"].iloc[0]}
            axis.scatter(mine["kl"], mine[column], s=60, edgecolors="#222222", linewidths=0.8, label=label, **style)
        kl, values, bon_style = best[column]
        axis.plot(kl, values, label="best-of-N, estimated", **bon_style)
        axis.set(xlabel="KL to the reference  (nats)", ylabel=name, xscale="log")
    axes[1].legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def _draw_path(axis: Axes, rows: pd.DataFrame, panel: Panel, label: str, colour: str, line: str) -> None:
    rows = rows.dropna(subset=[panel.x, panel.y])  # a panel may be about some of the rows alone
    by_step = rows.groupby("step")[[name for name in {panel.x: 0, panel.y: 0} if name != "step"]]
    mean, low, high = by_step.mean(), by_step.min(), by_step.max()
    x = np.asarray(mean.index if panel.x == "step" else mean[panel.x])
    limit = np.inf if panel.x_max is None else panel.x_max
    seen = x <= limit  # what is not seen shall not stretch the other axis
    x, mean, low, high = x[seen], mean[seen], low[seen], high[seen]
    axis.plot(x, mean[panel.y], ls=line, lw=1.8, color=colour, label=label)
    if rows["seed"].nunique() > 1 and panel.x == "step":
        axis.fill_between(x, low[panel.y], high[panel.y], color=colour, alpha=0.18, lw=0)
    if rows["seed"].nunique() > 1 and panel.x != "step":
        for _, run in rows[rows[panel.x] <= limit].groupby("run"):
            axis.plot(run[panel.x], run[panel.y], ls=line, lw=0.7, alpha=0.5, color=colour)


def _together(axes: Iterable[Axes]) -> tuple[list[object], list[str]]:
    """Handles and labels of all panels, each label once."""
    found: dict[str, object] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    return list(found.values()), list(found)
