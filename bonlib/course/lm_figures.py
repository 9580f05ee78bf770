"""The figures of the notebook on instruct models and the neighbours of best-of-n, in the style of `figures`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from bonlib.bounds import kl_bound, win_rate_frontier
from bonlib.course.figures import COLOURS, CURVE, new_figure, new_grid
from bonlib.exact import Array

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HOUR = 3600.0


class SampledKL(NamedTuple):
    """The KL of best-of-n to its reference, estimated from samples of one prompt; nats, shape (points,).

    Attributes:
        n: numbers of draws.
        identity: by the identity with the estimated CDF.
        winner: mean of K̂_n over the winners.
        band: tilted minimum and maximum of K̂_n.
        winner_of_ties: mean of K̂_n with the probability of all responses of the winner's reward, or None.
    """

    n: Array
    identity: Array
    winner: Array
    band: tuple[Array, Array]
    winner_of_ties: Array | None = None


def sampled_kl(panels: Mapping[str, SampledKL]) -> Figure:
    """Draw the KL of best-of-n against n as the formula, the estimator K̂ and the identity have it.

    Args:
        panels: title to curves, one panel an entry; four stand two by two.
    """
    columns = 2 if len(panels) == 4 else len(panels)
    size = (4.6 * columns + 0.6 * (columns == 1), 3.9 * len(panels) / columns)
    figure, grid = new_grid(len(panels) // columns, columns, size, sharex=True, sharey=True)
    axes = grid.ravel()
    for axis, (title, curves) in zip(axes, panels.items(), strict=True):
        axis.plot(curves.n, kl_bound(curves.n), "--", color=COLOURS["bound"], label=r"formula  $\log n - (n-1)/n$")
        axis.plot(curves.n, curves.identity, color=COLOURS["best-of-n"], lw=3, label="identity, estimated CDF")
        axis.plot(curves.n, curves.winner, ":", color=COLOURS["estimate"], lw=3, label=r"$\hat K_n$ of the response")
        style = {"color": COLOURS["estimate"], "alpha": 0.2, "lw": 0}
        axis.fill_between(curves.n, *curves.band, label=r"$\hat K_n$, tilted min to max", **style)
        if curves.winner_of_ties is not None:
            label = r"$\hat K_n$ of the tie"
            axis.plot(curves.n, curves.winner_of_ties, "-.", color=COLOURS["crude"], lw=2, label=label)
        axis.set(xscale="log")
        axis.set_title(title if len(title) <= 36 else title[:35] + "…", fontsize=12)
    for axis in grid[-1]:
        axis.set_xlabel("number of draws  $n$")
    for axis in grid[:, 0]:
        axis.set_ylabel("KL to the reference  (nats)")
    axes[0].legend(frameon=False, fontsize=10.5, loc="upper left")
    axes[0].set_ylim(bottom=-0.1)
    return figure


def repeats_figure(texts: Mapping[str, Sequence[str]]) -> Figure:
    """Draw which share of the draws of each prompt had come before, against their number.

    Prompts with less than 1 % of repetitions in the end share one label.

    Args:
        texts: label of a prompt to its responses, in the order drawn.
    """
    import seaborn as sns

    shares = {}
    for label, responses in texts.items():
        _, first = np.unique(np.asarray(responses), return_index=True)
        drawn = np.arange(10, len(responses) + 1)  # of fewer, one repetition would be a large share
        different = np.searchsorted(np.sort(first), drawn, side="left")
        shares[label] = drawn, 100 * (1 - different / drawn)
    repeating = [label for label, (_, share) in shares.items() if share[-1] >= 1]
    others = [label for label in shares if label not in repeating]
    figure, (axis,) = new_figure(width=6.4, height=3.9)
    for label, shade in zip(repeating, sns.color_palette("cividis", len(repeating)), strict=True):
        axis.plot(*shares[label], color=shade, lw=2.5)
        axis.annotate(f" {label}", (shares[label][0][-1], shares[label][1][-1]), va="center", annotation_clip=False)
    for label in others:
        axis.plot(*shares[label], color=COLOURS["estimate"], lw=1.5, ls="--")
    if others:
        x, share = shares[others[0]]
        text = f"the other {len(others)}: below 1 %"
        axis.annotate(text, (np.sqrt(x[0] * x[-1]), share[-1]), (0, 5), textcoords="offset points", ha="center")
    axis.set(xscale="log", xlabel="draws", ylabel="repetitions among them  (%)")
    return figure


def blockwise_figure(
    ns: Sequence[int], kl: Mapping[int, ArrayLike], bound: Mapping[int, ArrayLike], rewards: Mapping[int, ArrayLike]
) -> Figure:
    """Draw what blockwise best-of-n costs in KL and gains in reward.

    Args:
        ns: numbers of draws for each block.
        kl: tokens of a block to the estimated KL in nats for each n, shape (len(ns),).
        bound: likewise, E⌈T/m⌉ A_n.
        rewards: likewise, mean reward.
    """
    import seaborn as sns

    figure, (left, right) = new_figure(2, width=5.6, height=4.2)
    for shade, size in zip(sns.color_palette("viridis", len(kl)), kl, strict=True):
        label = f"block of {size} token{'s' if size > 1 else ''}"
        left.plot(ns, bound[size], "--", color=shade, lw=1.5)
        left.plot(ns, kl[size], "o-", color=shade, lw=2.5, ms=4)
        right.plot(kl[size], rewards[size], "o-", color=shade, lw=2.5, ms=4, label=label)
    right.plot([], [], "--", color=COLOURS["bound"], label="bound, on the left")
    left.set(xscale="log", yscale="log", xlabel="draws for each block  $n$", ylabel="KL to the reference  (nats)")
    left.set_xticks(ns, [str(n) for n in ns])
    left.minorticks_off()
    right.set(xscale="log", xlabel="KL to the reference  (nats)", ylabel="mean reward")
    right.legend(frameon=False, fontsize=10)
    return figure


def neighbours_figure(
    estimates: Mapping[str, tuple[ArrayLike, ArrayLike, ArrayLike]], curves: Mapping[str, CURVE]
) -> Figure:
    """Draw estimated against exact KL, and the trade-offs of policies that choose among draws.

    Args:
        estimates: name in COLOURS to exact KL, estimated KL and its standard error in nats, each of shape (points,).
        curves: name in COLOURS to KL in nats, win rate, and keyword arguments of `Axes.plot`.
    """
    figure, (left, right) = new_figure(2, width=5.6, height=4.2)
    top = max(float(np.max(exact)) for exact, _, _ in estimates.values())
    left.plot([0, top], [0, top], "--", color=COLOURS["bound"], lw=1)
    for name, (exact, estimate, error) in estimates.items():
        left.errorbar(exact, estimate, 2 * np.asarray(error), fmt="o", ms=5, capsize=3, color=COLOURS[name], label=name)
    left.set(xlabel="KL by exact theory  (nats)", ylabel="KL estimated from draws  (nats)")
    left.legend(frameon=False)
    grid = np.linspace(0, top, 200)
    right.plot(grid, win_rate_frontier(grid), "--", color=COLOURS["bound"], lw=1.5, label="best possible")
    for name, (kl, win, style) in curves.items():
        right.plot(kl, win, label=name, color=COLOURS[name], **style)
    right.set(xlabel="KL to the reference  (nats)", ylabel="win rate against the reference")
    right.legend(frameon=False)
    return figure


def job_figure(rates: Mapping[str, float], samples: int, length: float, jobs: Mapping[str, int]) -> Figure:
    """Draw how long drawing takes against the number of prompts, by model and number of machines.

    Args:
        rates: label to tokens a second of one machine.
        samples: responses to each prompt.
        length: tokens of a response.
        jobs: label to number of prompts, to mark.
    """
    import seaborn as sns

    figure, (axis,) = new_figure(width=9.4, height=4.4)
    prompts = np.geomspace(100, 3e6, 100)
    for colour, (label, rate) in zip(sns.color_palette("cividis", len(rates)), rates.items(), strict=True):
        for machines, style in ((1, "-"), (10, "--"), (100, ":")):
            hours = prompts * samples * length / rate / machines / HOUR
            name = f"{label}, {machines} machine{'s' if machines > 1 else ''}"
            axis.plot(prompts, hours, style, color=colour, lw=2, label=name)
    for label, count in jobs.items():
        axis.axvline(count, color=COLOURS["reference"], lw=1)
        axis.annotate(label, (count, 1), xycoords=axis.get_xaxis_transform(), ha="center", va="bottom", color="#555555")
    for label, mark in (("an hour", 1.0), ("a day", 24.0), ("a year", 8766.0)):
        axis.axhline(mark, color="#dddddd", lw=1, zorder=0)
        axis.annotate(label, (100, mark), va="bottom", color="#777777")
    axis.set(
        xscale="log", yscale="log", xlabel=f"prompts, with {samples} responses each", ylabel="hours", ylim=(1e-3, 1e5)
    )
    axis.legend(frameon=False, fontsize=10, loc="upper left", bbox_to_anchor=(1, 1))
    return figure
