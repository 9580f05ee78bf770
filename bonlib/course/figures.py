"""The figures of the course: one style, one colour for a policy wherever it appears, arrays in and figures out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bonlib.bounds import kl_bound, kl_gap_lower, win_rate_bound
from bonlib.cdf import Estimate
from bonlib.exact import Outcomes

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
    "crude": "#d55e00",
}
Array = NDArray[np.float64]
OBJECTIVES: dict[str, dict[str, Any]] = {  # how gradient ascent on each objective looks
    "vBoN, J": {"color": "#5b3a8c", "lw": 6, "alpha": 0.4},
    "vBoN, bound L≤": {"color": "#9467bd", "lw": 2.5},
    "vBoN, bound L1": {"color": "#b294d1", "lw": 2, "ls": "-."},
    "vBoN, code, β = 0.05": {"color": "#8c564b", "lw": 2},
    "vBoN, code, β = 1/N": {"color": "#8c564b", "lw": 2, "ls": "--"},
    "BOND, reward p≤": {"color": "#b00020", "lw": 2},
    "KL-RL": {"color": COLOURS["KL-RL"], "lw": 2},
}
CURVE = tuple[ArrayLike, ArrayLike, Mapping[str, Any]]  # x, y and how to draw it


def new_figure(columns: int = 1, *, width: float = 5.2, height: float = 3.9) -> tuple[Figure, NDArray[Any]]:
    """Return a figure in the style of the course and its axes, shape (columns,)."""
    import matplotlib.pyplot as plt
    import seaborn as sns

    sns.set_theme(context="notebook", style="ticks", rc={"axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(1, columns, figsize=(width * columns, height), squeeze=False, layout="constrained")
    plt.close(figure)  # the notebook shows what the function returns, once
    return figure, axes[0]


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
    """Draw the KL of best-of-n against n: exact, estimated, and by the formula.

    Args:
        panels: title to curves, one panel an entry.
    """
    figure, axes = new_figure(len(panels), width=6.4 if len(panels) == 1 else 5.6)
    for axis, (title, curves) in zip(axes, panels.items(), strict=True):
        axis.plot(curves.n, kl_bound(curves.n), "--", color=COLOURS["bound"], label=r"formula  $\log n - (n-1)/n$")
        if curves.crude is not None:
            axis.plot(curves.n, curves.crude, "-.", color=COLOURS["crude"], label="crude bound, mean")
        axis.plot(curves.n, curves.exact, color=COLOURS["best-of-n"], lw=3, label="exact KL")
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
    axes[0].set_ylabel("KL to the reference  (nats)")
    axes[-1].legend(frameon=False, loc="upper center" if len(panels) == 1 else "lower right", fontsize=10)
    return figure


def uniform_kl(curves: Mapping[int, KLCurves]) -> Figure:
    """Draw the KL of best-of-n over K equally likely outcomes, and by how much each formula is too high.

    Args:
        curves: number K of outcomes to its curves.
    """
    import seaborn as sns

    figure, (left, right) = new_figure(2, width=5.8)
    longest = max((one.n for one in curves.values()), key=lambda n: float(n[-1]))
    left.plot(longest, kl_bound(longest), "--", color=COLOURS["bound"], label=r"formula  $\log n - (n-1)/n$")
    for shade, (size, one) in zip(sns.color_palette("Blues", len(curves) + 2)[2:], curves.items(), strict=True):
        left.plot(one.n, one.exact, color=shade, lw=3)
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
    right.annotate(r"$\hat K_n$", (0.02, 0.08), ha="center", color=COLOURS["estimate"])
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
    axis.axvspan(low, 0.3, color=COLOURS["rewind"], alpha=0.12, lw=0)
    axis.axvspan(3, high, color=COLOURS["crude"], alpha=0.12, lw=0)
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
    import seaborn as sns

    figure, (left, right) = new_figure(2, width=5.6)
    for shade, (label, values) in zip(sns.color_palette("Blues_r", len(excess) + 2), excess.items(), strict=False):
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


def trade_off(curves: Mapping[str, CURVE]) -> Figure:
    """Draw win rate against KL, one curve an entry.

    Args:
        curves: label to KL in nats and win rate, each of shape (points,), and keyword arguments of `Axes.plot`.
    """
    return trade_offs({"": curves})


def trade_offs(panels: Mapping[str, Mapping[str, CURVE]]) -> Figure:
    """Draw win rate against KL in several panels, with titles; each as in `trade_off`, up to 6.5 nats."""
    figure, axes = new_figure(len(panels), width=6.4 if len(panels) == 1 else 5.6)
    for axis, (title, curves) in zip(axes, panels.items(), strict=True):
        _trade_off(axis, curves)
        axis.set(title=title, xlim=(-0.2, min(6.5, axis.get_xlim()[1])))
    return figure


def kl_and_cost(curves: Mapping[str, CURVE], by_cost: Mapping[str, CURVE]) -> Figure:
    """Draw win rate against KL, and losses against the draws that a response costs.

    Args:
        curves: as in `trade_off`.
        by_cost: label to expected draws, 1 − win rate, and keyword arguments of `Axes.plot`.
    """
    figure, (left, right) = new_figure(2, width=5.6)
    _trade_off(left, curves)
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
    axis.plot(quantile, np.log(quantile), color=COLOURS["best-of-n"], lw=2.5, label=r"$\log F_\leq$")
    axis.plot(
        quantile, -np.log(16) * (1 - quantile) ** 2, color=COLOURS["crude"], lw=2.5,
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


ESTIMATORS: dict[str, dict[str, Any]] = {  # how each estimate of log F looks
    "posterior": {"color": "#0173b2", "lw": 3},
    "add_one": {"color": "#029e73"},
    "add_half": {"color": "#de8f05"},
    "clamp": {"color": "#d55e00", "ls": "--"},
    "none": {"color": "#949494", "ls": ":"},
    "exponential": {"color": "#cc78bc", "ls": "-."},
}


def log_cdf_by_samples(panels: Mapping[str, Mapping[str, CURVE]]) -> Figure:
    """Draw estimates of log F against the reward, a panel a prompt and a curve a number of samples.

    Args:
        panels: title to label to rewards, log F in nats, and keyword arguments of `Axes.plot`.
    """
    figure, axes = new_figure(len(panels), width=4.6, height=3.9)
    for axis, (title, curves) in zip(axes, panels.items(), strict=True):
        for label, (rewards, log_cdf, style) in curves.items():
            axis.plot(rewards, log_cdf, label=label, **style)
        axis.set(xlabel="reward $r$, p(positive)", title=title, ylim=(-7.5, 0.3))
        axis.title.set_fontsize(11)
    axes[0].set_ylabel(r"$\log F_\leq(r)$  (nats)")
    axes[-1].legend(frameon=False, loc="lower right", fontsize=10)
    return figure


def cdf_errors(ms: ArrayLike, distance: ArrayLike, errors: Mapping[str, ArrayLike]) -> Figure:
    """Draw how far CDFs from M samples are from the truth, against M.

    Args:
        ms: numbers of samples M, shape (points,).
        distance: mean of sup |F̂ − F|, likewise.
        errors: name in ESTIMATORS to root mean square error of log F̂ in nats, likewise.
    """
    figure, (left, right) = new_figure(2)
    left.plot(ms, distance, "o-", color=COLOURS["best-of-n"], label="measured, mean over samples")
    left.plot(
        ms, np.sqrt(np.log(2 / 0.05) / 2 / np.asarray(ms)), "--", color=COLOURS["bound"],
        label="95 % of samples are below  (DKW)",
    )  # fmt: skip
    for name, values in errors.items():
        right.plot(ms, values, marker="o", ms=4, label=name.replace("_", "-"), **ESTIMATORS[name])
    left.set(ylabel=r"$\sup_r |\hat F_M(r) - F(r)|$")
    right.set(ylabel=r"error of $\log \hat F_\leq$, root mean square  (nats)")
    left.set_ylim(0.02, 1)
    right.set_ylim(0.05, 5)
    for axis in (left, right):
        axis.set(xscale="log", yscale="log", xlabel="reference samples  $M$")
        axis.set_xticks(ms, [str(m) for m in np.asarray(ms)])
        axis.minorticks_off()
        axis.legend(frameon=False, fontsize=10)
    return figure


def estimator_figure(
    ms: ArrayLike,
    bias: Mapping[str, ArrayLike],
    error: Mapping[str, ArrayLike],
    kl: Mapping[str, ArrayLike],
    floor: float,
) -> Figure:
    """Draw bias and error of the estimates of log F against M, and where a policy trained on each ends.

    Args:
        ms: numbers of samples M, shape (points,).
        bias: name in ESTIMATORS to mean error in nats, likewise.
        error: name to root mean square error in nats, likewise.
        kl: name to the KL from the policy trained on it to best-of-N in nats, likewise.
        floor: that KL with the true log F.
    """
    figure, axes = new_figure(3, width=4.5)
    tables = {
        "bias  (nats)": bias,
        "root mean square error  (nats)": error,
        "KL to best-of-N  (nats)": kl,
    }
    for axis, (label, table) in zip(axes, tables.items(), strict=True):
        for name, values in table.items():
            axis.plot(ms, values, label=name.replace("_", "-"), **ESTIMATORS[name])
        axis.set(xscale="log", xlabel="reference samples  $M$", ylabel=label)
        axis.set_xticks(ms, [str(m) for m in np.asarray(ms)], fontsize=9)
        axis.minorticks_off()
    axes[0].axhline(0, color=COLOURS["bound"], lw=1)
    axes[1].set_yscale("log")
    axes[2].set_yscale("log")
    axes[2].axhline(floor, color=COLOURS["bound"], lw=1, label=r"with the true $\log F_\leq$")
    axes[0].legend(frameon=False, fontsize=10)
    return figure


def _trade_off(axis: Axes, curves: Mapping[str, CURVE]) -> None:
    for label, (kl, win, style) in curves.items():
        axis.plot(kl, win, label=label, **style)
    axis.set(xlabel="KL to the reference  (nats)", ylabel="win rate against the reference")
    axis.legend(frameon=False, loc="lower right")


def _on_simplex(probs: ArrayLike) -> NDArray[np.float64]:
    p = np.asarray(probs, dtype=np.float64)
    return np.stack([p[..., 1] + p[..., 2] / 2, p[..., 2] * np.sqrt(3) / 2], axis=-1)
