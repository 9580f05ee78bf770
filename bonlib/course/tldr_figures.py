"""The figures of the notebook on summarisation, in the style of `figures`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from bonlib.course.figures import COLOURS, CURVE, new_figure, new_grid
from bonlib.methods import METHODS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUMMARY_STYLES: dict[str, tuple[str, str, str]] = {
    "sft": ("SFT, the reference", COLOURS["reference"], "D"),
    "bon": ("best-of-N", COLOURS["best-of-n"], "o"),
    **{
        name: (METHODS[name].label, METHODS[name].colour, METHODS[name].marker)
        for name in ("bon-sft", "kl-rl-ppo", "dpo", "bonbon", "vbon-bound", "bond", "jbond")
    },
}
JUDGES = {"proxy": "#7f7f7f", "gold": "#8a6d00"}  # no policies, so in none of their colours
OUTSIDE = {"in": "in distribution", "out": "out of distribution"}


def over_prompts(judged: pd.DataFrame, column: str, by: tuple[str, ...] = ("method",)) -> pd.DataFrame:
    """Return the mean of a measure and its standard error over documents, as columns value and error.

    Args:
        judged: a row a policy, condition and document; seeds are averaged first: documents are the independent units.
        column: the measure.
        by: what tells rows of the result apart.

    Raises:
        ValueError: if documents of several distributions would be taken for the same.
    """
    if "distribution" not in by and judged["distribution"].nunique() > 1:
        raise ValueError(f"judged holds several distributions and by is {by}: choose one, or add 'distribution' to by")
    means = judged.groupby([*by, "prompt"], sort=False)[column].mean()
    groups = means.groupby(list(by), sort=False)
    return pd.DataFrame({"value": groups.mean(), "error": groups.std() / np.sqrt(groups.count())})


def temperatures_figure(judged: pd.DataFrame, measures: Mapping[str, str], kinds: Mapping[str, str]) -> Figure:
    """Draw measures of every method against the sampling temperature, in and out of distribution.

    Axes are those of the methods: where the reference is lower, its value is written at the lower edge.

    Args:
        judged: as for `over_prompts`, with method, distribution, temperature and prompt.
        measures: column to axis label.
        kinds: what the documents of each distribution are.
    """
    figure, axes = new_grid(len(measures), 2, (10.4, 3.7 * len(measures) + 0.7), sharex=True)
    methods = [method for method in SUMMARY_STYLES if method in set(judged["method"])]
    for row, (column, label) in zip(axes, measures.items(), strict=True):
        for axis, (distribution, kind) in zip(row, kinds.items(), strict=True):
            here = over_prompts(judged[judged["distribution"] == distribution], column, ("method", "temperature"))
            for place, method in enumerate(methods):
                name, colour, marker = SUMMARY_STYLES[method]
                line = here.loc[method].sort_index()
                shift = 0.006 * (place - len(methods) / 2)  # error bars beside each other
                axis.errorbar(
                    line.index + shift,
                    line["value"],
                    line["error"],
                    color=colour,
                    marker=marker,
                    lw=1.6,
                    elinewidth=0.8,
                    label=name,
                )
            axis.set_title(f"{kind}, {OUTSIDE[distribution]}", fontsize=12)
            if "win" not in column:
                _limit_to_policies(axis, here["value"].reset_index(), "value")
            else:
                axis.sharey(row[0])
                axis.axhline(0.5, color="#cccccc", lw=0.8)
        row[0].set_ylabel(label)
    for axis in axes[-1]:
        axis.set(xlabel="sampling temperature", xticks=sorted(judged["temperature"].unique()))
    _legend_above(figure, axes[0][0])
    return figure


def over_optimisation_figure(curves: pd.DataFrame, points: pd.DataFrame, kinds: Mapping[str, str]) -> Figure:
    """Draw what the proxy and what the gold model say of best-of-n as n grows, and of every policy.

    Args:
        curves: a row a distribution, temperature and n, with proxy_gain and gold_gain over n = 1, proxy_gain_se and
            gold_gain_se, and the correlation of the two rewards; gains in standard deviations among draws of one
            document.
        points: a row a method and temperature, with the gains proxy and gold over the reference, proxy_error and
            gold_error, in the same units, in distribution; its temperatures are drawn, a row of panels each.
        kinds: what the documents of each distribution are.
    """
    temperatures = sorted(points["temperature"].unique(), reverse=True)
    figure, axes = new_grid(len(temperatures), 2, (10.4, 4.0 * len(temperatures) + 0.7))
    for row, temperature in zip(axes, temperatures, strict=True):
        here = curves[curves["temperature"] == temperature]
        _draw_best_of_each_n(row[0], here, kinds)
        inside = here[here["distribution"] == "in"]
        correlation = float(inside["correlation"].iloc[0])
        _draw_gains(row[1], points[points["temperature"] == temperature], correlation)
        row[0].set_title(f"best-of-n by the proxy, temperature {temperature:g}", fontsize=11)
        row[1].set_title(f"every method, temperature {temperature:g}, ρ = {correlation:.2f}", fontsize=11)
    axes[0][0].legend(frameon=False, fontsize=9.5)
    _legend_above(figure, axes[0][1])
    return figure


def _draw_best_of_each_n(axis: Axes, curves: pd.DataFrame, kinds: Mapping[str, str]) -> None:
    for distribution, style in (("in", "-"), ("out", "--")):
        mine = curves[curves["distribution"] == distribution].sort_values("n")
        for name, colour in JUDGES.items():
            label = f"{name}, {kinds[distribution]}"
            gain, error = mine[f"{name}_gain"], mine[f"{name}_gain_se"]
            axis.errorbar(mine["n"], gain, error, fmt=f"o{style}", color=colour, ms=4, elinewidth=0.8, label=label)
        told, dots = f"ρ × proxy, {kinds[distribution]}", ":" if distribution == "in" else "-."
        axis.plot(mine["n"], mine["correlation"] * mine["proxy_gain"], dots, color=COLOURS["bound"], lw=1, label=told)
    axis.set(xscale="log", xlabel="number of draws n", ylabel="gain in reward  (standard deviations)")
    axis.set_xticks(sorted(curves["n"].unique()), [str(n) for n in sorted(curves["n"].unique())], minor=False)
    axis.minorticks_off()


def _draw_gains(axis: Axes, points: pd.DataFrame, correlation: float) -> None:
    for method in [name for name in SUMMARY_STYLES if name != "sft"]:
        name, colour, marker = SUMMARY_STYLES[method]
        mine = points[points["method"] == method]
        errors: dict[str, Any] = {"yerr": mine["gold_error"], "xerr": mine["proxy_error"], "elinewidth": 0.8}
        axis.errorbar(mine["proxy"], mine["gold"], color=colour, marker=marker, ls="", label=name, **errors)
    axis.axline((0, 0), slope=1, color="#999999", lw=0.8, ls=":", label="all that the proxy gains")
    axis.axline((0, 0), slope=correlation, color=COLOURS["bound"], lw=1, ls=":", label="ρ × proxy")
    axis.axhline(0, color="#cccccc", lw=0.8)
    axis.set(xlabel="gain in proxy reward  (standard deviations)", ylabel="gain in gold reward  (standard deviations)")
    furthest = {name: points[[name]].join(points[f"{name}_error"]).sum(axis=1).max() for name in ("proxy", "gold")}
    nearest = {name: (points[name] - points[f"{name}_error"]).min() for name in ("proxy", "gold")}
    axis.set(xlim=(min(0.0, nearest["proxy"]) - 0.1, furthest["proxy"] + 0.1))
    axis.set(ylim=(min(0.0, nearest["gold"]) - 0.1, furthest["gold"] + 0.1))


def fits_figure(panels: Mapping[str, Mapping[str, CURVE]]) -> Figure:
    """Draw estimates of log F against the reward, a panel a document: label to x, y and style."""
    figure, axes = new_figure(len(panels), width=4.3, height=3.6)
    for axis, (title, curves) in zip(axes, panels.items(), strict=True):
        for label, (x, y, style) in curves.items():
            axis.plot(x, y, label=label, **style)
        axis.set(xlabel="proxy reward", ylim=(-7, 0.3))
        axis.set_title(title, fontsize=10)
    axes[0].set_ylabel(r"$\log F$  (nats)")
    axes[0].legend(frameon=False, fontsize=9)
    return figure


def length_figure(points: pd.DataFrame, kinds: Mapping[str, str]) -> Figure:
    """Draw the mean gold reward of each method against the mean length of its summaries, a line over temperatures.

    The lowest temperature has a small mark and the highest a large one.

    Args:
        points: a row a method, distribution and temperature, with length and gold.
        kinds: what the documents of each distribution are.
    """
    figure, axes = new_figure(2, width=5.2, height=4.6)
    for axis, (distribution, kind) in zip(axes, kinds.items(), strict=True):
        here = points[points["distribution"] == distribution]
        for method, (name, colour, marker) in SUMMARY_STYLES.items():
            mine = here[here["method"] == method].sort_values("temperature")
            axis.plot(mine["length"], mine["gold"], color=colour, lw=1.2)
            for end, size in ((mine.iloc[:1], 25), (mine.iloc[-1:], 110)):
                axis.scatter(end["length"], end["gold"], size, color=colour, marker=marker, lw=0.5, zorder=3)
            axis.plot([], [], color=colour, marker=marker, lw=1.2, label=name)
        axis.set(xlabel="length  (tokens)", ylabel="gold reward")
        axis.set_title(f"{kind}, {OUTSIDE[distribution]}", fontsize=12)
        _limit_to_policies(axis, here, "gold")
    _legend_above(figure, axes[0])
    return figure


def _limit_to_policies(axis: Axes, points: pd.DataFrame, y: str) -> None:
    """End the vertical axis below the lowest of the methods, and write down where the reference is if it is lower."""
    policies = points.loc[points["method"] != "sft", y]
    edge = policies.min() - 0.25 * (policies.max() - policies.min())
    lower = points[(points["method"] == "sft") & (points[y] < edge)]
    if len(lower):
        told = ", ".join(f"{value:.1f} at {at:g}" for value, at in zip(lower[y], lower["temperature"], strict=True))
        text = f"the reference: {told} ↓".replace("-", "−")
        axis.set_ylim(bottom=edge)
        axis.annotate(text, (0.99, 0.02), xycoords="axes fraction", ha="right", fontsize=10)


def _legend_above(figure: Figure, axis: Axes) -> None:
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=10.5, ncols=5, loc="outside upper center")
