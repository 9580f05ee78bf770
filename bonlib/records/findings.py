"""What is wrong with the data, or was looked for and not found: each a number, examples and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bonlib.cdf import ROUNDING
from bonlib.checks import LOG_PROB_SLACK, shown
from bonlib.records.measures import Rows, probability_seen, rank_correlation, rank_shares
from bonlib.records.records import Records

if TYPE_CHECKING:
    import pandas as pd

# From where on something is said to matter; below, it is listed as looked for.
REPEATED = 0.05  # share of the draws that repeat another: of 20 draws, 19 are different ones
TIED = 0.05  # share of the pairs whose winner is left to chance, which takes as much from the win rate's lead, halved
FOLLOWS_LENGTH = 0.3  # rank correlation; its square, a tenth, is what length says of the reward's rank
SATURATED = 0.1  # share of the rewards at one end: in the tenth that best-of-10 chooses from, all are equal
AT_ONCE = 0.5  # share of a prompt's draws that are its best: from the second draw on there is little to gain
CONSTANT = 0.05  # share of the prompts with one reward only: they pull every gain down by as much
FEW = 3  # examples


@dataclass(frozen=True)
class Finding:
    """Something about the data that a reader of the report should know.

    Attributes:
        name: in a few words.
        value: the number that decides whether it matters, a share or a correlation.
        matters: whether it does; if not, it was looked for, and is small or absent.
        says: what was found, in a sentence or two.
        remedy: what to do about it.
        rows: how many responses it is about.
        prompts: how many prompts.
        examples: a few, shortened.
    """

    name: str
    value: float
    matters: bool
    says: str
    remedy: str
    rows: int = 0
    prompts: int = 0
    examples: tuple[str, ...] = ()


class Known(NamedTuple):
    """What findings are made from.

    Attributes:
        records: the data.
        table: of `bonlib.records.measures.responses_table`.
        texts: of `bonlib.records.measures.numbered`.
        most: draws up to which the curve goes.
    """

    records: Records
    table: pd.DataFrame
    texts: Rows
    most: int


def find(known: Known) -> list[Finding]:
    """Return everything that was looked for, what matters first."""
    checks = (
        _kept_apart,
        _fewer_draws,
        _repeated_prompts,
        _nothing_to_choose,
        _empty,
        _repeated_responses,
        _unsteady,
        _ties,
        _constant,
        _saturated,
        _follows_length,
        _log_probs,
    )
    return sorted((check(known) for check in checks), key=lambda finding: not finding.matters)


def percent(share: float) -> str:
    """Return a share as a percentage of two digits."""
    if 0 < share < 1e-4:
        return "less than 0.01 %"
    return f"{100 * share:.0f} %" if share >= 0.1 or share == 0 else f"{100 * share:.2g} %"


def _kept_apart(known: Known) -> Finding:
    bad, kept = known.records.bad, len(known.records)
    reasons = "; ".join(f"{reason} ({times:,})" for reason, times in bad["reason"].value_counts().head(FEW).items())
    return Finding(
        "rows kept apart",
        len(bad) / (len(bad) + kept),
        len(bad) > 0,
        f"{len(bad):,} of {len(bad) + kept:,} rows could not be used: {reasons}."
        if len(bad)
        else "Every row could be used; no score is missing or not finite.",
        "They are in the table of bad rows. Repair them, or ask why they fail: if hard prompts fail oftener, the "
        "rest is not like all.",
        rows=len(bad),
        examples=tuple(f"{row.place}: {row.reason}" for row in bad.head(FEW).itertuples()),
    )


def _fewer_draws(known: Known) -> Finding:
    records, most = known.records, known.most
    which = np.flatnonzero(records.counts < most)
    return Finding(
        "prompts with fewer draws",
        len(which) / len(records.prompts),
        len(which) > 0,
        f"{len(which):,} of {len(records.prompts):,} prompts have fewer than {most} draws. They are not in the curve, "
        f"which is of the same prompts at every N."
        if len(which)
        else f"Every prompt has {most} draws at least.",
        f"Draw the missing ones, or ask for a shorter curve of all prompts, most={records.counts.min()}.",
        rows=int(records.counts[which].sum()),
        prompts=len(which),
        examples=_prompts(records, which, records.counts),
    )


def _repeated_prompts(known: Known) -> Finding:
    import pandas as pd

    records = known.records
    plain = pd.Series([" ".join(str(prompt).split()).casefold() for prompt in records.prompts])
    alike = plain.duplicated(keep=False).to_numpy()
    # In the order of the file, one run of rows a prompt; a file that goes round all prompts has several of all.
    in_file = records.prompt[np.argsort(records.rows, kind="stable")]
    starts = in_file[np.flatnonzero(np.diff(in_file, prepend=-1))]
    runs = np.bincount(starts, minlength=len(records.prompts))
    apart = (runs > 1) & (np.median(runs) == 1)
    which = np.flatnonzero(alike | apart)
    return Finding(
        "prompts that repeat",
        len(which) / len(records.prompts),
        len(which) > 0,
        f"{np.count_nonzero(alike):,} prompts differ from another in white space or case only, and "
        f"{np.count_nonzero(apart):,} come again in another place of the file, where their draws were put together."
        if len(which)
        else "No prompt comes again elsewhere in the file, or differs from another in white space or case only.",
        "Errors count prompts as independent: keep one of each, or put their draws together.",
        rows=int(records.counts[which].sum()),
        prompts=len(which),
        examples=_prompts(records, which[np.argsort(plain.to_numpy()[which], kind="stable")]),
    )


def _nothing_to_choose(known: Known) -> Finding:
    alone = np.flatnonzero(known.records.counts < 2)
    return Finding(
        "prompts with one draw",
        len(alone) / len(known.records.prompts),
        known.most < 2,
        f"{len(alone):,} of {_many(len(known.records.prompts), 'prompt')} have one draw, and nothing to choose from."
        if len(alone)
        else "Every prompt has two draws or more.",
        "Best-of-N needs several responses to the same prompt: draw more, or name the column of the prompt.",
        rows=len(alone),
        prompts=len(alone),
        examples=_prompts(known.records, alone),
    )


def _empty(known: Known) -> Finding:
    records = known.records
    blank = np.array([not text.strip() for text in records.responses], dtype=bool)
    share, about = float(blank.mean()), np.unique(records.prompt[blank])
    return Finding(
        "empty responses",
        share,
        share >= REPEATED,
        f"{int(blank.sum()):,} of {len(records):,} responses ({percent(share)}) have no word in them."
        if blank.any()
        else "Every response has a word in it.",
        "Look whether they were cut, or written to another column; a judge of texts says little of them.",
        rows=int(blank.sum()),
        prompts=len(about),
        examples=_prompts(records, about),
    )


def _repeated_responses(known: Known) -> Finding:
    records, copies = known.records, known.table["copies"].to_numpy()
    extra = int(np.round((1 - 1 / copies).sum()))
    share = extra / len(records)
    again = np.flatnonzero(copies > 1)
    return Finding(
        "repeated responses",
        share,
        share >= REPEATED,
        f"{extra:,} of {len(records):,} responses ({percent(share)}) repeat another of their prompt word by word."
        if extra
        else "No response comes twice to one prompt.",
        "That is as it should be if they were drawn independently: a likely response comes again, and the estimates "
        "count it so. If they were copied, drop the copies. More variety needs a higher temperature.",
        rows=extra,
        prompts=len(np.unique(records.prompt[again])),
        examples=_responses(known, again[np.argsort(-copies[again], kind="stable")], copies, "times"),
    )


def _unsteady(known: Known) -> Finding:
    import pandas as pd

    records = known.records
    again = np.flatnonzero(known.table["copies"] > 1)
    groups = pd.Series(records.reward[again]).groupby(
        records.prompt[again] * (known.texts.max() + 1) + known.texts[again]
    )
    least, most = (groups.transform(end).to_numpy() for end in ("min", "max"))
    differ = most - least > ROUNDING * np.maximum(np.abs(least), np.abs(most))
    share = np.count_nonzero(differ) / max(len(again), 1)
    return Finding(
        "one response, several rewards",
        share,
        bool(differ.any()),
        f"{np.count_nonzero(differ):,} of {len(again):,} repeated responses have another reward than their copies, by "
        f"up to {(most - least).max():.3g}."
        if differ.any()
        else "Copies of a response have the same reward.",
        "The reward has noise, or hangs on something that the file does not show, and best-of-N chooses lucky noise: "
        "score the same text once, or average.",
        rows=int(np.count_nonzero(differ)),
        prompts=len(np.unique(records.prompt[again[differ]])),
        examples=_responses(known, again[differ], (most - least)[differ], "apart", aligned=True),
    )


def _ties(known: Known) -> Finding:
    records, table = known.records, known.table
    pairs = max(int((records.counts * (records.counts - 1)).sum()), 1)
    tied = int((table["tied"] - 1).sum())
    beyond = max(tied - int((table["copies"] - 1).sum()), 0) / pairs
    values = len(np.unique(records.reward))
    few = f" There are {values} different rewards in all." if values <= min(20, len(records) // 5) else ""
    which = np.unique(records.prompt[table["tied"] > 1])
    return Finding(
        "ties",
        beyond,
        beyond >= TIED,
        f"{percent(tied / pairs)} of the pairs of draws of a prompt have the same reward; {percent(beyond)} are pairs "
        f"of different responses.{few}"
        if tied
        else "No two draws of a prompt have the same reward.",
        "Among equal rewards best-of-N chooses at random here, and a tie is half a win. A finer reward, or a second one"
        " to break ties, tells more responses apart.",
        rows=int(np.count_nonzero(table["tied"] > 1)),
        prompts=len(which),
        examples=_prompts(records, which),
    )


def _constant(known: Known) -> Finding:
    records = known.records
    flat = np.zeros(len(records.prompts), dtype=bool)
    flat[records.prompt[(known.table["tied"] == records.counts[records.prompt]).to_numpy()]] = True
    which = np.flatnonzero(flat & (records.counts > 1))
    share = len(which) / len(records.prompts)
    return Finding(
        "prompts with one reward only",
        share,
        share >= CONSTANT,
        f"For {len(which):,} of {len(records.prompts):,} prompts ({percent(share)}) all draws have the same reward."
        if len(which)
        else "Every prompt with two draws or more has two different rewards.",
        "Nothing can be gained or learned there: look whether they are too easy, too hard, or not judged at all.",
        rows=int(records.counts[which].sum()),
        prompts=len(which),
        examples=_prompts(records, which),
    )


def _saturated(known: Known) -> Finding:
    records = known.records
    reward = records.reward
    flat = np.bincount(records.prompt, known.table["tied"] == records.counts[records.prompt]) > 0
    several = (records.counts > 2) & ~flat  # of two draws one is always the best; where all are alike, none is
    times = [np.count_nonzero(np.isclose(reward, end, rtol=ROUNDING, atol=0)) for end in (reward.max(), reward.min())]
    ends = [count / len(records) for count in times]
    best = np.bincount(records.prompt, known.table["cdf"] >= 1 - 1e-9) / records.counts
    at_once = np.flatnonzero(several & (best >= AT_ONCE))
    share = len(at_once) / max(int(np.count_nonzero(several)), 1)
    most, least = (f"{end:.4g}".replace("-", "−") for end in (reward.max(), reward.min()))
    return Finding(
        "a reward that saturates",
        max(*ends, share),
        bool(reward.max() > reward.min() and ((max(times) > 1 and max(ends) >= SATURATED) or share >= AT_ONCE)),
        f"{percent(ends[0])} of the rewards are the largest ({most}), {percent(ends[1])} the smallest ({least}). "
        f"For {_many(len(at_once), 'prompt')} ({percent(share)}) at least half of the draws are as good as the best.",
        "There more draws cannot help, or the reward does not see it. Take the score before it is cut off or squeezed "
        "(a logit for a probability), or harder prompts.",
        rows=int(records.counts[at_once].sum()),
        prompts=len(at_once),
        examples=_prompts(records, at_once),
    )


def _follows_length(known: Known) -> Finding:
    records = known.records
    found = rank_correlation(records, rank_shares(records, records.reward), rank_shares(records, records.lengths))
    told = found[np.isfinite(found)]
    mean = float(told.mean()) if len(told) else 0.0
    # Of one prompt, what draws would show if length did not matter.
    error = (
        float(told.std(ddof=1) / np.sqrt(len(told))) if len(told) > 1 else 1 / np.sqrt(max(records.counts.max() - 1, 1))
    )
    unit = "tokens" if records.in_tokens else "characters"
    return Finding(
        "a reward that follows length",
        mean,
        abs(mean) >= FOLLOWS_LENGTH and abs(mean) > 2 * error,
        f"Among the draws of a prompt, reward and length ({unit}) have a rank correlation (Spearman) of {mean:.2f} ± "
        f"{error:.2f} on average.".replace("-", "−")
        if len(told)
        else "No prompt has draws that differ in both length and reward.",
        "Best-of-N then chooses by length as well: see what it does to the length below, and whether the gain is left "
        "among responses of equal length.",
        prompts=int(np.count_nonzero(np.abs(told) >= FOLLOWS_LENGTH)),
    )


def _log_probs(known: Known) -> Finding:
    records, name = known.records, "log-probabilities that cannot be"
    remedy = (
        "They must be summed over the tokens of the response, end token included, in nats, under the law that it was "
        "drawn from (its temperature, its top-p)."
    )
    if records.log_probs is None:
        return Finding(name, 0.0, False, "The file has no log-probabilities: the KL is counted.", remedy)
    log_probs = records.log_probs
    unknown, above = ~np.isfinite(log_probs), log_probs > LOG_PROB_SLACK
    total = probability_seen(records, known.texts)
    beyond = np.flatnonzero(total > 1 + LOG_PROB_SLACK)
    wrong = unknown | above | np.isin(records.prompt, beyond)
    return Finding(
        name,
        float(wrong.mean()),
        bool(wrong.any()),
        f"{np.count_nonzero(unknown):,} log-probabilities are unknown or not finite, {np.count_nonzero(above):,} are "
        f"above 0, and for {_many(len(beyond), 'prompt')} the probabilities of different responses add up to "
        "more than 1."
        if wrong.any()
        else "All are at most 0, and the different responses of a prompt have together no more than probability 1.",
        remedy,
        rows=int(np.count_nonzero(wrong)),
        prompts=len(np.unique(records.prompt[wrong])),
        examples=_prompts(records, beyond, total)
        or _responses(known, np.flatnonzero(wrong), log_probs, "log-probability"),
    )


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' * (count != 1)}"


def _prompts(records: Records, which: NDArray[np.intp], numbers: NDArray[np.generic] | None = None) -> tuple[str, ...]:
    """A few of some prompts, each with its number if there are any."""
    notes = ["" if numbers is None else f" ({numbers[place]:.4g})" for place in which[:FEW]]
    return tuple(f"{shown(records.prompts[place])}{note}" for place, note in zip(which, notes, strict=False))


def _responses(
    known: Known, rows: Iterable[int], numbers: NDArray[np.generic], what: str, *, aligned: bool = False
) -> tuple[str, ...]:
    """A few responses, each once, with the number of its row, or of its place in `rows` if they are aligned."""
    found: dict[tuple[int, int], str] = {}
    for place, row in enumerate(rows):
        key = int(known.records.prompt[row]), int(known.texts[row])
        value = numbers[place if aligned else row]
        found.setdefault(
            key, f"{shown(known.records.responses[row])} ({value:.4g} {what}), row {known.records.rows[row]}"
        )
        if len(found) == FEW:
            break
    return tuple(found.values())
