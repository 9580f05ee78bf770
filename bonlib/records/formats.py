"""Formats that others write.

Each format is a function that looks at the first rows of a file and says what draws a row holds; `FORMATS` lists them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from bonlib.checks import shown
from bonlib.records.columns import (
    IDENTIFIERS,
    USUAL,
    BadRowError,
    Draw,
    Reading,
    Row,
    column_names,
    is_conversation,
    is_number,
    listed,
    plain,
)


@dataclass(frozen=True)
class Format:
    """A format that others write.

    Attributes:
        is_it: whether a file with such columns, and such a first row, is of this format.
        reading: how to read it, from its first rows and the columns that were named for it.
        takes: fields whose columns can be named.
    """

    is_it: Callable[[set[str], Row], bool]
    reading: Callable[[Sequence[Row], Mapping[str, str]], Reading]
    takes: tuple[str, ...] = ()


def lm_eval(rows: Sequence[Row], given: Mapping[str, str]) -> Reading:
    """The harness logs a row a document and filter, with all repeats in it; its metric is often one for all of them."""
    metric, _, chosen = given.get("reward", "").partition(",")
    names = [*rows[0].get("metrics", ()), *(name for name in ("exact_match", "acc", "pass@1") if name in rows[0])]
    metric = metric or (names or [""])[0]
    if metric and metric not in column_names(rows):
        raise ValueError(f"has no metric {metric!r}; it has {', '.join(map(repr, names))}: say reward= one of these")
    chosen = chosen or rows[0].get("filter", "")
    found = [_of_each(row.get(metric), len(_responses_of(row))) for row in rows]
    scored = bool(metric) and all(found)
    binary = scored and all(value in (0, 1) for values in found for value in values)
    taken = {"prompt": "arguments", "response": "resps", "answer": "filtered_resps", "filter": chosen}
    taken["reward"] = metric if scored else f"none: {metric or 'the metric'} is one number for all repeats"
    if binary:
        taken["correct"] = metric

    def draws(row: Row) -> Iterable[Draw]:
        if row.get("filter", "") != chosen:
            taken["filter"] = f"{chosen}; {row.get('filter')} judges the same responses, and is passed over"
            return []
        responses = _responses_of(row)
        if not all(isinstance(response, str) for response in responses):
            raise BadRowError("holds likelihoods of given choices, and no response: it is of no generate_until task")
        nothing = [None] * len(responses)
        answers = _of_each(row.get("filtered_resps"), len(responses)) or nothing
        values = (_of_each(row.get(metric), len(responses)) if scored else None) or nothing
        prompt = _prompt_of(row)
        return [
            Draw(
                prompt,
                response,
                [value] if scored else (),
                answer=None if answer == "[invalid]" else answer,  # as the harness writes where a filter finds none
                correct=value if binary else None,
            )
            for response, answer, value in zip(responses, answers, values, strict=True)
        ]

    return Reading((metric,) if scored else (), draws, taken)


def _responses_of(row: Row) -> list[Any]:
    asked = row.get("resps") or [[]]
    return asked[0] if len(asked) == 1 and isinstance(asked[0], list) else asked


def _of_each(entry: Any, count: int) -> list[Any]:
    """What a row says of each of its repeats, nothing if it says it of all together; it may stand in lists of one."""
    while isinstance(entry, list) and len(entry) == 1:
        entry = entry[0]
    if count == 1:
        return [entry]
    return entry if isinstance(entry, list) and len(entry) == count else []


def _prompt_of(row: Row) -> Any:
    """The first argument of the first request: a text, or a conversation, which the harness writes as JSON."""
    prompt: Any = row.get("arguments")
    while isinstance(prompt, dict | list) and prompt:
        prompt = next(iter(prompt.values())) if isinstance(prompt, dict) else prompt[0]
    if isinstance(prompt, str) and prompt.startswith('[{"role"'):
        return json.loads(prompt)
    return prompt if prompt is not None else row.get("doc_id")


def preference(rows: Sequence[Row], given: Mapping[str, str]) -> Reading:
    """A row is a pair of responses; one that is in several pairs is as many draws."""
    there = column_names(rows)
    pairs = [(f"{what}_chosen", f"{what}_rejected") for what in ("score", "reward", "rating")]
    pairs += [(f"chosen_{what}", f"rejected_{what}") for what in ("score", "reward", "rating")]
    scored = next((pair for pair in pairs if there.issuperset(pair)), None)
    names = [name for name in USUAL["prompt"] if name not in IDENTIFIERS]
    prompt = given.get("prompt") or next((name for name in names if name in there), None)
    if prompt is not None and prompt not in there:
        raise ValueError(f"has no column {prompt!r}; it has {listed(rows)}: say prompt= one of these")

    def draws(row: Row) -> Iterable[Draw]:
        both = [row.get("chosen"), row.get("rejected")]
        asked, said = _split_pair(None if prompt is None else row.get(prompt), *both)
        scores = [row.get(name) for name in scored] if scored else [1.0, 0.0]
        return [Draw(asked, response, [score]) for response, score in zip(said, scores, strict=True)]

    taken = {"prompt": prompt or "what both have in common", "response": "chosen, rejected"}
    taken["reward"] = ", ".join(scored) if scored else "1 for chosen, 0 for rejected"
    return Reading(("score" if scored else "preferred",), draws, taken)


def _split_pair(prompt: Any, chosen: Any, rejected: Any) -> tuple[Any, tuple[Any, Any]]:
    """The prompt of a pair and both responses: some leave the prompt in both."""
    if is_conversation(chosen) and is_conversation(rejected):
        if len(chosen) > 1 and len(rejected) > 1:
            if chosen[:-1] != rejected[:-1]:
                raise BadRowError("has a chosen and a rejected conversation that differ before the last message")
            return chosen[:-1], (chosen[-1:], rejected[-1:])
        return prompt, (chosen, rejected)
    if prompt is not None or not (isinstance(chosen, str) and isinstance(rejected, str)):
        return prompt, (chosen, rejected)
    same = sum(1 for _ in takewhile(lambda two: two[0] == two[1], zip(chosen, rejected, strict=False)))
    turn = chosen.rfind("\n\nAssistant:", 0, same)  # as in HH-RLHF: a response may begin alike
    if turn >= 0:
        same = turn + len("\n\nAssistant:")
    elif same and chosen[same - 1] == " ":
        same -= 1  # as TRL cuts it
    return chosen[:same], (chosen[same:], rejected[same:])


def ultrafeedback(rows: Sequence[Row], given: Mapping[str, str]) -> Reading:
    """A row a prompt, with a list of completions that carry their scores; older ones have ratings by aspect only."""
    some = [completion for row in rows for completion in row["completions"] or () if isinstance(completion, dict)]
    names = [name for name in ("overall_score", "fine-grained_score") if any(name in one for one in some)]
    score = given.get("reward") or (names or ["ratings"])[0]
    if "reward" in given and not any(score in completion for completion in some):
        raise ValueError(f"has no score {score!r}; its completions have {listed(some)}: say reward= one of these")

    def draws(row: Row) -> Iterable[Draw]:
        found = []
        for completion in row.get("completions") or ():
            value = completion.get(score) if names or given else _mean_rating(completion)
            found.append(Draw(row.get("instruction"), completion.get("response"), [value]))
        if not found:
            raise BadRowError("has no completions: the list is empty")
        return found

    taken = {"prompt": "instruction", "response": "completions", "reward": score if names or given else "mean rating"}
    return Reading((score,), draws, taken)


def _mean_rating(completion: Row) -> float | None:
    aspects = (completion.get("annotations") or {}).values()
    ratings = [aspect.get("Rating") for aspect in aspects if isinstance(aspect, dict)]
    numbers = [float(rating) for rating in ratings if is_number(rating)]  # N/A where an aspect does not apply
    return sum(numbers) / len(numbers) if numbers else None


def human_eval(rows: Sequence[Row], given: Mapping[str, str]) -> Reading:
    """A row a program, with what its tests said."""
    there = column_names(rows)
    prompt = "prompt" if "prompt" in there else "task_id"
    correct = "passed" if "passed" in there else "result"

    def draws(row: Row) -> Iterable[Draw]:
        passed = row.get(correct)
        if isinstance(passed, str) and passed.startswith("failed: "):
            passed = False
        return (Draw(row.get(prompt), row.get("completion"), correct=passed),)

    return Reading((), draws, {"prompt": prompt, "response": "completion", "correct": correct})


def messages(rows: Sequence[Row], given: Mapping[str, str]) -> Reading:
    """A row a conversation, whose last message is the response; scores by their usual names."""

    def parted(row: Row) -> Row:
        said = row.get("messages")
        if not is_conversation(said) or len(said) < 2:
            raise BadRowError(f"has messages {shown(said)}; it must be a list of at least two with role and content")
        return {**row, "prompt": said[:-1], "response": said[-1:]}

    some = [parted(row) for row in rows if is_conversation(row.get("messages")) and len(row["messages"]) > 1]
    found = plain(some or [{"prompt": "", "response": ""}], given)
    return Reading(found.scores, lambda row: found.draws(parted(row)), found.taken | {"prompt": "messages"})


PLAIN = tuple(USUAL)
SCORED = tuple(name for name in USUAL if name not in ("prompt", "response"))
FORMATS: dict[str, Format] = {
    "lm-eval": Format(  # lm-evaluation-harness with `--log_samples`
        lambda columns, row: {"arguments", "resps", "filtered_resps"} <= columns,
        lm_eval,
        ("reward",),
    ),
    "preference": Format(  # of TRL and OpenRLHF
        lambda columns, row: {"chosen", "rejected"} <= columns,
        preference,
        ("prompt",),
    ),
    "ultrafeedback": Format(
        lambda columns, row: {"instruction", "completions"} <= columns and _first_kind(row["completions"]) is dict,
        ultrafeedback,
        ("reward",),
    ),
    "human-eval": Format(  # and its like, results
        lambda columns, row: {"task_id", "completion"} <= columns and bool({"passed", "result"} & columns),
        human_eval,
    ),
    "messages": Format(
        lambda columns, row: "messages" in columns and not columns & {*USUAL["response"]},
        messages,
        SCORED,
    ),
    "plain": Format(  # as TRL's prompt–completion data, what OpenRLHF scores, and AlpacaEval's outputs
        lambda columns, row: True,
        plain,
        PLAIN,
    ),
}


def recognised(rows: Sequence[Row], given: Mapping[str, str]) -> str:
    """Return the name of the first format that a file's first rows are of, and which takes the columns named for it."""
    columns = column_names(rows)
    return next(
        name for name, form in FORMATS.items() if form.is_it(columns, rows[0]) and given.keys() <= {*form.takes}
    )


def _first_kind(value: object) -> type:
    return type(value[0]) if isinstance(value, list) and value else type(None)
