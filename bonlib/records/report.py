"""The report on a file of responses with scores: what best-of-N makes of them, and what is wrong with them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bonlib.bounds import kl_bound
from bonlib.cdf import ROUNDING
from bonlib.checks import shown
from bonlib.records import measures
from bonlib.records.findings import Finding, Known, find
from bonlib.records.records import Records
from bonlib.records.ways import verdict, ways_to_spend
from bonlib.tables import Curve, mean_and_error

if TYPE_CHECKING:
    import pandas as pd

MOST_OF_IT = 0.9  # share of the gain of best-of-M for which the number of draws is given
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)


@dataclass(frozen=True, eq=False, repr=False)
class Report:
    """What best-of-N makes of somebody's responses, and what is wrong with them.

    Attributes:
        records: what it is about.
        curve: of best-of-N, over the prompts with enough draws.
        tables: by name: curve (a row an N), prompts, responses, worth (quantiles over prompts), length (the reward's
            rank by the length's), agreement (the second score's rank by the reward's), votes (the majority of k), rules
            (what each way to spend draws makes of them), findings, and bad, the rows kept apart.
        findings: what was looked for, what matters first.
        summary: the main numbers by name, as JSON takes them.
        kl_from: whether the KL is by log-probabilities or counted, and why.
    """

    records: Records
    curve: Curve
    tables: Mapping[str, pd.DataFrame]
    findings: list[Finding]
    summary: Mapping[str, Any]
    kl_from: str

    def to_json(self) -> dict[str, Any]:
        """Return the summary: numbers, texts, lists and None by name, as `json.dumps` takes them."""
        return json.loads(json.dumps(self.summary))

    def write(self, path: str | Path) -> Path:
        """Write the report as one page, which needs no network, and return its path."""
        from bonlib.draws.segments import replace_file
        from bonlib.records.page import page

        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, page(self).encode())
        return path

    def save(self, folder: str | Path) -> Path:
        """Write the page as report.html, the summary as JSON, the tables as CSV and that of the responses as Parquet.

        Args:
            folder: made if it is not there; files of these names are replaced.

        Returns:
            The path of the page.
        """
        folder = Path(folder)
        path = self.write(folder / "report.html")
        (folder / "summary.json").write_text(json.dumps(self.summary, indent=1, ensure_ascii=False) + "\n")
        for name, table in self.tables.items():
            if name == "responses":
                table.to_parquet(folder / "responses.parquet", index=False)
            else:
                table.to_csv(folder / f"{name}.csv", index=table.index.name is not None)
        return path

    @property
    def verdict(self) -> str:
        """Which way to spend draws would have served the scores best, in words; empty if there is one draw."""
        return verdict(self.summary["rules"], self.summary["reward"]) if "rules" in self.summary else ""

    def _milestones(self) -> pd.DataFrame:
        shown = ("reward", "reward_se", "control", "win_rate", "kl", "gold", "gold_se", "gold_best", "right", "solved")
        table = self.curve.milestones()
        return table[[name for name in shown if name in table]]

    def __repr__(self) -> str:
        lines = [repr(self.records), self._milestones().to_string(float_format="{:.3f}".format, na_rep="–")]
        lines += [self.verdict] if self.verdict else []
        lines += [f"- {finding.name}: {finding.says}" for finding in self.findings if finding.matters]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        table = self._milestones().to_html(float_format="{:.3f}".format, na_rep="–")
        findings = "".join(f"<li>{escape(each.says)}</li>" for each in self.findings if each.matters)
        return f"<p>{escape(repr(self.records))}</p>{table}<p>{escape(self.verdict)}</p><ul>{findings}</ul>"


def report(records: Records, *, most: int | None = None) -> Report:
    """Return what best-of-N makes of responses with scores, and what is wrong with them.

    Args:
        records: with a score, or with whether each response is right, which is then the score.
        most: M, the largest N of the curve, of which prompts with fewer draws are left out; if None, what nine of ten
            prompts have, or 4,096.

    Raises:
        ValueError: if there is no response or no score, or no prompt has so many draws.
    """
    if not len(records):
        first = f", the first because {records.bad['reason'].iloc[0]}" if len(records.bad) else ""
        raise ValueError(
            f"{shown(records.source)} has no row that can be used; {len(records.bad)} were kept apart{first}: name the "
            "columns, or repair the file"
        )
    if not records.scores and records.correct is not None:
        records = replace(records, scores={"correct": records.correct.astype(np.float64)})
    most = measures.draws_of_most(records) if most is None else most
    texts = measures.numbered(records)
    table = measures.responses_table(records, texts)
    measured = measures.measure(records, most, texts)
    curve = measured.curve
    most = int(curve.table.index[-1])
    curve.table["kl_bound"] = kl_bound(curve.table.index.to_numpy())
    findings = find(Known(records, table, texts, most))
    ranks = ((table["mid_rank"] - 0.5) / records.counts[records.prompt]).to_numpy()
    lengths = measures.rank_shares(records, records.lengths)
    prompts = _prompts(records, table, measured)
    prompts["length_correlation"] = measures.rank_correlation(records, ranks, lengths)
    tables = {
        "curve": curve.table,
        "worth": _worth(prompts),
        "prompts": prompts,
        "responses": table,
        "length": measures.by_rank(records, lengths, ranks),
    }
    if len(records.scores) > 1:
        gold = measures.rank_shares(records, list(records.scores.values())[1])
        prompts["agreement"] = measures.rank_correlation(records, ranks, gold)
        tables["agreement"] = measures.by_rank(records, ranks, gold)
    if (votes := measures.votes(records, measured.prompts, most)) is not None:
        tables["votes"] = votes
    if (ways := ways_to_spend(records, measured)) is not None:
        tables["rules"] = ways.table
    tables["findings"] = _of_findings(findings)
    tables["bad"] = records.bad
    summary = _summary(records, measured, findings, tables, None if ways is None else ways.summary)
    return Report(records, curve, tables, findings, summary, measured.kl_from)


def _prompts(records: Records, table: pd.DataFrame, measured: measures.Measured) -> pd.DataFrame:
    """A row a prompt: how many draws it has, what they gain, and with how many of them."""
    import pandas as pd

    reward = measured.curve.by_prompt["reward"]
    gain = reward[:, -1] - reward[:, 0]
    gains = gain > ROUNDING * np.abs(reward[:, -1])
    share = (reward[gains] - reward[gains, :1]) / gain[gains, None]
    found = pd.DataFrame(
        {
            "prompt": records.prompts,
            "draws": records.counts,
            "different": np.bincount(records.prompt, 1 / table["copies"]).round().astype(int),
            "mean": np.bincount(records.prompt, records.reward) / records.counts,
            "best": np.maximum.reduceat(records.reward, np.cumsum(records.counts) - records.counts),
            "in_curve": np.isin(np.arange(len(records.prompts)), measured.prompts),
        }
    )
    ns = measured.curve.table.index.to_numpy()
    found.loc[measured.prompts, "gain"] = gain
    found.loc[measured.prompts[gains], "enough"] = ns[(share >= MOST_OF_IT).argmax(axis=1)]
    return found.rename_axis("number")


def _worth(prompts: pd.DataFrame) -> pd.DataFrame:
    """Quantiles over the prompts of the curve: the gain of best-of-M, and the N for most of it."""
    quantiles = prompts.loc[prompts["in_curve"], ["gain", "enough"]].quantile(list(QUANTILES))
    return quantiles.rename_axis("quantile")


def _of_findings(findings: list[Finding]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame([{**asdict(finding), "examples": "\n".join(finding.examples)} for finding in findings])


def _summary(
    records: Records,
    measured: measures.Measured,
    findings: list[Finding],
    tables: Mapping[str, pd.DataFrame],
    rules: dict[str, Any] | None,
) -> dict[str, Any]:
    """The main numbers; what is unknown is None."""
    table, prompts = measured.curve.table, tables["prompts"]
    last = table.iloc[-1]
    gain = mean_and_error("gain", prompts.loc[measured.prompts, "gain"].to_numpy())
    reached = (table["reward"] - table["reward"].iloc[0]) >= MOST_OF_IT * (last["reward"] - table["reward"].iloc[0])
    found: dict[str, Any] = {
        "source": records.source,
        "responses": len(records),
        "rows_kept_apart": len(records.bad),
        "prompts": len(records.prompts),
        "prompts_in_curve": len(measured.prompts),
        "draws": table.index[-1],
        "reward": next(iter(records.scores)),
        "kl_from": measured.kl_from,
        **gain,
        "enough": table.index[reached.to_numpy().argmax()] if gain["gain"] > 0 else None,
        "enough_by_prompt": tables["worth"]["enough"].to_dict(),
        "gain_by_prompt": tables["worth"]["gain"].to_dict(),
        **_mean_of_known("length_correlation", prompts["length_correlation"]),
        "curve": measured.curve.milestones().reset_index().to_dict("records"),
        "findings": {
            finding.name: {
                "value": finding.value,
                "matters": finding.matters,
                "rows": finding.rows,
                "prompts": finding.prompts,
            }
            for finding in findings
        },
    }
    if "gold" in table:
        gold = measured.curve.by_prompt["gold"]
        peak = int(table["gold"].to_numpy().argmax())
        found["gold"] = {
            "score": list(records.scores)[1],
            "peak_n": table.index[peak],
            "peak": table["gold"].iloc[peak],
            **mean_and_error("fall", gold[:, peak] - gold[:, -1]),
            **mean_and_error("gain", gold[:, -1] - gold[:, 0]),
            "best_gain": last["gold_best"] - table["gold_best"].iloc[0],
            **_mean_of_known("rank_correlation", prompts["agreement"]),
        }
    if "votes" in tables:
        found["majority"] = tables["votes"].reset_index().to_dict("records")
    if rules is not None:
        found["rules"] = rules | {"table": tables["rules"].reset_index().to_dict("records")}
    return _plain(found)


def _mean_of_known(name: str, values: pd.Series) -> dict[str, float]:
    known = values.dropna().to_numpy()
    return mean_and_error(name, known) if len(known) else {name: np.nan, f"{name}_se": np.nan}


def _plain(value: Any) -> Any:
    """The same in Python's own numbers, by names that are texts, None for what is not finite."""
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and not np.isfinite(value) else value
