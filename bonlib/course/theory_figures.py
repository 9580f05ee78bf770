"""The figures of the notebooks on finite outcome sets, in the style of `bonlib.course.figures`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bonlib.bounds import kl_bound, kl_gap_lower
from bonlib.course.figures import COLOURS, CURVE, draw_trade_off, new_figure, shades
from bonlib.exact import Array, Outcomes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OBJECTIVES: dict[str, dict[str, Any]] = {  # how gradient ascent on each objective looks
    "vBoN, J": {"color": COLOURS["vbon"], "lw": 6, "alpha": 0.4},
    "vBoN, bound L≤": {"color": COLOURS["vbon-bound"], "lw": 2.5},
    "vBoN, bound L1": {"color": COLOURS["vbon-bound"], "lw": 1.5, "ls": "-."},
    "vBoN, code, β = 0.05": {"color": COLOURS["vbon"], "lw": 1.5, "ls": ":"},
    "vBoN, code, β = 1/N": {"color": COLOURS["vbon"], "lw": 2, "ls": "--"},
    "BOND, reward p≤": {"color": COLOURS["bond"], "lw": 2},
    "KL-RL": {"color": COLOURS["KL-RL"], "lw": 2},
}

UNDERNEATH: dict[str, Any] = {
    "color": COLOURS["best-of-n"],
    "lw": 6,
    "alpha": 0.5,
}  # the truth, where its estimate is drawn on top


class KLCurves(NamedTuple):
    """The KL of best-of-n to its reference against n, all in nats and of shape (points,).

    Attributes:
        n: numbers of draws.
        exact: KL(π_n ‖ π).
        estimate: expectation of the estimator K̂.
        crude: expectation of the cruder estimator, or None to leave it out.
        band: tilted minimum and maximum of K̂, or None to leave them out.
        ceiling: limit of the exact KL.
    """

    n: Array
    exact: Array
    estimate: Array
    ceiling: float
    crude: Array | None = None
    band: tuple[Array, Array] | None = None


def kl_against_n(panels: Mapping[str, KLCurves]) -> Figure:
    """Draw the KL of best-of-n against n: exact, estimated, and by the formula; a single panel has its start enlarged.

    Args:
        panels: title to curves, one panel an entry.
    """
    figure, axes = new_figure(len(panels), width=6.4 if len(panels) == 1 else 5.6)
    for axis, (title, curves) in zip(axes, panels.items(), strict=True):
        axis.plot(curves.n, kl_bound(curves.n), "--", color=COLOURS["bound"], label=r"formula  $\log n - (n-1)/n$")
        if curves.crude is not None:
            axis.plot(curves.n, curves.crude, "-.", color=COLOURS["crude"], label="crude bound, mean")
        axis.plot(curves.n, curves.exact, label="exact KL", **UNDERNEATH)
        axis.plot(curves.n, curves.estimate, ":", color=COLOURS["estimate"], lw=3, label=r"$\hat K_n$, mean")
        if curves.band is not None:
            style = {"color": COLOURS["estimate"], "alpha": 0.2, "lw": 0}
            axis.fill_between(curves.n, *curves.band, label=r"$\hat K_n$, tilted min to max", **style)
        axis.axhline(curves.ceiling, color=COLOURS["reference"], lw=1)
        axis.annotate(
            f"limit {curves.ceiling:.3f}", (0.01, curves.ceiling), xycoords=axis.get_yaxis_transform(), va="bottom",
            color="#555555",
        )  # fmt: skip
        axis.set(xscale="log", xlabel="number of draws  $n$", title=title)
        if len(panels) == 1:
            _enlarge_start(axis, curves)
    axes[0].set_ylabel("KL to the reference  (nats)")
    axes[-1].legend(frameon=False, loc="upper left" if len(panels) == 1 else "lower right", fontsize=10)
    return figure


def _enlarge_start(axis: Axes, curves: KLCurves) -> None:
    """Draw the first ten draws once more, in an inset where the formula has left room."""
    inset = axis.inset_axes((0.66, 0.27, 0.34, 0.29))
    inset.plot(curves.n, kl_bound(curves.n), "--", color=COLOURS["bound"])
    inset.plot(curves.n, curves.exact, **UNDERNEATH)
    inset.plot(curves.n, curves.estimate, ":", color=COLOURS["estimate"], lw=3)
    inset.set(xlim=(1, 10), ylim=(0, 1.15 * curves.ceiling), xticks=[1, 3, 5, 10])
    inset.annotate("$n$ to 10", (9.5, 0.05), ha="right", fontsize=10)
    inset.tick_params(labelsize=9)


def uniform_kl(curves: Mapping[int, KLCurves]) -> Figure:
    """Draw the KL of best-of-n over K equally likely outcomes, and by how much each formula is too high.

    Args:
        curves: number K of outcomes to its curves.
    """
    figure, (left, right) = new_figure(2, width=5.8)
    longest = max((one.n for one in curves.values()), key=lambda n: float(n[-1]))
    left.plot(longest, kl_bound(longest), "--", color=COLOURS["bound"], label=r"formula  $\log n - (n-1)/n$")
    for shade, (size, one) in zip(shades("best-of-n", 2 * len(curves))[: len(curves)], curves.items(), strict=True):
        left.plot(one.n, one.exact, color=shade, lw=5)
        left.plot(one.n, one.estimate, ":", color=COLOURS["estimate"], lw=2)
        left.annotate(f"$K$ = {size:,}", (1.3 * one.n[-1], one.ceiling), va="center", color="#333333")
        draws_an_outcome = one.n / size
        right.plot(draws_an_outcome, kl_bound(one.n) - one.exact, "--", color=shade, lw=2)
        right.plot(draws_an_outcome, one.estimate - one.exact, ":", color=COLOURS["estimate"], lw=2)
        if one.crude is not None:
            right.plot(draws_an_outcome, one.crude - one.exact, "-.", color=COLOURS["crude"], lw=1.5)
    left.set(xscale="log", xlabel="number of draws  $n$", ylabel="KL to the reference  (nats)", xlim=(0.7, 4e6))
    left.legend(frameon=False, loc="upper left")
    right.axvline(1, color=COLOURS["reference"], lw=1)
    right.annotate("$n = K$", (1, 3.6), xytext=(-6, 0), textcoords="offset points", ha="right", color="#555555")
    right.annotate("formula", (6.5, 1.8), ha="right", color="#333333")
    right.annotate("crude bound", (0.02, 1.08), ha="center", color=COLOURS["crude"])
    right.annotate(r"$\hat K_n$", (2.5e-3, 0.08), ha="center", color=COLOURS["bound"], fontsize=14)
    right.set(
        xscale="log", xlabel="draws for each outcome  $n/K$", ylabel="above the exact KL  (nats)", xlim=(1e-3, 1e3),
        ylim=(-0.1, 4),
    )  # fmt: skip
    return figure


def when_to_trust(copies: ArrayLike, gaps: ArrayLike, ns: ArrayLike) -> Figure:
    """Draw how far the formula log n − (n−1)/n is above the exact KL, against how often the winner repeats.

    Args:
        copies: n E π(y*), the number of copies of the winner to expect in n fresh draws, shape (cases,).
        gaps: A_n − KL in nats, shape (cases,).
        ns: numbers of draws, shape (cases,).
    """
    figure, (axis,) = new_figure(width=7.4, height=4.2)
    low, high = 3e-3, 1e6
    axis.axvspan(low, 0.3, color="#1a6b4f", alpha=0.12, lw=0)
    axis.axvspan(3, high, color="#a04000", alpha=0.12, lw=0)
    points = axis.scatter(copies, gaps, c=np.log10(ns), s=9, cmap="viridis", lw=0)
    grid = np.geomspace(low, high, 300)
    axis.plot(
        grid, kl_gap_lower(1e9, grid / 1e9), color=COLOURS["bound"], lw=1.5, label="one best atom, the rest continuous"
    )
    axis.set(
        xscale="log", yscale="log", xlim=(low, high), ylim=(1e-4, 30),
        xlabel="copies of the winner to expect in $n$ fresh draws", ylabel="formula − exact KL  (nats)",
    )  # fmt: skip
    axis.annotate("trust it", (0.03, 8), ha="center", weight="bold", color="#1a6b4f")
    axis.annotate("do not", (1500, 2e-3), ha="center", weight="bold", color="#a04000")
    axis.legend(frameon=False, loc="lower right")
    figure.colorbar(points, label=r"$\log_{10} n$")
    return figure


def gap_parts(identity: ArrayLike, estimator: ArrayLike, probs: ArrayLike) -> Figure:
    """Draw each outcome's part in the gap A_n − KL, beside its part in the gap of the expected estimator.

    Args:
        identity: F≤^n (A_n − K̂_n(π/F≤)) of each outcome, from worst to best, shape (K,).
        estimator: π_n (A_n − K̂_n(π)), likewise.
        probs: reference probabilities, likewise.
    """
    figure, (axis,) = new_figure(width=7.4)
    places = np.arange(len(np.asarray(probs)))
    axis.bar(places - 0.2, identity, 0.4, color=COLOURS["best-of-n"], label="exact, by identity (1)")
    axis.bar(places + 0.2, estimator, 0.4, color=COLOURS["estimate"], label=r"as the mean of $\hat K_n$ sees it")
    axis.set_xticks(places, [f"{p:.2g}" for p in np.asarray(probs)])
    axis.set(xlabel="outcome, from worst to best, named by its probability", ylabel="part of $A_n -$ KL  (nats)")
    axis.legend(frameon=False)
    return figure


def conjecture_figure(
    atoms: ArrayLike, excess: Mapping[str, ArrayLike], found: Outcomes, finite: tuple[float, float]
) -> Figure:
    """Draw by how much one worst atom lifts best-of-n above (A_m, m/(m+1)), and the reference a search ended at.

    Args:
        atoms: probabilities of the worst outcome, shape (points,).
        excess: label of n to the win rate above the conjectured curve at equal KL, shape (points,).
        found: the reference that optimisation found.
        finite: probability of the worst outcome of a small example, and its excess.
    """
    figure, (left, right) = new_figure(2, width=5.6)
    for shade, (label, values) in zip(shades("best-of-n", len(excess))[::-1], excess.items(), strict=True):
        left.plot(atoms, values, color=shade, lw=2.5, label=label)
    left.plot(*finite, "o", ms=8, color=COLOURS["crude"], label="seven outcomes, $n = 2$")
    left.axhline(0, color=COLOURS["bound"], ls="--", lw=1.5)
    left.annotate("conjecture 7.2: never above 0", (0, -0.0006), va="top", color="#333333")
    left.set(xlabel="probability $a$ of the worst outcome", ylabel="win rate above the conjectured curve")
    left.legend(frameon=False, loc="lower center")
    right.bar(np.arange(1, len(found) + 1), found.probs, 0.8, color=COLOURS["reference"])
    right.set(xlabel="outcome, from worst to best", ylabel="probability found by the search")
    right.set_xticks(range(1, len(found) + 1, 3))
    return figure


def kl_and_cost(curves: Mapping[str, CURVE], by_cost: Mapping[str, CURVE]) -> Figure:
    """Draw win rate against KL, and losses against the draws that a response costs.

    Args:
        curves: as in `trade_off`.
        by_cost: label to expected draws, 1 − win rate, and keyword arguments of `Axes.plot`.
    """
    figure, (left, right) = new_figure(2, width=5.6)
    draw_trade_off(left, curves)
    for label, (cost, losses, style) in by_cost.items():
        right.plot(cost, losses, label=label, **style)
    right.set(xscale="log", yscale="log", xlabel="draws for a response, on average", ylabel="1 − win rate")
    right.legend(frameon=False)
    return figure


def ascent_figure(
    to_optimum: Mapping[str, ArrayLike], to_best_of_n: Mapping[str, ArrayLike], limits: Mapping[str, float]
) -> Figure:
    """Draw the exact KL along gradient ascent: to each objective's own optimum, and to best-of-N.

    Args:
        to_optimum: objective in OBJECTIVES to KL(πθ ‖ its optimum) in nats after each step, shape (steps,).
        to_best_of_n: objective to KL(πθ ‖ π_N), likewise.
        limits: objective to the KL from its optimum to π_N, drawn thin where it is not 0.
    """
    figure, axes = new_figure(2, width=5.6, height=4.2)
    for axis, table in zip(axes, (to_optimum, to_best_of_n), strict=True):
        for name, values in table.items():
            steps = np.arange(1, len(np.asarray(values)) + 1)
            axis.plot(steps, np.maximum(values, 1e-13), label=name, **OBJECTIVES[name])
        axis.set(xscale="log", yscale="log", ylim=(1e-12, 30), xlabel="step of gradient ascent")
    for name, limit in limits.items():
        axes[1].axhline(max(limit, 1e-13), color=OBJECTIVES[name]["color"], lw=1, ls=":")
    axes[0].set_ylabel("exact KL to its own optimum  (nats)")
    axes[1].set_ylabel("exact KL to best-of-N  (nats)")
    axes[0].legend(frameon=False, fontsize=10)
    return figure


def jbond_reward_figure(crossings: Sequence[float]) -> Figure:
    """Draw J-BOND's expected reward beside the log-quantile that it stands for.

    Args:
        crossings: quantiles at which both are equal.
    """
    figure, (axis,) = new_figure(width=6.4)
    quantile = np.linspace(0.005, 1, 400)
    axis.plot(quantile, np.log(quantile), color=COLOURS["bound"], ls="--", lw=2, label=r"$\log F_\leq$")
    axis.plot(
        quantile, -np.log(16) * (1 - quantile) ** 2, color=COLOURS["jbond"], lw=2.5,
        label=r"J-BOND, expected: $-\log 16\,(1 - F_\leq)^2$",
    )  # fmt: skip
    axis.plot(crossings, np.log(crossings), "o", ms=8, color=COLOURS["bound"], label="equal")
    axis.set(xlabel=r"quantile of the response  $F_\leq(y)$", ylabel="reward  (nats)", ylim=(-5, 0.2))
    axis.legend(frameon=False, loc="lower right")
    return figure


def simplex_figure(
    paths: Mapping[str, ArrayLike], reference: ArrayLike, curves: Mapping[str, tuple[ArrayLike, ArrayLike]]
) -> Figure:
    """Draw policies over three outcomes as paths on the probability simplex, and their trade-offs beside it.

    Args:
        paths: policy family, in COLOURS or "best possible tilt", to probabilities, shape (points, 3), outcomes from
            worst to best.
        reference: probabilities of the reference, shape (3,).
        curves: policy family to (KL in nats, win rate).
    """
    figure, (left, right) = new_figure(2, width=5.6, height=4.6)
    corners = _on_simplex(np.eye(3))
    left.fill(*corners.T, facecolor="#f6f6f6", edgecolor="#888888")
    for corner, label, shift in zip(corners, ("worst", "middle", "best"), ((-8, -16), (8, -16), (0, 8)), strict=True):
        left.annotate(label, corner, xytext=shift, textcoords="offset points", ha="center")
    broad = {"color": COLOURS["KL-RL"], "lw": 6, "alpha": 0.5, "zorder": 1.9}  # as wherever nothing can be above
    styles: dict[str, dict[str, Any]] = {
        name: broad if name == "best possible tilt" else {"color": COLOURS[name], "lw": 2.5} for name in paths
    }
    styles.get("rewind", {})["ls"] = "--"
    for name, path in paths.items():
        left.plot(*_on_simplex(path).T, label=name, **styles[name])
    left.plot(*_on_simplex(reference), "o", ms=9, color=COLOURS["reference"], mec="white", label="reference", zorder=3)
    left.set_axis_off()
    left.set_aspect("equal")
    left.legend(frameon=False, loc="upper left")
    draw_trade_off(right, {name: (*points, styles[name]) for name, points in curves.items()})
    return figure


def _on_simplex(probs: ArrayLike) -> NDArray[np.float64]:
    p = np.asarray(probs, dtype=np.float64)
    return np.stack([p[..., 1] + p[..., 2] / 2, p[..., 2] * np.sqrt(3) / 2], axis=-1)
