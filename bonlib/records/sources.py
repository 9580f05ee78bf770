"""Rows of anybody's tables: JSON lines, JSON, CSV, Parquet and Arrow files, data sets, and tables of pandas."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import re
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bonlib.checks import one_line, shown

if TYPE_CHECKING:
    import pandas as pd

Source = str | os.PathLike[str]
Row = dict[str, Any]
KINDS = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow")  # and each of them but the last two with .gz
DESCRIPTIONS = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}  # those of `datasets`
BATCH = 10_000  # rows of a table that become Python's objects at once


class Unread(NamedTuple):
    """What stands for a row that cannot be read."""

    reason: str
    row: str


class Part(NamedTuple):
    """The rows of one file.

    Attributes:
        name: of the file.
        unit: what is counted in it, "line" or "row".
        rows: each with its number, from 1.
    """

    name: str
    unit: str
    rows: Iterator[tuple[int, Row | Unread]]


def parts(source: Source | pd.DataFrame | Sequence[Source], split: str | None = None) -> Iterator[Part]:
    """Yield the files of a source, with their rows.

    Args:
        source: file, folder, "-" for stdin, name of a data set on the hub, table of pandas or `datasets`, list of rows,
            or several files.
        split: of a data set that has several.

    Raises:
        ValueError: if it is empty, or no such file.
        FileNotFoundError: if it is not there.
        ModuleNotFoundError: if it needs the package `datasets`, which is not installed.
    """
    if isinstance(source, str | os.PathLike):
        yield from _parts_of(os.fspath(source), split)
    elif hasattr(source, "itertuples"):
        yield Part("the table", "row", _of_table(source))  # type: ignore[arg-type]  # pandas is imported late
    elif hasattr(source, "to_pandas"):  # of `datasets`
        yield Part("the table", "row", _of_table(source.to_pandas()))
    elif not isinstance(source, Iterable):
        raise ValueError(f"source is {shown(source)}; give a file, several, a list of rows, or a table of pandas")
    else:
        files: list[Any] = list(source)
        if files and all(isinstance(row, dict) for row in files):
            yield Part("the list", "row", iter(enumerate(files, 1)))
            return
        if not files:
            raise ValueError("source is empty; give a file, several, or a table of pandas")
        for file in files:
            yield from parts(file, split)


def _parts_of(name: str, split: str | None) -> Iterator[Part]:
    path = Path(name).expanduser()
    if name == "-":
        yield _of_stream(sys.stdin.buffer, "stdin", "")
    elif path.is_dir():
        files = sorted(file for file in path.rglob("*") if _is_data(file) and file.name not in DESCRIPTIONS)
        if split is not None or _is_saved(path):
            yield _of_datasets(name, split)
        elif files:
            for file in files:
                yield from _parts_of(str(file), None)
        else:
            raise ValueError(f"{name} is a folder without {', '.join(KINDS)} files: give a file, or another folder")
    elif path.exists():
        if split is not None:
            raise ValueError(f"split is {split!r}, but {name} is a file, which has none: leave it out")
        if path.suffix in (".parquet", ".arrow"):
            yield Part(name, "row", _of_arrow(path, name))
            return
        with _readable(name), path.open("rb") as stream:
            yield _of_stream(stream, name, path.name.removesuffix(".gz"))
    elif re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not _is_data(path) and not path.parent.is_dir():
        yield _of_datasets(name, split)
    else:
        raise FileNotFoundError(f"{name} is not there: mind the folder, {Path.cwd()}")


def _is_data(file: Path) -> bool:
    return file.name.removesuffix(".gz").endswith(KINDS)


def _is_saved(folder: Path) -> bool:
    return any((folder / file).exists() for file in ("state.json", "dataset_dict.json"))


@contextmanager
def _readable(name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:  # the last two of a gzip file that breaks off
        raise ValueError(f"{name} cannot be read ({one_line(error)}): copy it anew, or mend its rights") from error


def _of_stream(stream: Any, name: str, called: str) -> Part:
    """The rows of a stream, by what it begins with and, for what that leaves open, by what its file is called."""
    with _readable(name):
        if stream.peek(2)[:2] == b"\x1f\x8b":
            stream = gzip.GzipFile(fileobj=stream)
        begin = stream.peek(1 << 12).removeprefix(b"\xef\xbb\xbf").lstrip()
        if begin[:4] == b"PAR1":
            return Part(name, "row", _of_arrow(io.BytesIO(stream.read()), name))
        is_json, suffix = begin[:1] in (b"{", b"["), Path(called).suffix
        if suffix in (".csv", ".tsv") or not (is_json or suffix in (".jsonl", ".json")):
            header = begin.split(b"\n")[0].decode("utf-8", "replace")
            delimiter = "\t" if suffix == ".tsv" else max(",;\t", key=header.count)  # some programs write semicolons
            return Part(name, "line", _of_csv(stream, name, delimiter))
        if suffix == ".jsonl" or (begin[:1] == b"{" and suffix != ".json"):
            return Part(name, "line", _of_lines(stream, name))
        return _of_json(stream.read(), name)


def _of_lines(stream: Iterable[bytes], name: str) -> Iterator[tuple[int, Row | Unread]]:
    with _readable(name):
        for number, text in numbered_lines(stream, name):
            try:
                row = json_row(text)
            except ValueError as error:
                row = Unread(str(error), text)
            yield number, row


def _of_json(content: bytes, name: str) -> Part:
    """The rows of one JSON value: a list of rows, columns by name, or one row; or of JSON lines that are called so."""
    try:
        value = json.loads(content)  # in any of Unicode's encodings
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8") from error
    except (ValueError, RecursionError) as error:
        lines = content.split(b"\n")
        if len(lines) > 1 and content.lstrip()[:1] == b"{" and lines[0].rstrip().endswith(b"}"):
            return Part(name, "line", _of_lines(iter(line + b"\n" for line in lines), name))
        raise ValueError(f"{name} is not JSON ({error}): it must be a list of rows, [{{...}}, ...]") from error
    if isinstance(value, dict) and value and all(isinstance(column, list) for column in value.values()):
        lengths = {column: len(entries) for column, entries in value.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"{name} has columns of different lengths, {shown(lengths)}: give each as many entries")
        rows: Any = [dict(zip(value, entries, strict=True)) for entries in zip(*value.values(), strict=True)]
    else:
        rows = [value] if isinstance(value, dict) else value
    if not isinstance(rows, list):
        raise ValueError(f"{name} is {shown(value)}; it must be a list of rows, [{{...}}, ...]")
    read = (
        row if isinstance(row, dict) else Unread(f"is {shown(row)}; it must be an object", repr(row)) for row in rows
    )
    return Part(name, "row", enumerate(read, 1))


def _of_csv(stream: Any, name: str, delimiter: str) -> Iterator[tuple[int, Row | Unread]]:
    if csv.field_size_limit() < sys.maxsize:
        csv.field_size_limit(sys.maxsize)  # a response may be longer than the 131,072 characters of old
    texts = io.TextIOWrapper(stream, "utf-8-sig", newline="")
    reader = csv.reader(texts, delimiter=delimiter, strict=True)
    header: list[str] = []
    line = 1
    try:
        for cells in reader:
            if not header and cells:
                header = cells
                if len(set(header)) < len(header):
                    raise ValueError(f"{name} has the column names {shown(header)}: give each another")
            elif cells and len(cells) != len(header):
                reason = f"has {len(cells)} fields, where the header has {len(header)}: put fields in double quotes"
                yield line, Unread(reason, shown(cells))
            elif cells:
                yield line, dict(zip(header, cells, strict=True))
            line = reader.line_num + 1  # a field may run over several
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not UTF-8 ({error.reason} near line {line}): save it as UTF-8") from error
    except csv.Error as error:
        raise ValueError(f"{name}, line {line}: {error}: mend its double quotes") from error
    finally:
        with suppress(ValueError):  # it is closed already, after an error
            texts.detach()  # else the stream, which may be stdin, would be closed with them


def _of_arrow(file: Path | io.BytesIO, name: str) -> Iterator[tuple[int, Row | Unread]]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        if isinstance(file, Path) and file.suffix == ".arrow":
            try:
                batches: Iterable[Any] = pa.ipc.open_stream(file)
            except pa.ArrowInvalid:  # that of a file, which can be read at any place
                reader = pa.ipc.open_file(file)
                batches = (reader.get_batch(place) for place in range(reader.num_record_batches))
        else:
            batches = parquet.ParquetFile(file).iter_batches(BATCH)
        yield from _of_batches(batches)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{name} cannot be read as a table ({one_line(error)}): write or copy it anew") from error


def _of_batches(batches: Iterable[Any]) -> Iterator[tuple[int, Row | Unread]]:
    numbers = count(1)
    for batch in batches:
        names = batch.schema.names
        for entries in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            yield next(numbers), dict(zip(names, entries, strict=True))


def _of_table(table: pd.DataFrame) -> Iterator[tuple[int, Row | Unread]]:
    names = [str(name) for name in table.columns]
    known = table.astype(object).where(table.notna(), None)  # what is missing is NaN there, a text too
    for number, entries in enumerate(known.itertuples(index=False, name=None), 1):
        plain = (entry.tolist() if hasattr(entry, "tolist") else entry for entry in entries)
        yield number, dict(zip(names, plain, strict=True))


def _of_datasets(name: str, split: str | None) -> Part:
    """The rows of a data set that was saved to disk, or is on the hub."""
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{name} needs the package datasets: pip install datasets, or give a file") from error
    folder = Path(name).expanduser()
    try:
        found = datasets.load_from_disk(str(folder)) if _is_saved(folder) else datasets.load_dataset(name)
    except Exception as error:  # the package and the hub's client raise what they like
        where = "cannot be read" if folder.exists() else "is no file here, and could not be had from the hub"
        raise FileNotFoundError(f"{name} {where} ({one_line(error)}): mind the name") from error
    if isinstance(found, dict):
        if split is None and len(found) > 1:
            raise ValueError(f"{name} has the splits {', '.join(found)}: choose one, as split={next(iter(found))!r}")
        if split is not None and split not in found:
            raise ValueError(f"split is {split!r}; {name} has {', '.join(found)}")
        found = found[split or next(iter(found))]
    tables = found.with_format("arrow").iter(BATCH)
    return Part(name, "row", _of_batches(batch for table in tables for batch in table.to_batches()))


def numbered_lines(lines: Iterable[bytes], name: str | Path) -> Iterator[tuple[int, str]]:
    """Yield lines that are not blank, counted from 1, as texts; a byte-order mark is passed over.

    Raises:
        ValueError: if one is not UTF-8; it calls what they are of `name`.
    """
    # Only "\n" ends a line of bytes: U+2028 and its like, where `splitlines` would cut, may stand inside a string.
    begin = 0
    for number, line in enumerate(lines, 1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{name} is not UTF-8 ({error.reason} at byte {begin + error.start}): save it as UTF-8"
            ) from error
        begin += len(line)
        if text and not text.isspace():
            yield number, text


def json_row(text: str, kind: type = dict) -> Any:
    """Return what a line of JSON lines holds.

    Raises:
        ValueError: if it is no JSON of that kind; the message goes on after the name of the line.
    """
    wanted = "object, {...}" if kind is dict else "array, [...]"
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON ({error}): each line must be one JSON {wanted}") from error
    if not isinstance(row, kind):
        raise ValueError(f"is {text.strip()[:60]}; each line must be one JSON {wanted}")
    return row
