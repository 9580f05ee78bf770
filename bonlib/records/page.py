"""The report as one page, without network or program: what its template, report.html, is filled with."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bonlib.bounds import win_rate_bound
from bonlib.inference import RULES
from bonlib.records.findings import percent
from bonlib.records.measures import ENOUGH, FURTHEST, MANY
from bonlib.records.pictures import BOUND, CHANCE, GOLD, Line, histogram, lines
from bonlib.records.ways import BUDGET, typeset

if TYPE_CHECKING:
    import pandas as pd

    from bonlib.records.report import Report

FEW = 5  # rows of examples
LONGEST = 160  # letters of a prompt or response in a table


def page(report: Report) -> str:
    """Return the report as HTML that stands alone."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(Path(__file__).parent)
    templates = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    templates.filters |= {"shown": _shown, "percent": percent}
    return templates.get_template("report.html").render(_content(report))


def _shown(value: Any, error: Any = None) -> str:
    """A text shortened; a count; or a number with its error, if it has one, in as many digits as one reads."""
    if isinstance(value, str):
        line = " ".join(value.split())
        return line if len(line) <= LONGEST else f"{line[:LONGEST]}…"
    if value is None or not np.isfinite(value):
        return "–"
    known = error is not None and np.isfinite(error)
    size = max(abs(value), error if known else 0.0)
    places = sum(size < limit for limit in (10, 100, 1000))
    form = ",d" if isinstance(value, int | np.integer) else f",.{places}f" if size >= 1e-3 or size < 1e-9 else ".2g"
    return (format(value, form) + (f" ± {format(error, form)}" if known else "")).replace("-", "−")


def _whole(value: float) -> str:
    """A number that is whole or nearly always so."""
    return f"{value:,.1f}".removesuffix(".0") if np.isfinite(value) else "–"


def _content(report: Report) -> dict[str, Any]:
    """What the template speaks of."""
    records, table, counts = report.records, report.curve.table, report.records.counts
    prompts = report.tables["prompts"]
    gains = prompts[prompts["in_curve"]].sort_values("gain", ascending=False, kind="stable")
    several = len(gains) >= 2 * FEW and len(table) > 1
    return {
        "report": report,
        "records": records,
        "found": report.summary,
        "title": f"Best-of-N of {records.source.rsplit('/', 1)[-1] or 'these responses'}",
        "each": f"{counts.min()}" if counts.min() == counts.max() else f"{counts.min()} to {counts.max()}",
        "prompts": len(counts),
        "reward": report.summary["reward"],
        "most": report.summary["draws"],
        "first": table.iloc[0],
        "last": table.iloc[-1],
        "with_kl": table["kl"].dropna().index[-1],
        "gold": report.summary.get("gold"),
        "troubles": [finding for finding in report.findings if finding.matters],
        "absent": [finding for finding in report.findings if not finding.matters],
        "length": next(each for each in report.findings if each.name == "a reward that follows length"),
        "unit": _unit(report),
        "milestones": _rows(report.curve.milestones()),
        "every": _rows(table),
        "worth": _worth(report),
        "right": _right(report),
        "votes": "votes" in report.tables,
        "ways": _ways(report),
        "enough": ENOUGH,
        "furthest": FURTHEST,
        "many": len(counts) == 1 and counts[0] >= MANY,
        "gains_most": _gains(gains.head(FEW)) if several else None,
        "gains_least": _gains(gains.tail(FEW)) if several else None,
        **_examples(report),
        "pictures": _pictures(report),
    }


def _worth(report: Report) -> list[list[Any]]:
    """Quantiles of the gain and of the draws for most of it; nothing if nothing is gained."""
    if len(report.curve.table) == 1 or not report.summary["gain"] > 0:
        return []
    quantiles = report.tables["worth"].reset_index().to_numpy().tolist()
    return [[percent(quantile), gain, _whole(enough)] for quantile, gain, enough in quantiles]


def _gains(prompts: pd.DataFrame) -> list[list[Any]]:
    rows = prompts[["prompt", "draws", "different", "mean", "best", "gain", "enough"]].to_numpy(dtype=object).tolist()
    return [[str(prompt), *numbers, _whole(enough)] for prompt, *numbers, enough in rows]


def _unit(report: Report) -> str:
    return "tokens" if report.records.in_tokens else "characters"


def _rows(table: pd.DataFrame) -> list[list[Any]]:
    """Rows of the curve as cells."""
    return [
        [
            n,
            _shown(row["reward"], row["reward_se"]),
            row["gain"],
            _shown(row["win_rate"], row["win_rate_se"]),
            _shown(row["kl"], row["kl_se"]),
            row["kl_bound"],
        ]
        for n, row in table.iterrows()
    ]


def _right(report: Report) -> list[list[Any]] | None:
    """How often one of N is right, what best-of-N keeps, and the majority."""
    if report.records.correct is None:
        return None
    votes = report.tables.get("votes")
    return [
        [
            n,
            _shown(row["solved"], row["solved_se"]),
            _shown(row["right"], row["right_se"]),
            *([] if votes is None else [_shown(votes["majority"].iloc[place], votes["majority_se"].iloc[place])]),
        ]
        for place, (n, row) in enumerate(report.curve.milestones().iterrows())
    ]


def _ways(report: Report) -> dict[str, Any] | None:
    """Rules that spend draws: of each its best setting, and all of them."""
    if "rules" not in report.tables:
        return None
    table, said = report.tables["rules"], report.summary["rules"]
    by = "reward" if said["judged_by"] is None else "judged"
    columns = ["reward"] + ["judged"] * (by == "judged")
    kind = table.index.str.partition(",").get_level_values(0)
    best = table.groupby(kind, sort=False)[by].idxmax()

    def rows(names: Iterable[str]) -> list[list[Any]]:
        return [
            [
                typeset(str(name)),
                _whole(row["spent"]),
                *(_shown(row[column], row[f"{column}_se"]) for column in columns),
            ]
            for name, row in table.loc[list(names)].iterrows()
        ]

    keeps = [[name, RULES[name].label, RULES[name].keeps] for name in best.index]
    counts, budget = report.records.counts, said["budget"]
    more = min(BUDGET, int(np.median(counts)))  # draws that half of the prompts have, where the curve stops before
    return said | {
        "best_of_each": rows(table.index[table.index.isin([*best, "best"])]),  # the verdict compares with "best"
        "all": rows(table.index),
        "keeps": keeps,
        "more": more if more > budget else None,
        "with_more": int(np.count_nonzero(counts >= more)),
        "no_log_probs": report.records.log_probs is not None and report.kl_from.startswith("counted"),
    }


def _examples(report: Report) -> dict[str, Any]:
    """Responses of one prompt, from the best to the worst."""
    records, table = report.records, report.tables["responses"]
    place = int(records.counts.argmax())
    block = table[records.prompt == place].sort_values("mid_rank", ascending=False, kind="stable")
    chosen = block.iloc[np.unique(np.linspace(0, len(block) - 1, FEW).astype(int))]
    stands = zip(records.reward[chosen.index], chosen["mid_rank"].map(_whole), strict=True)
    fs = chosen[["strict_cdf", "cdf", "log_cdf"]].to_numpy().tolist()
    rows = [[text, *stand, *f] for text, stand, f in zip(chosen["response"], stands, fs, strict=True)]
    return {"example_prompt": str(records.prompts[place]), "examples": rows}


def _pictures(report: Report) -> dict[str, str]:
    """Pictures by name, as addresses that hold them."""
    table, score, votes = report.curve.table, report.summary["reward"], report.tables.get("votes")
    ns = table.index.to_numpy()

    def of(name: str, label: str, *look: str) -> Line:
        return Line(label, ns, table[name], table[f"{name}_se"], *look)

    by_length = report.tables["length"]
    found = {f"score {name}": histogram(values, name, "responses") for name, values in report.records.scores.items()}
    found["by_length"] = lines(
        [
            Line("responses", by_length.index, by_length["mean"], by_length["mean_se"]),
            Line("if length did not matter", [0, 1], [0.5, 0.5], None, BOUND, ":"),
        ],
        "rank by length",
        f"mean rank by {score}",
        ranks=True,
    )
    if "gold" in report.summary:
        gold, agreement = report.summary["gold"]["score"], report.tables["agreement"]
        found["agreement"] = lines(
            [
                Line("responses", agreement.index, agreement["mean"], agreement["mean_se"], GOLD),
                Line("if they agreed", [0, 1], [0, 1], None, BOUND, ":"),
            ],
            f"rank by {score}",
            f"mean rank by {gold}",
            ranks=True,
        )
        if len(ns) > 1:
            ceiling, kept = of("gold_best", f"by {gold}", BOUND, ":"), of("gold", f"by {score}", GOLD)
            found["gold"] = lines([ceiling, kept], "N", f"mean {gold} of best-of-N")
    if len(ns) == 1:
        return found
    share = (table["reward"] - table["reward"].iloc[0]) / (report.summary["gain"] or np.nan)
    chance = of("control", "a random one of N", CHANCE, "--")
    found |= {
        "reward": lines([of("reward", "best-of-N"), chance], "N", f"mean {score}"),
        "win_rate": lines(
            [of("win_rate", "best-of-N"), Line("N / (N + 1)", ns, win_rate_bound(ns), None, BOUND, ":")],
            "N",
            "win rate",
        ),
        "kl": lines(
            [of("kl", "best-of-N"), Line("log N − (N − 1)/N", ns, table["kl_bound"], None, BOUND, ":")],
            "N",
            "KL (nats)",
        ),
        "share": lines(
            [Line("best-of-N", ns, share), Line("nine tenths", ns, np.full(len(ns), 0.9), None, BOUND, ":")],
            "N",
            f"share of the gain of best-of-{ns[-1]}",
        ),
        "gain": lines([of("gain", "best-of-N")], "N", f"gain of {score} a draw"),
        "length": lines(
            [of("length", "best-of-N"), Line("one draw", ns, 0 * ns + table["length"].iloc[0], None, CHANCE, "--")],
            "N",
            f"mean length ({_unit(report)})",
        ),
    }
    if report.records.correct is not None:
        given = [of("solved", "one of N is right (pass@N)", BOUND), of("right", f"best of N by {score}")]
        if votes is not None:
            majority = "majority of N (maj@N)"
            given.append(Line(majority, votes.index, votes["majority"], votes["majority_se"], CHANCE, "--"))
        found["right"] = lines(given, "N", "share that is right")
    return found
