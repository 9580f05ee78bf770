"""The figures of the notebook on summarisation, in the style of `figures`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from bonlib.course.figures import COLOURS, CURVE, new_figure
from bonlib.course.training_figures import METHOD_STYLES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUMMARY_STYLES: dict[str, tuple[str, str, str]] = {
    "sft": ("SFT, the reference", "#555555", "."),
    "bon": ("best-of-N", "#0173b2", "o"),
    **{name: METHOD_STYLES[name] for name in ("bon-sft", "kl-rl-ppo", "dpo", "bonbon", "vbon-bound", "bond", "jbond")},
}
TITLES = {"in": "in distribution", "out": "out of distribution"}


def over_prompts(judged: pd.DataFrame, column: str, by: tuple[str, ...] = ("method",)) -> pd.DataFrame:
    """Return the mean of a measure and its standard error over documents, as columns value and error.

    Args:
        judged: a row a policy, condition and document; seeds are averaged first: documents are the independent units.
        column: the measure.
        by: what tells rows of the result apart.
    """
    means = judged.groupby([*by, "prompt"], sort=False)[column].mean()
    groups = means.groupby(list(by), sort=False)
    return pd.DataFrame({"value": groups.mean(), "error": groups.std() / np.sqrt(groups.count())})


def temperatures_figure(judged: pd.DataFrame, measures: Mapping[str, str]) -> Figure:
    """Draw measures of every method against the sampling temperature, in and out of distribution.

    Args:
        judged: as for `over_prompts`, with method, distribution, temperature and prompt.
        measures: column to axis label.
    """
    import matplotlib.pyplot as plt

    new_figure()  # sets the style
    figure, axes = plt.subplots(
        len(measures),
        2,
        figsize=(11.4, 3.9 * len(measures)),
        squeeze=False,
        sharex=True,
        sharey="row",
        layout="constrained",
    )
    plt.close(figure)
    methods = [method for method in SUMMARY_STYLES if method in set(judged["method"])]
    for row, (column, label) in zip(axes, measures.items(), strict=True):
        for axis, (distribution, title) in zip(row, TITLES.items(), strict=True):
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
                    lw=1.4,
                    elinewidth=0.8,
                    label=name,
                )
            axis.set_title(title, fontsize=11)
        row[0].set_ylabel(label)
    for axis in axes[-1]:
        axis.set(xlabel="sampling temperature", xticks=sorted(judged["temperature"].unique()))
    axes[0][1].legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def over_optimisation_figure(curve: pd.DataFrame, points: pd.DataFrame, scale: Mapping[str, float]) -> Figure:
    """Draw what the proxy says of best-of-n as n grows and what the gold model says, and of every policy.

    Args:
        curve: a row a distribution and n, with proxy and gold and their errors proxy_se and gold_se.
        points: a row a method and temperature, with the gains in proxy and gold over the reference, proxy_error and
            gold_error, in their standard deviations.
        scale: standard deviation of proxy and of gold over summaries by the reference of one document.
    """
    figure, axes = new_figure(2, width=5.6, height=4.2)
    for distribution, style in (("in", "-"), ("out", "--")):
        mine = curve[curve["distribution"] == distribution].sort_values("n")
        for name, colour in (("proxy", COLOURS["random-of-n"]), ("gold", COLOURS["best-of-n"])):
            gain = (mine[name] - mine[name].iloc[0]) / scale[name]
            axes[0].plot(
                mine["n"], gain, style, color=colour, marker="o", ms=4, label=f"{name}, {TITLES[distribution]}"
            )
    axes[0].set(xscale="log", xlabel="number of draws n", ylabel="gain in reward  (standard deviations)")
    axes[0].set_xticks(sorted(curve["n"].unique()), [str(n) for n in sorted(curve["n"].unique())], minor=False)
    axes[0].minorticks_off()
    axes[0].legend(frameon=False, fontsize=9)
    _gains(axes[1], points)
    return figure


def _gains(axis: Axes, points: pd.DataFrame) -> None:
    for method, (name, colour, marker) in SUMMARY_STYLES.items():
        mine = points[points["method"] == method].sort_values("temperature")
        if method != "sft" and len(mine):
            axis.errorbar(
                mine["proxy"],
                mine["gold"],
                mine["gold_error"],
                mine["proxy_error"],
                color=colour,
                marker=marker,
                lw=0.9,
                elinewidth=0.6,
                label=name,
            )
    low, high = min(0.0, points["proxy"].min()), points["proxy"].max()
    axis.axline((0, 0), slope=1, color="#999999", lw=0.8, ls=":")
    axis.set(
        xlabel="gain in proxy reward  (standard deviations)", ylabel="gain in gold reward", xlim=(low - 0.1, 1.1 * high)
    )
    axis.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def fits_figure(panels: Mapping[str, Mapping[str, CURVE]]) -> Figure:
    """Draw estimates of log F against the reward, a panel a document: label to x, y and style."""
    figure, axes = new_figure(len(panels), width=4.3, height=3.6)
    for axis, (title, curves) in zip(axes, panels.items(), strict=True):
        for label, (x, y, style) in curves.items():
            axis.plot(x, y, label=label, **style)
        axis.set(xlabel="proxy reward", ylim=(-7, 0.3))
        axis.set_title(title, fontsize=10)
    axes[0].set_ylabel("log F")
    axes[0].legend(frameon=False, fontsize=9)
    return figure


def length_figure(points: pd.DataFrame) -> Figure:
    """Draw the mean gold reward of each method and temperature against the mean length of its summaries.

    Args:
        points: a row a method, distribution and temperature, with length and gold.
    """
    figure, axes = new_figure(2, width=5.0, height=3.9)
    for axis, (distribution, title) in zip(axes, TITLES.items(), strict=True):
        for method, (name, colour, marker) in SUMMARY_STYLES.items():
            mine = points[(points["method"] == method) & (points["distribution"] == distribution)].sort_values(
                "temperature"
            )
            axis.plot(mine["length"], mine["gold"], color=colour, marker=marker, lw=0.9, label=name)
        axis.set(xlabel="length  (tokens)", ylabel="gold reward")
        axis.set_title(title, fontsize=11)
    axes[1].legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure
