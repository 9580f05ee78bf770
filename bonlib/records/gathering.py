"""Rows gathered into `Records`: checked one by one, and put in order."""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Mapping, Sequence
from itertools import chain, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bonlib.checks import LOG_PROB_SLACK, one_line, shown
from bonlib.records.columns import BadRowError, Draw, Messages, is_conversation, truth
from bonlib.records.formats import FORMATS, recognised
from bonlib.records.records import Records
from bonlib.records.sources import Part, Unread

LOOKED_AT = 100  # rows of a file by which its format and columns are told


class Gathered:
    """What was read so far, column by column: a million rows take their texts and 100 bytes each.

    Args:
        lower: scores of which lower is better; they are turned, and their names begin with a minus.
    """

    def __init__(self, lower: Sequence[str] = ()) -> None:
        self.lower = lower
        self.sources: list[str] = []
        self.scores: dict[str, array[float]] = {}
        self.taken: dict[str, str] = {}
        self.places: dict[str, int] = {}  # of each prompt
        self.conversations: dict[int, Messages] = {}
        self.prompt, self.lengths, self.rows, self.correct = array("q"), array("q"), array("q"), array("b")
        self.log_probs = array("d")
        self.responses: list[str] = []
        self.answers: list[str | None] = []
        self.bad: list[tuple[str, str, str]] = []
        self.no_log_probs = 0

    def read(self, part: Part, format: str | None, given: Mapping[str, str]) -> None:
        """Add the rows of a file."""
        first = list(islice(part.rows, LOOKED_AT))
        rows = [row for _, row in first if not isinstance(row, Unread)]
        self.sources.append(part.name)
        if not first:
            raise ValueError(f"{part.name} is empty: it holds no row")
        if not rows:
            number, row = first[0]
            more = f", nor can the next {len(first) - 1}" if first[1:] else ""
            raise ValueError(f"{part.name}, {part.unit} {number} {Unread(*row).reason}; it cannot be read{more}")
        name = format or recognised(rows, given)
        if unknown := [field for field in given if field not in FORMATS[name].takes]:
            raise ValueError(f"{unknown[0]} is {given[unknown[0]]!r}, but format {name!r} has its own: leave it out")
        try:
            reading = FORMATS[name].reading(rows, given)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            if type(error) is ValueError:
                raise ValueError(f"{part.name} {error}") from error
            raise ValueError(
                f"{part.name} is not as format {name!r} has it ({one_line(error)}): name another"
            ) from error
        if tuple(self.scores) != reading.scores and self.sources[1:]:
            raise ValueError(
                f"{part.name} has the scores {', '.join(reading.scores) or 'none'}, {self.sources[0]} "
                f"{', '.join(self.scores) or 'none'}: name the same for all, as reward="
            )
        self.scores = self.scores or {score: array("d") for score in reading.scores}
        self.taken = {"format": name, **reading.taken}
        for number, row in chain(first, part.rows):
            if isinstance(row, Unread):
                self._put_apart(part, number, row)
                continue
            try:
                draws = reading.draws(row)
            except BadRowError as error:
                self._put_apart(part, number, Unread(str(error), str(row)))
                continue
            except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
                self._put_apart(part, number, Unread(f"is not as format {name!r} has it ({one_line(error)})", str(row)))
                continue
            for draw in draws:
                try:
                    self._add(number, draw)
                except BadRowError as error:
                    self._put_apart(part, number, Unread(str(error), str(row)))
        self.taken |= reading.taken  # a format may have met something on the way

    def _add(self, number: int, draw: Draw) -> None:
        response = _text("response", draw.response)
        scores = [_number(name, value) for name, value in zip(self.scores, draw.scores, strict=True)]
        correct = truth(draw.correct) if "correct" in self.taken else -1
        asked = draw.prompt
        prompt = asked if type(asked) is str else as_text(asked)
        place = self.places.get(prompt)
        if place is None:
            if not prompt.strip():
                raise BadRowError(f"has prompt {shown(asked)}: it must have a word in it")
            place = self.places[whole_text("prompt", prompt)] = len(self.places)
            if is_conversation(asked):
                self.conversations[place] = asked
        self.prompt.append(place)
        self.rows.append(number)
        self.responses.append(response)
        for column, score in zip(self.scores.values(), scores, strict=True):
            column.append(score)
        self.log_probs.append(math.nan if draw.log_prob is None else self._log_prob(draw.log_prob))
        self.lengths.append(_count(draw.length))
        self.answers.append(None if draw.answer in (None, "") else str(draw.answer))
        self.correct.append(correct)

    def _log_prob(self, value: Any) -> float:
        try:
            log_prob = float(value)
        except (TypeError, ValueError):
            log_prob = math.nan
        if -math.inf < log_prob <= LOG_PROB_SLACK:
            return min(log_prob, 0.0)
        self.no_log_probs += 1
        return math.nan

    def _put_apart(self, part: Part, number: int, row: Unread) -> None:
        text = " ".join(row.row.split())
        self.bad.append(
            (f"{part.name}, {part.unit} {number}", row.reason, text if len(text) <= 200 else text[:199] + "…")
        )

    def _useless(self) -> ValueError:
        place, reason, _ = self.bad[0]
        return ValueError(f"{place} {reason}; no row of {self.sources[-1]} can be used: mend it, or name columns")

    def records(self) -> Records:
        """Return what was read, the rows of a prompt together."""
        import pandas as pd

        if not self.responses:
            raise self._useless() if self.bad else ValueError(f"{', '.join(self.sources)} holds no response")
        prompt, correct = np.array(self.prompt, dtype=np.intp), np.array(self.correct, dtype=np.int8)
        runs = np.bincount(prompt[np.flatnonzero(np.diff(prompt, prepend=-1))])
        order = np.argsort(prompt, kind="stable")
        lengths = np.array(self.lengths, dtype=np.intp)
        if not (in_tokens := bool((lengths >= 0).all())):
            lengths = np.fromiter(map(len, self.responses), dtype=np.intp, count=len(prompt))
        found = {name: np.array(column)[order] for name, column in self.scores.items()}
        scores = {
            f"-{name}" if name in self.lower else name: -s if name in self.lower else s for name, s in found.items()
        }
        known = bool((correct >= 0).all())
        taken = dict(self.taken)
        if known and not scores:
            taken["reward"] = taken["correct"]
            scores = {taken["correct"]: correct[order].astype(float)}
        if self.no_log_probs:
            taken["log_prob"] += f" ({self.no_log_probs} are no log-probability, and taken for unknown)"
        log_probs = np.array(self.log_probs)[order]
        prompts, more = list(self.places), len(self.sources) - 1 if len(self.sources) > 3 else 0
        chats = [self.conversations.get(place, _user(text)) for place, text in enumerate(prompts)]
        return Records(
            prompts=_objects(prompts),
            prompt=prompt[order],
            responses=_objects(self.responses)[order],
            scores=scores,
            lengths=lengths[order],
            rows=np.array(self.rows, dtype=np.intp)[order],
            bad=pd.DataFrame(self.bad, columns=["place", "reason", "row"]),
            log_probs=None if np.isnan(log_probs).all() else log_probs,
            in_tokens=in_tokens,
            answers=_objects(self.answers)[order] if any(answer is not None for answer in self.answers) else None,
            correct=correct[order].astype(bool) if known else None,
            messages=chats if self.conversations else None,
            runs=runs,
            source=", ".join(self.sources) if not more else f"{self.sources[0]} and {more} more",
            taken=taken,
        )


def _text(name: str, value: Any) -> str:
    """A response, which may be a conversation of one message."""
    if type(value) is str:
        return whole_text(name, value)
    if is_conversation(value) and len(value) == 1 and isinstance(value[0].get("content"), str):
        return whole_text(name, value[0]["content"])
    raise BadRowError(f"has {name} {shown(value)}; it must be a text, or a list of one message")


def as_text(prompt: Any) -> str:
    """Return what a prompt is known by: a text by itself, a conversation by what is said in it.

    Raises:
        BadRowError: if it is neither.
    """
    if is_conversation(prompt):
        plain = all(message.keys() == {"role", "content"} and type(message["content"]) is str for message in prompt)
        if not plain:
            return json.dumps(prompt, ensure_ascii=False)
        if len(prompt) == 1 and prompt[0]["role"] == "user":
            return str(prompt[0]["content"])
        return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)
    if isinstance(prompt, int) and not isinstance(prompt, bool):  # an identifier
        return str(prompt)
    raise BadRowError(f"has prompt {shown(prompt)}; it must be a text, or a list of messages with role and content")


def _user(prompt: str) -> Messages:
    return [{"role": "user", "content": prompt}]


def whole_text(name: str, text: str) -> str:
    """Return a text, after a check that it is of whole characters.

    Raises:
        BadRowError: which calls it `name`.
    """
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise BadRowError(f"has half a character, {text[error.start]!r}, in its {name}: write it anew") from error
    return text


def _number(name: str, value: Any) -> float:
    if value is None or value == "":
        raise BadRowError(f"has no {name}: it must be a number")
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise BadRowError(f"has {name} {shown(value)}; it must be a number") from None
    if not math.isfinite(number):
        raise BadRowError(f"has {name} {number}; it must be finite")
    return number


def _count(value: Any) -> int:
    """A number of tokens, −1 if it is none."""
    if value is None:
        return -1
    try:
        return max(int(value), -1)
    except (TypeError, ValueError, OverflowError):
        return -1


def _objects(values: Sequence[Any]) -> NDArray[np.object_]:
    """Values as an array of Python's own: NumPy's texts would be as wide as the longest."""
    found = np.empty(len(values), dtype=object)
    found[:] = values
    return found
