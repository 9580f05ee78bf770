"""The figures of the notebooks that train policies, in the style of `figures`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from bonlib.course.figures import COLOURS, CURVE, new_figure, new_grid
from bonlib.methods import METHODS
from bonlib.metrics import ShareEstimate, pareto_front

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCORES = {"win_rate": "win rate against the reference", "reward": "mean reward, p(positive)"}


def fronts_figure(
    runs: pd.DataFrame,
    curves: Mapping[str, Mapping[str, CURVE]],
    fresh: pd.DataFrame | None = None,
    *,
    methods: Sequence[str] = tuple(METHODS),
) -> Figure:
    """Draw win rate and mean reward of trained policies against their KL to the reference.

    Args:
        runs: a row a run, with method, kl, win_rate and reward. Runs that another is better than in both are faded.
        curves: "win_rate" and "reward" to label to curve, as in `figures.trade_off`.
        fresh: runs to mark with a ring, such as those just made.
        methods: which to draw. Their KLs span two orders: the axis is logarithmic, and 0 is not on it.
    """
    figure, grid = new_grid(2, 1, (9.0, 8.6), sharex=True)
    axes = grid[:, 0]
    shown = runs[runs["method"].isin(methods)]
    for axis, (score, label) in zip(axes, SCORES.items(), strict=True):
        on_front = pareto_front(shown["kl"], shown[score])
        for method in methods:
            name, colour, marker = (about := METHODS[method]).label, about.colour, about.marker
            for best, alpha, edge in ((False, 0.35, "none"), (True, 1.0, "#222222")):
                rows = shown[(shown["method"] == method) & (on_front == best)]
                style = {"color": colour, "marker": marker, "s": 64, "alpha": alpha, "edgecolors": edge}
                axis.scatter(rows["kl"], rows[score], linewidths=0.8, zorder=3, **style)
            axis.scatter([], [], color=colour, marker=marker, s=64, edgecolors="#222222", linewidths=0.8, label=name)
        for name, (kl, values, curve_style) in curves[score].items():
            axis.plot(kl, values, label=name, **curve_style)
        if fresh is not None and len(fresh):
            ring = {"s": 150, "facecolors": "none", "edgecolors": "#222222", "linewidths": 1.2}
            axis.scatter(fresh["kl"], fresh[score], zorder=4, label="just now", **ring)
        away = shown.loc[shown["kl"] > 0.01, "kl"]  # a single estimate may fall to 0 or a little below
        nearest, farthest = (float(away.min()), float(away.max())) if len(away) else (0.1, 1.0)
        axis.set(ylabel=label, xscale="log", xlim=(0.8 * nearest, 1.2 * farthest))
        ticks = [tick for tick in (0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32) if 0.8 * nearest < tick < 1.2 * farthest]
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.minorticks_off()
    axes[1].set_xlabel("KL to the reference  (nats)")
    handles = axes[0].get_legend_handles_labels()  # the upper panel has a curve more
    axes[0].legend(*handles, frameon=False, fontsize=11, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def learning_curves(
    curves: pd.DataFrame, columns: Mapping[str, str], *, log: Sequence[str] = (), across: int = 5
) -> Figure:
    """Draw figures measured while training against the step, a panel a method and figure.

    Args:
        curves: a row a measurement, with method, value, seed, step and the columns.
        columns: name of a column to the label of its axis; a row of panels each. The value of a method's setting that
            ends highest in the last of them is the darkest.
        log: columns on a logarithmic axis.
        across: methods side by side; the others come below.
    """
    import seaborn as sns

    methods = [method for method in METHODS if method in set(curves["method"])]
    blocks = -(-len(methods) // across)
    size = (2.15 * across + 0.6, 2.1 * len(columns) * blocks + 0.4)
    figure, axes = new_grid(len(columns) * blocks, across, size, sharex=True)
    for empty in axes[len(columns) * (blocks - 1) :, len(methods) - across * (blocks - 1) :].flat:
        empty.set_visible(False)
    ends = curves.sort_values("step").groupby(["method", "value", "seed"])[[*columns][-1]].last()
    for place, method in enumerate(methods):
        mine = curves[curves["method"] == method]
        values = ends[method].groupby("value").mean().sort_values().index
        shades = sns.light_palette(METHODS[method].colour, len(values) + 2)[2:]
        top = len(columns) * (place // across)
        for row, (column, label) in enumerate(columns.items()):
            axis = axes[top + row, place % across]
            for value, shade in zip(values, shades, strict=True):
                for _, run in mine[mine["value"] == value].groupby("seed"):
                    axis.plot(run["step"], run[column], color=shade, lw=1.8)
            shown = curves.loc[curves[column] > 0, column] if column in log else curves[column]
            low, high = float(shown.min()), float(shown.max())
            room = 0.04 * (high - low)
            if column in log:
                axis.set(yscale="log", ylim=(0.8 * low, 1.25 * high))
                ticks = [tick for tick in (0.1, 1, 10, 100) if 0.8 * low < tick < 1.25 * high]
                axis.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
                axis.minorticks_off()
            else:
                axis.set_ylim(low - room, high + room)
            if place % across == 0:
                axis.set_ylabel(label)
            else:
                axis.tick_params(labelleft=False)
        axes[top, place % across].set_title(METHODS[method].label, fontsize=13)
        axes[top + len(columns) - 1, place % across].set_xlabel("step")
    return figure


def shares_figure(panels: Mapping[str, tuple[Mapping[str, ShareEstimate], Mapping[str, float]]]) -> Figure:
    """Draw which share of the Pareto front each method has, beside the paper's.

    Args:
        panels: title to our shares and the paper's, method to share.
    """
    from matplotlib.patches import Patch

    figure, grid = new_grid(1, len(panels), (5.0 * len(panels), 4.6), sharey=True)
    axes = grid[0]
    for axis, (title, (ours, theirs)) in zip(axes, panels.items(), strict=True):
        for place, (method, share) in enumerate(ours.items()):
            axis.barh(place - 0.17, share.value, 0.34, color=METHODS[method].colour, edgecolor="#222222", lw=0.6)
            axis.plot([share.low, share.high], [place - 0.17] * 2, color="#222222", lw=1.5)
            if method in theirs:
                style: dict[str, Any] = {"color": "white", "edgecolor": COLOURS["reference"], "hatch": "///", "lw": 0.8}
                axis.barh(place + 0.19, theirs[method], 0.3, **style)
        axis.set(title=title, xlabel="share of the Pareto front", xlim=(0, 0.6))
    names = list(next(iter(panels.values()))[0])
    axes[0].set_yticks(range(len(names)), [METHODS[method].label for method in names])
    axes[0].invert_yaxis()
    here = Patch(facecolor=COLOURS["reference"], edgecolor="#222222", label="here, with 5 to 95 %")
    paper = Patch(facecolor="white", edgecolor=COLOURS["reference"], hatch="///", label="paper, of its four")
    axes[-1].legend(handles=[here, paper], frameon=False, fontsize=12, loc="lower right")
    return figure


def cost_figure(table: pd.DataFrame, learned: pd.DataFrame, baselines: Mapping[str, Mapping[str, float]]) -> Figure:
    """Draw reward and win rate of trained policies against the seconds that their reward CDF took.

    Args:
        table: a row a number of samples M, with m, seconds, and mean and spread over seeds as SCORE and SCORE_sd.
        learned: one row, likewise, for a learned quantile model.
        baselines: score to label to a height to draw a line at; "reference", or a best-of-N.
    """
    figure, axes = new_figure(2, width=5.6, height=4.2)
    for axis, (score, label) in zip(axes, SCORES.items(), strict=True):
        style = {"capsize": 3, "ms": 6}
        colour = METHODS["vbon-bound"].colour
        axis.errorbar(
            table["seconds"],
            table[score],
            table[f"{score}_sd"],
            fmt="s-",
            color=colour,
            label="vBoN, L, M samples",
            **style,
        )
        for _, row in table.iterrows():
            axis.annotate(
                f"{row['m']:.0f}",
                (row["seconds"], row[score]),
                xytext=(0, 11),
                textcoords="offset points",
                ha="center",
                fontsize=11,
            )
        axis.errorbar(
            learned["seconds"],
            learned[score],
            learned[f"{score}_sd"],
            fmt="*",
            color=colour,
            mec="#222222",
            label="vBoN, L, learned quantiles",
            **(style | {"ms": 13}),
        )
        for name, height in baselines[score].items():
            line = COLOURS["reference" if name == "reference" else "best-of-n"]
            axis.axhline(height, ls="--", lw=1.6, color=line)
            axis.annotate(name, (1, height), xycoords=axis.get_yaxis_transform(), ha="right", va="bottom", color=line)
        axis.set(xscale="log", xlabel="seconds spent on F, all prompts together", ylabel=label)
    axes[0].legend(frameon=False, fontsize=11, loc="center right")
    return figure
