"""How data come into the course: rows of JSON lines, or of data sets of the hub, with texts that are checked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bonlib.checks import strings
from bonlib.records.sources import json_row, numbered_lines


def checked_text(name: str, value: object, *, blank: bool = False) -> str:
    """Return a text, after checking that it is one of whole characters, with a word in it unless it may be blank.

    Raises:
        ValueError: which calls it `name`.
    """
    if not isinstance(value, str):
        raise ValueError(f"{name} is {value!r}; it must be a string: drop or mend that row")
    if not (blank or value.strip()):
        raise ValueError(f"{name} is {value!r}, without a word: drop or mend that row")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = value[error.start]
        raise ValueError(f"{name} holds half a character, {half!r} at {error.start}: drop or mend that row") from error
    return value


def checked_texts(name: str, value: object) -> list[str]:
    """Return those of some texts, or of a single one, that have a word in them.

    Raises:
        ValueError: if none is left, or one is no string; it calls them `name`.
    """
    texts = [text for text in strings(name, [value] if isinstance(value, str) else value) if text.strip()]
    if not texts:
        raise ValueError(f"{name} is {value!r}; it must hold a string with a word in it: drop or mend that row")
    return texts


def read_jsonl(path: str | Path, kind: type = dict) -> list[Any]:
    """Return the rows of a file of JSON lines, in UTF-8; blank lines and a byte-order mark are passed over.

    Args:
        path: of the file.
        kind: what each line is: dict for a JSON object, list for an array.

    Raises:
        ValueError: if a line is something else; the message names file and line.
    """
    return [row for _, row in numbered_rows(path, kind)]


def numbered_rows(path: str | Path, kind: type = dict) -> Iterator[tuple[str, Any]]:
    """Yield the rows of `read_jsonl`, each with its place for a message, as "path, line 3"."""
    with Path(path).open("rb") as file:
        for number, text in numbered_lines(file, path):
            where = f"{path}, line {number}"
            try:
                row = json_row(text, kind)
            except ValueError as error:
                raise ValueError(f"{where} {error}") from error
            yield where, row


def source_rows(
    source: str, file: str, split: str, *, name: str | None = None, revision: str | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the rows of one split of a data set, each with its place for a message.

    Args:
        source: data set of the hub, or a local folder: with files of JSON lines, or whatever `datasets` loads.
        file: name of the split's file of JSON lines, without its ending.
        split: name of the split on the hub.
        name: of the configuration on the hub.
        revision: commit, tag or branch of a hub data set.

    Raises:
        ValueError: if a line is not a JSON object.
        FileNotFoundError: if the folder has files of JSON lines, but not this one.
        ModuleNotFoundError: if the package `datasets` is wanted and not installed.
    """
    folder = Path(source).expanduser()
    if any(folder.glob("*.jsonl")):
        yield from numbered_rows(folder / f"{file}.jsonl")
        return
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"data from {source!r} need the package datasets: pip install datasets") from error
    rows = datasets.load_dataset(source, name, split=split, revision=revision)
    yield from ((f"{source}, row {number}", row) for number, row in enumerate(rows, 1))


def entry(where: str, row: dict[str, Any], name: str) -> Any:
    """Return an entry of a row of data.

    Raises:
        ValueError: if there is none; the message names the row and what it has.
    """
    if name not in row:
        raise ValueError(f"{where} has no {name!r}; it has {', '.join(map(repr, row)) or 'nothing'}: add it")
    return row[name]
