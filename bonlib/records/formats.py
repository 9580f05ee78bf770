"""What the columns of anybody's table mean: the usual names, and the formats that others write.

Each format is a function that looks at the first rows of a file and says what draws a row holds; `FORMATS` lists them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat, takewhile
from typing import Any, NamedTuple, TypeGuard

from bonlib.checks import shown

Row = Mapping[str, Any]
Messages = list[dict[str, Any]]

# What columns are usually called, the likeliest first. Identifiers stand in for a prompt that is not there. Columns
# called answer or target are left out: in most files they hold the right one, not what a response said.
IDENTIFIERS = ("task_id", "prompt_id", "question_id", "problem_id", "doc_id")
USUAL: dict[str, tuple[str, ...]] = {
    "prompt": ("prompt", "instruction", "question", "query", "input", "problem", *IDENTIFIERS),
    "response": (
        *("response", "responses", "completion", "completions", "output", "outputs", "generation", "generations"),
        *("samples", "candidates", "generated_text", "model_output", "solution"),
    ),
    "reward": (
        *("reward", "rewards", "score", "scores", "reward_score", "rm_score", "reward_model_score", "overall_score"),
        *("proxy", "rating", "ratings"),
    ),
    "gold": ("gold", "gold_reward", "gold_rewards", "gold_score", "gold_scores", "true_reward"),
    "log_prob": (
        *("log_prob", "log_probs", "logprob", "logprobs", "cumulative_logprob", "cumulative_logprobs"),
        *("log_probability", "sequence_logprob"),
    ),
    "length": (
        *("length", "lengths", "num_tokens", "n_tokens", "completion_tokens", "response_length", "response_tokens"),
        "token_count",
    ),
    "answer": ("extracted_answer", "extracted_answers", "predicted_answer", "parsed_answer", "model_answer", "pred"),
    "correct": ("correct", "is_correct", "passed", "pass", "success", "label"),
}
RIGHT = {"true", "pass", "passed", "correct", "right", "yes", "success", "1", "1.0"}
WRONG = {"false", "fail", "failed", "incorrect", "wrong", "no", "failure", "error", "timed out", "timeout", "0", "0.0"}


class BadRowError(ValueError):
    """A row, or a draw in it, that is kept apart; its message goes on after the place of the row."""


class Draw(NamedTuple):
    """One response as a file has it, not checked yet; None is what it does not say."""

    prompt: Any
    response: Any
    scores: Iterable[Any] = ()
    log_prob: Any = None
    length: Any = None
    answer: Any = None
    correct: Any = None


@dataclass(frozen=True)
class Reading:
    """How the rows of a file are read.

    Attributes:
        scores: names of the scores that each draw has.
        draws: of a row.
        taken: what was taken for what, by name of the field.
    """

    scores: tuple[str, ...]
    draws: Callable[[Row], Iterable[Draw]]
    taken: dict[str, str]


@dataclass(frozen=True)
class Format:
    """A format that others write.

    Attributes:
        about: who writes it, with which columns, in one line.
        is_it: whether a file with such columns, and such a first row, is of this format.
        reading: how to read it, from its first rows and the columns that were named for it.
        takes: fields whose columns can be named.
    """

    about: str
    is_it: Callable[[set[str], Row], bool]
    reading: Callable[[Sequence[Row], Mapping[str, str]], Reading]
    takes: tuple[str, ...] = ()


# Plain tables: a row a response, or a list a prompt.


def plain(rows: Sequence[Row], given: Mapping[str, str]) -> Reading:
    """Columns by their usual names, or by those given; where the response is a list, so are scores and the rest."""
    chosen = {field: column for field in USUAL if (column := _column(field, rows, given)) is not None}
    for needed in ("response", "prompt"):
        if needed not in chosen:
            raise ValueError(
                f"has no {needed}: none of {', '.join(USUAL[needed])} is among its columns, {_listed(rows)}: say "
                f"{needed}=COLUMN"
            )
    prompt, response = chosen["prompt"], chosen["response"]
    scores = tuple(chosen[field] for field in ("reward", "gold") if field in chosen)
    others = [chosen.get(field) for field in ("log_prob", "length", "answer", "correct")]

    def draws(row: Row) -> Iterable[Draw]:
        said, get = row.get(response), row.get
        if isinstance(said, list) and not is_conversation(said):
            if not said:
                raise BadRowError(f"has no {response}: the list is empty")
            columns = [_listed_beside(row, name, len(said), response) for name in (*scores, *filter(None, others))]
            lists = iter(columns)
            of_scores = [next(lists) for _ in scores]
            rest = [repeat(None) if name is None else next(lists) for name in others]
            each = zip(*of_scores, strict=True) if scores else repeat(())
            return map(Draw, repeat(get(prompt)), said, each, *rest)
        return (
            Draw(
                get(prompt),
                said,
                [get(name) for name in scores],
                *[None if name is None else get(name) for name in others],
            ),
        )

    return Reading(scores, draws, chosen)


def _column(field: str, rows: Sequence[Row], given: Mapping[str, str]) -> str | None:
    """The column of a field: the one that was named for it, or one with a usual name, best with entries that can be it.

    What a response needs is taken at its name, and bad entries are said to be bad; anything else may mean other things.
    """
    there = _columns(rows)
    if field in given:
        if given[field] not in there:
            raise ValueError(f"has no column {given[field]!r}; it has {_listed(rows)}: say {field}= one of these")
        return given[field]
    fits = {"prompt": _is_said, "response": _is_said, "answer": _is_said, "correct": _is_truth}.get(field, _is_number)
    usual = [name for name in USUAL[field] if name in there and name not in given.values()]
    found = [name for name in usual if any(fits(row.get(name)) for row in rows)]
    return next(iter(found or (usual if field in ("prompt", "response", "reward") else [])), None)


def _listed_beside(row: Row, name: str, count: int, response: str) -> list[Any]:
    """A column of a wide row, with as many entries as there are responses."""
    entries = row.get(name)
    if not isinstance(entries, list) or len(entries) != count:
        what = f"{len(entries)} {name}" if isinstance(entries, list) else f"{name} {shown(entries)}"
        raise BadRowError(f"has {count} {response} and {what}: it must be a list of as many")
    return entries


# Formats of others.


def lm_eval(rows: Sequence[Row], given: Mapping[str, str]) -> Reading:
    """The harness logs a row a document and filter, with all repeats in it; its metric is often one for all of them."""
    metric, _, chosen = given.get("reward", "").partition(",")
    names = [*rows[0].get("metrics", ()), *(name for name in ("exact_match", "acc", "pass@1") if name in rows[0])]
    metric = metric or (names or [""])[0]
    if metric and metric not in _columns(rows):
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
    there = _columns(rows)
    pairs = [(f"{what}_chosen", f"{what}_rejected") for what in ("score", "reward", "rating")]
    pairs += [(f"chosen_{what}", f"rejected_{what}") for what in ("score", "reward", "rating")]
    scored = next((pair for pair in pairs if there.issuperset(pair)), None)
    names = [name for name in USUAL["prompt"] if name not in IDENTIFIERS]
    prompt = given.get("prompt") or next((name for name in names if name in there), None)
    if prompt is not None and prompt not in there:
        raise ValueError(f"has no column {prompt!r}; it has {_listed(rows)}: say prompt= one of these")

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
        raise ValueError(f"has no score {score!r}; its completions have {_listed(some)}: say reward= one of these")

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
    numbers = [float(rating) for rating in ratings if _is_number(rating)]  # N/A where an aspect does not apply
    return sum(numbers) / len(numbers) if numbers else None


def human_eval(rows: Sequence[Row], given: Mapping[str, str]) -> Reading:
    """A row a program, with what its tests said."""
    there = _columns(rows)
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
    "lm-eval": Format(
        "lm-evaluation-harness, `--log_samples`: doc, arguments, resps, filtered_resps; repeats are the draws",
        lambda columns, row: {"arguments", "resps", "filtered_resps"} <= columns,
        lm_eval,
        ("reward",),
    ),
    "preference": Format(
        "TRL and OpenRLHF, preferences: chosen and rejected, as texts or conversations, with prompt or without",
        lambda columns, row: {"chosen", "rejected"} <= columns,
        preference,
        ("prompt",),
    ),
    "ultrafeedback": Format(
        "UltraFeedback: instruction, and completions, a list with response and overall_score",
        lambda columns, row: {"instruction", "completions"} <= columns and _first_kind(row["completions"]) is dict,
        ultrafeedback,
        ("reward",),
    ),
    "human-eval": Format(
        "HumanEval and its like, results: task_id, completion, passed or result",
        lambda columns, row: {"task_id", "completion"} <= columns and bool({"passed", "result"} & columns),
        human_eval,
    ),
    "messages": Format(
        "conversations: messages, the last of which is the response, and scores by their usual names",
        lambda columns, row: "messages" in columns and not columns & {*USUAL["response"]},
        messages,
        SCORED,
    ),
    "plain": Format(
        "a row a response, or a list a prompt: columns by their usual names, as TRL's prompt–completion data, what "
        "OpenRLHF scores, and AlpacaEval's outputs have them",
        lambda columns, row: True,
        plain,
        PLAIN,
    ),
}


def recognised(rows: Sequence[Row], given: Mapping[str, str]) -> str:
    """Return the name of the first format that a file's first rows are of, and which takes the columns named for it."""
    columns = _columns(rows)
    return next(
        name for name, form in FORMATS.items() if form.is_it(columns, rows[0]) and given.keys() <= {*form.takes}
    )


def is_conversation(value: object) -> TypeGuard[Messages]:
    """Whether a value is a list of messages, each with a role."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict) and "role" in value[0]


def _first_kind(value: object) -> type:
    return type(value[0]) if isinstance(value, list) and value else type(None)


def _columns(rows: Sequence[Row]) -> set[str]:
    return {name for row in rows for name in row}


def _listed(rows: Sequence[Row]) -> str:
    return ", ".join(map(repr, dict.fromkeys(name for row in rows for name in row)))


def _is_said(value: object) -> bool:
    return value not in (None, "", [])


def _is_number(value: Any) -> TypeGuard[Any]:
    try:
        float(value[0] if isinstance(value, list) and value else value)
    except (TypeError, ValueError):
        return False
    return True


def _is_truth(value: Any) -> bool:
    try:
        return truth(value[0] if isinstance(value, list) and value else value) is not None
    except BadRowError:
        return False


def truth(value: object) -> bool:
    """Return whether an entry says right or wrong: True, 1, "pass" and their like.

    Raises:
        BadRowError: if it says neither.
    """
    said = value.strip().lower() if isinstance(value, str) else value
    if isinstance(said, int | float) and said in (0, 1):
        return bool(said)
    if isinstance(said, str) and said in RIGHT | WRONG:
        return said in RIGHT
    raise BadRowError(f"has correct {shown(value)}; it must be true or false, 1 or 0, pass or fail")
