"""The figures of the course: one style, one colour for a policy wherever it appears, arrays in and figures out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bonlib.bounds import kl_bound, win_rate_bound
from bonlib.cdf import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# seaborn's colour-blind-safe palette; what is a formula rather than a policy is dashed and grey or black.
COLOURS = {
    "reference": "#949494",
    "best-of-n": "#0173b2",
    "KL-RL": "#de8f05",
    "soft best-of-n": "#56b4e9",
    "rewind": "#029e73",
    "random-of-n": "#ca9161",
    "bound": "#222222",
    "estimate": "#cc78bc",
}


def new_figure(columns: int = 1, *, width: float = 5.2, height: float = 3.9) -> tuple[Figure, NDArray[Any]]:
    """Return a figure in the style of the course and its axes, shape (columns,)."""
    import matplotlib.pyplot as plt
    import seaborn as sns

    sns.set_theme(context="notebook", style="ticks", rc={"axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(1, columns, figsize=(width * columns, height), squeeze=False, layout="constrained")
    plt.close(figure)  # the notebook shows what the function returns, once
    return figure, axes[0]


def kl_against_n(n: ArrayLike, exact: ArrayLike, estimate: ArrayLike, *, ceiling: float) -> Figure:
    """Draw the KL of best-of-n to its reference against n: exact, expected estimate, and the formula.

    Args:
        n: numbers of draws, shape (points,).
        exact: KL(π_n ‖ π) in nats, shape (points,).
        estimate: expectation of the estimator K̂ in nats, shape (points,).
        ceiling: the limit of the exact KL, in nats.
    """
    figure, (axis,) = new_figure(width=6.4)
    axis.plot(n, kl_bound(n), "--", color=COLOURS["bound"], label="the formula  $\\log n - (n-1)/n$")
    axis.plot(n, exact, color=COLOURS["best-of-n"], lw=3, label="exact KL")
    axis.plot(n, estimate, ":", color=COLOURS["estimate"], lw=3, label="estimator $\\hat K_n$, on average")
    axis.axhline(ceiling, color=COLOURS["reference"], lw=1)
    axis.annotate(f"limit {ceiling:.3f}", (1.1, ceiling), xytext=(0, 4), textcoords="offset points", color="#555555")
    axis.set(xscale="log", xlabel="number of draws  $n$", ylabel="KL to the reference  (nats)")
    axis.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, 0.93))
    return figure


def trade_off(curves: Mapping[str, tuple[ArrayLike, ArrayLike, Mapping[str, Any]]]) -> Figure:
    """Draw win rate against KL, one curve an entry.

    Args:
        curves: label to KL in nats and win rate, each of shape (points,), and keyword arguments of `Axes.plot`.
    """
    figure, (axis,) = new_figure(width=6.4)
    _trade_off(axis, curves)
    return figure


def simplex_figure(
    paths: Mapping[str, ArrayLike], reference: ArrayLike, curves: Mapping[str, tuple[ArrayLike, ArrayLike]]
) -> Figure:
    """Draw policies over three outcomes as paths on the probability simplex, and their trade-offs beside it.

    Args:
        paths: policy family to probabilities, shape (points, 3), outcomes from worst to best.
        reference: probabilities of the reference, shape (3,).
        curves: policy family to (KL in nats, win rate).
    """
    figure, (left, right) = new_figure(2, width=5.6, height=4.6)
    corners = _on_simplex(np.eye(3))
    left.fill(*corners.T, facecolor="#f6f6f6", edgecolor="#888888")
    for corner, label, shift in zip(corners, ("worst", "middle", "best"), ((-8, -16), (8, -16), (0, 8)), strict=True):
        left.annotate(label, corner, xytext=shift, textcoords="offset points", ha="center")
    styles: dict[str, dict[str, Any]] = {name: {"color": COLOURS[name], "lw": 2.5} for name in paths}
    styles.get("rewind", {})["ls"] = "--"
    for name, path in paths.items():
        left.plot(*_on_simplex(path).T, label=name, **styles[name])
    left.plot(*_on_simplex(reference), "o", ms=9, color=COLOURS["reference"], mec="white", label="reference", zorder=3)
    left.set_axis_off()
    left.set_aspect("equal")
    left.legend(frameon=False, loc="upper left")
    _trade_off(right, {name: (*points, styles[name]) for name, points in curves.items()})
    return figure


SELECTIONS: dict[str, dict[str, Any]] = {  # how each way of choosing among N draws looks
    "best-of-N": {"fmt": "o-", "color": COLOURS["best-of-n"]},
    "best-of-N, all subsets": {"fmt": "s", "mfc": "white", "color": COLOURS["best-of-n"]},
    "random-of-N": {"fmt": "o-", "color": COLOURS["random-of-n"]},
}


def best_of_n_figure(ns: Sequence[int], rewards: Mapping[str, Estimate], wins: Mapping[str, Estimate]) -> Figure:
    """Draw mean reward and win rate of selected responses against N, with standard errors.

    Args:
        ns: numbers of draws.
        rewards: name in SELECTIONS to mean reward, of shape (len(ns),).
        wins: name in SELECTIONS to win rate against the reference, likewise.
    """
    figure, axes = new_figure(2)
    for axis, table in zip(axes, (rewards, wins), strict=True):
        for name, (mean, error) in table.items():
            beside = 1.06 if name.endswith("subsets") else 1.0  # not on top of the groups, which it agrees with
            axis.errorbar(np.asarray(ns) * beside, mean, yerr=error, capsize=3, label=name, **SELECTIONS[name])
        axis.set(xscale="log", xlabel="number of draws  $N$")
        axis.set_xticks(ns, [str(n) for n in ns])
        axis.minorticks_off()
    axes[1].plot(ns, win_rate_bound(ns), "--", color=COLOURS["bound"], label="$N/(N+1)$")
    axes[0].set(ylabel="mean reward, p(positive)")
    axes[1].set(ylabel="win rate against the reference")
    for axis in axes:
        axis.legend(frameon=False, loc="best")
    return figure


def rewards_by_prompt(rewards: ArrayLike, labels: Sequence[str]) -> Figure:
    """Draw the rewards of a few prompts' draws, a strip each, from the hardest prompt (top) to the easiest.

    Args:
        rewards: shape (prompts, draws).
        labels: the prompts.
    """
    table = np.asarray(rewards, dtype=np.float64)
    figure, (axis,) = new_figure(width=7.4, height=0.45 * len(labels) + 1.2)
    rng = np.random.default_rng(0)
    for row, index in enumerate(np.argsort(-table.mean(axis=1))):
        jitter = row + rng.uniform(-0.25, 0.25, table.shape[1])
        axis.plot(table[index], jitter, ".", ms=4, alpha=0.5, color=COLOURS["reference"])
        axis.plot(table[index].mean(), row, "|", ms=18, mew=2.5, color=COLOURS["bound"])
        axis.plot(table[index].max(), row, "o", ms=8, color=COLOURS["best-of-n"])
    axis.set_yticks(range(len(labels)), [labels[i] for i in np.argsort(-table.mean(axis=1))])
    axis.set(xlabel="reward, p(positive)", xlim=(-0.02, 1.02))
    return figure


def _trade_off(axis: Axes, curves: Mapping[str, tuple[ArrayLike, ArrayLike, Mapping[str, Any]]]) -> None:
    for label, (kl, win, style) in curves.items():
        axis.plot(kl, win, label=label, **style)
    axis.set(xlabel="KL to the reference  (nats)", ylabel="win rate against the reference")
    axis.legend(frameon=False, loc="lower right")


def _on_simplex(probs: ArrayLike) -> NDArray[np.float64]:
    p = np.asarray(probs, dtype=np.float64)
    return np.stack([p[..., 1] + p[..., 2] / 2, p[..., 2] * np.sqrt(3) / 2], axis=-1)
