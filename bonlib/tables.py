"""Tables that show and draw themselves: what best-of-n and other rules make of given draws, and policies beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bonlib.bounds import kl_bound, win_rate_bound
from bonlib.estimates import best_of_n_kl, best_of_n_mean, best_of_n_win_rate
from bonlib.exact import Array

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


class _Table:
    """A result that is a table, and shows itself as one."""

    def __init__(self, table: pd.DataFrame) -> None:
        self.table = table

    def __repr__(self) -> str:
        return self.table.to_string(float_format="{:.3f}".format)

    def _repr_html_(self) -> str:
        return self.table.to_html(float_format="{:.3f}".format)


class Curve(_Table):
    """What best-of-n makes of given draws, from all subsets of n of them; reward and win rate have no bias.

    `table` has a row an n, with the mean reward, the win rate over the reference (ties count one half), the KL from it
    in nats and `control`, the mean reward of a random one of n; and each one's standard error over prompts as NAME_se.

    Args:
        ns: K numbers of draws.
        by_prompt: reward, win_rate, kl and control, and what else there is, of each prompt, (P, K); NaN is unknown.
    """

    def __init__(self, ns: Sequence[int], by_prompt: Mapping[str, Array]) -> None:
        import pandas as pd

        self.by_prompt = dict(by_prompt)
        columns: dict[str, Array] = {}
        for name, values in by_prompt.items():
            columns[name] = values.mean(axis=0)
            few = len(values) < 2  # one prompt does not tell an error
            spread = np.full(len(ns), np.nan) if few else values.std(axis=0, ddof=1)
            columns[f"{name}_se"] = spread / np.sqrt(len(values))
        super().__init__(pd.DataFrame(columns, index=pd.Index(ns, name="n")))

    @classmethod
    def of_draws(
        cls, rewards: Array, ns: Sequence[int], *, log_probs: Array | None, responses: NDArray[np.object_]
    ) -> Curve:
        """Return the curve of draws, as many to each prompt.

        Args:
            rewards: of the draws, shape (P, M).
            ns: numbers of draws, each at most M − 1.
            log_probs: of the draws under the law that they were drawn from, nats, shape (P, M); if None, the KL is
                counted.
            responses: their texts, shape (P, M): which of them are one response.

        Raises:
            ValueError: if an n is out of range, or an array is not what it must be.
        """
        by_prompt = {
            "reward": best_of_n_mean(rewards, ns, rounding=0),
            "win_rate": best_of_n_win_rate(rewards, ns),
            "kl": best_of_n_kl(rewards, ns, log_probs=log_probs, responses=responses),
            "control": np.repeat(rewards.mean(axis=1, keepdims=True), len(ns), axis=1),
        }
        return cls(ns, by_prompt)

    def milestones(self) -> pd.DataFrame:
        """Return the rows of n = 1, 2, 4 … and the last."""
        ns = self.table.index
        return self.table[np.isin(ns, [*2 ** np.arange(int(ns[-1]).bit_length()), ns[-1]])]

    def plot(self) -> Figure:
        """Draw reward with its control, win rate and KL against n; dotted, what holds where no two rewards tie."""
        figure, axes = _panels(
            3, "Figure. Mean reward, win rate and KL of best-of-n against n; the reward of a random one of n."
        )
        table, ns = self.table, self.table.index.to_numpy()
        for axis, name in zip(axes, ("reward", "win_rate", "kl"), strict=True):
            axis.errorbar(ns, table[name], table[f"{name}_se"], fmt="o-", color="#0173b2", label="best-of-n")
            axis.set_xscale("log", base=2)
            axis.xaxis.set_major_formatter("{x:.0f}")
            axis.set(xlabel="n", ylabel={"reward": "mean reward", "win_rate": "win rate", "kl": "KL  (nats)"}[name])
        axes[0].errorbar(
            ns, table["control"], table["control_se"], fmt="s--", color="#ca9161", label="a random one of n"
        )
        axes[1].plot(ns, win_rate_bound(ns), ls=":", color="#222222", label="n / (n + 1)")
        axes[2].plot(ns, kl_bound(ns), ls=":", color="#222222", label="log n − (n − 1)/n")
        for axis in axes:
            axis.legend(frameon=False)
        return figure


class Comparison(_Table):
    """Policies beside their reference and its best-of-n, measured on the same prompts.

    `table` has a row each, with mean reward, win rate over fresh draws of the reference and KL from it in nats, each
    with its standard error over prompts as NAME_se. `responses` has what each policy answered, (P, k) texts by name.
    """

    def __init__(self, table: pd.DataFrame, responses: dict[str, NDArray[np.object_]]) -> None:
        super().__init__(table)
        self.responses = responses

    def plot(self) -> Figure:
        """Draw win rate against KL: best-of-n as a curve, each policy as a point."""
        figure, (axis,) = _panels(
            1, "Figure. Win rate over the reference against the KL to it: best-of-n, and each policy."
        )
        curve = self.table[self.table.index.str.startswith("best-of-") | (self.table.index == "reference")]
        axis.plot(curve["kl"], curve["win_rate"], "o-", color="#0173b2", label="best-of-n")
        for name in self.responses:
            row = self.table.loc[name]
            axis.errorbar(row["kl"], row["win_rate"], row["win_rate_se"], row["kl_se"], fmt="s", label=name)
        axis.set(xlabel="KL to the reference  (nats)", ylabel="win rate over the reference")
        axis.legend(frameon=False)
        return figure


class RuleTable(_Table):
    """What rules that spend draws make of the same draws, a row each.

    `table` has, each with its standard error over prompts as NAME_se: reward, the mean of what is kept; control, that
    of a random one; win_rate over draws that were not chosen from, ties counting one half; kl in nats, NaN where it is
    not known; gold and gold_control; spent, the draws made; the length of what is kept; and tokens, of all draws made.

    Args:
        by_prompt: of each rule by its name, these of each prompt by their names, (P,).
    """

    def __init__(self, by_prompt: Mapping[str, Mapping[str, Array]]) -> None:
        import pandas as pd

        self.by_prompt = dict(by_prompt)
        rows = {
            rule: {
                key: value
                for name in ("reward", "control", "win_rate", "kl", "gold", "gold_control", "spent", "length", "tokens")
                if name in found
                for key, value in mean_and_error(name, found[name]).items()
            }
            for rule, found in by_prompt.items()
        }
        super().__init__(pd.DataFrame.from_dict(rows, orient="index").rename_axis("rule"))

    def shown(self) -> pd.DataFrame:
        """Return the table as texts, each mean with its error if it has one."""
        import pandas as pd

        names = [name for name in map(str, self.table) if not name.endswith("_se")]
        pairs = {name: zip(self.table[name], self.table[f"{name}_se"], strict=True) for name in names}
        cells = {
            name: [f"{mean:.3f}" + (f" ± {error:.3f}" if error > 0 else "") for mean, error in pair]
            for name, pair in pairs.items()
        }
        return pd.DataFrame(cells, index=self.table.index).replace("nan", "–")

    def __repr__(self) -> str:
        return self.shown().to_string()

    def _repr_html_(self) -> str:
        return self.shown().to_html()

    def against(self, rule: str) -> pd.DataFrame:
        """Return by how much each rule differs from one of them, with the error of that over prompts.

        The prompts are the same, so that this error is much smaller than those of both.
        """
        import pandas as pd

        base = self.by_prompt[rule]
        rows = {
            other: {
                key: value
                for name in base
                if name not in ("control", "gold_control")
                for key, value in mean_and_error(name, found[name] - base[name]).items()
            }
            for other, found in self.by_prompt.items()
        }
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("rule")


class Kept:
    """What a rule keeps of the draws of a model.

    Args:
        rule: the rule.
        texts: (P, G) what is kept of each of G groups of draws to a prompt.
        rewards: (P, G) of these.
        spent: (P, G) draws that were made for each.
        measured: what the rule makes of the draws, whichever way they are cut into groups.
    """

    def __init__(
        self, rule: Any, texts: NDArray[np.object_], rewards: Array, spent: NDArray[np.intp], measured: RuleTable
    ) -> None:
        self.rule, self.texts, self.rewards, self.spent, self.measured = rule, texts, rewards, spent, measured

    def __repr__(self) -> str:
        prompts, groups = self.texts.shape
        kept = (
            f"{groups} of {groups * self.rule.n} draws to each of {prompts} prompt{'s' * (prompts > 1)} by {self.rule}"
        )
        return f"{kept}:\n{self.measured!r}"

    def _repr_html_(self) -> str:
        from html import escape

        first = "".join(f"<li>{escape(text)}</li>" for text in self.texts[:3, 0])
        return f"<p>{escape(repr(self).splitlines()[0])}</p>{self.measured._repr_html_()}<p>Kept:</p><ul>{first}</ul>"


def mean_and_error(name: str, by_prompt: Array) -> dict[str, float]:
    """A mean over prompts and its standard error, which one prompt does not tell."""
    count = len(by_prompt)
    error = by_prompt.std(ddof=1) / np.sqrt(count) if count > 1 else np.nan
    return {name: float(by_prompt.mean()), f"{name}_se": float(error)}


def _panels(count: int, about: str) -> tuple[Figure, Any]:
    """A figure that a notebook shows once, as it is none of pyplot's, and its words where it is not seen."""
    from io import BytesIO

    from matplotlib.figure import Figure

    class Picture(Figure):
        def __repr__(self) -> str:
            return about

        def _repr_png_(self) -> bytes:
            self.savefig(drawn := BytesIO(), format="png")
            return drawn.getvalue()

    figure = Picture(figsize=(4.2 * count, 3.6), layout="constrained")
    axes = figure.subplots(1, count, squeeze=False)[0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes
