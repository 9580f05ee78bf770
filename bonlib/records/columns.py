"""What the columns of anybody's table mean: their usual names, and what is taken for what in a plain table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
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


def plain(rows: Sequence[Row], given: Mapping[str, str]) -> Reading:
    """Columns by their usual names, or by those given; where the response is a list, so are scores and the rest."""
    chosen = {field: column for field in USUAL if (column := column_of(field, rows, given)) is not None}
    for needed in ("response", "prompt"):
        if needed not in chosen:
            raise ValueError(
                f"has no {needed}: none of {', '.join(USUAL[needed])} is among its columns, {listed(rows)}: say "
                f"{needed}=COLUMN"
            )
    prompt, response = chosen["prompt"], chosen["response"]
    # What is not needed is not guessed, either, where it is no list beside a list of responses, or one beside a text.
    wide = any(_is_list(row.get(response)) for row in rows)
    for field in chosen.keys() - given.keys() - {"prompt", "response", "reward"}:
        if not any(_is_list(row.get(chosen[field])) == wide for row in rows):
            del chosen[field]
    more = "input" if prompt == "instruction" and "prompt" not in given and "input" in column_names(rows) else None
    scores = tuple(chosen[field] for field in ("reward", "gold") if field in chosen)
    others = [chosen.get(field) for field in ("log_prob", "length", "answer", "correct")]

    def draws(row: Row) -> Iterable[Draw]:
        said, get = row.get(response), row.get
        asked = get(prompt) if more is None or not get(more) else f"{get(prompt)}\n\n{get(more)}"
        if _is_list(said):
            if not said:
                raise BadRowError(f"has no {response}: the list is empty")
            columns = [_listed_beside(row, name, len(said), response) for name in (*scores, *filter(None, others))]
            lists = iter(columns)
            of_scores = [next(lists) for _ in scores]
            rest = [repeat(None) if name is None else next(lists) for name in others]
            each = zip(*of_scores, strict=True) if scores else repeat(())
            return map(Draw, repeat(asked), said, each, *rest)
        return (
            Draw(
                asked,
                said,
                [get(name) for name in scores],
                *[None if name is None else get(name) for name in others],
            ),
        )

    return Reading(scores, draws, chosen | ({"prompt": f"{prompt}, {more}"} if more else {}))


def column_of(field: str, rows: Sequence[Row], given: Mapping[str, str]) -> str | None:
    """Return the column of a field: the one named for it, or one of a usual name, best with entries that can be it.

    What a response needs is taken at its name, and bad entries are said to be bad; anything else may mean other things.
    """
    there = column_names(rows)
    if field in given:
        if given[field] not in there:
            raise ValueError(f"has no column {given[field]!r}; it has {listed(rows)}: say {field}= one of these")
        return given[field]
    fits = {"prompt": _is_said, "response": _is_said, "answer": _is_said, "correct": _is_truth}.get(field, is_number)
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


def is_conversation(value: object) -> TypeGuard[Messages]:
    """Whether a value is a list of messages, each with a role."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict) and "role" in value[0]


def column_names(rows: Sequence[Row]) -> set[str]:
    """Return the names of all columns that some rows have."""
    return {name for row in rows for name in row}


def listed(rows: Sequence[Row]) -> str:
    """Return the columns of rows, for a message."""
    return ", ".join(map(repr, dict.fromkeys(name for row in rows for name in row)))


def _is_list(value: object) -> TypeGuard[list[Any]]:
    return isinstance(value, list) and not is_conversation(value)


def _is_said(value: object) -> bool:
    return value not in (None, "", [])


def is_number(value: Any) -> TypeGuard[Any]:
    """Whether an entry, or the first of a list, is a number or the text of one."""
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
