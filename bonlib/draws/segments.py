"""Files of the store: each holds many draws, or many rewards, is written whole and never changes.

A file is called KIND-TIME-MARK.npz, after when its oldest rows were written. Small ones are merged into larger ones; of
rows that stand in two files those of the first, in the order of the names, count.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from bonlib.models.responses import Responses, concatenate

LARGE = 8 << 20  # bytes of a file that are not exceeded by merging
SMALL = 1 << 16  # bytes of a file that is merged with whatever stands beside it

T = TypeVar("T")


class DamagedFileError(ValueError):
    """A file of the store cannot be read; the message names it."""


@dataclass(frozen=True, eq=False)
class DrawRows:
    """Draws: which prompt's, the how manieth, and the response."""

    prompts: tuple[str, ...]
    prompt: NDArray[np.intp]
    index: NDArray[np.intp]
    responses: Responses

    @property
    def key(self) -> NDArray[np.intp]:
        """(R,) the number of the draw among those of its prompt."""
        return self.index

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the columns of the file; tokens one response after the other, without what fills them up."""
        token_ids = self.responses.token_ids
        columns: dict[str, NDArray[Any]] = {
            "index": self.index.astype(np.int32),
            "lengths": self.responses.lengths.astype(np.int32),
            "tokens": token_ids[token_ids != -1].astype(np.int32),
            "texts": packed(self.responses.texts.tolist()),
            "log_probs": self.responses.log_probs,
        }
        if not np.array_equal(self.responses.log_probs, self.responses.sampling_log_probs, equal_nan=True):
            columns["sampling_log_probs"] = self.responses.sampling_log_probs
        return columns

    @classmethod
    def read(cls, path: Path) -> Self:
        """Return the draws of a file."""
        columns = {"prompts", "prompt", "index", "lengths", "tokens", "texts", "log_probs"}
        found = read_arrays(path, columns, {"sampling_log_probs"})
        lengths = found["lengths"]
        token_ids = np.full((len(lengths), lengths.max(initial=1)), -1, dtype=np.int32)
        token_ids[np.arange(token_ids.shape[1]) < lengths[:, None]] = found["tokens"]
        texts = np.array(unpacked(found["texts"]), dtype=object)
        log_probs = found["log_probs"]
        responses = Responses(texts, token_ids, log_probs, found.get("sampling_log_probs", log_probs))
        prompts = tuple(unpacked(found["prompts"]))
        return cls(prompts, found["prompt"].astype(np.intp), found["index"].astype(np.intp), responses)

    @classmethod
    def joined(
        cls, prompts: tuple[str, ...], prompt: NDArray[np.intp], kept: NDArray[np.intp], parts: Sequence[DrawRows]
    ) -> Self:
        """Return some rows of several parts: those at the places `kept` of all, whose prompts are given."""
        responses = concatenate([part.responses for part in parts])[kept]
        return cls(prompts, prompt, np.concatenate([part.index for part in parts])[kept], responses)


@dataclass(frozen=True, eq=False)
class RewardRows:
    """Rewards: of which prompt's response, known by a digest, and how large; and hashes of the code that gave them."""

    prompts: tuple[str, ...]
    prompt: NDArray[np.intp]
    digest: NDArray[np.uint64]
    reward: NDArray[np.float64]
    sources: tuple[str, ...] = ()

    @property
    def key(self) -> NDArray[np.uint64]:
        """(R,) digest of the response."""
        return self.digest

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the columns of the file."""
        return {"digest": self.digest, "reward": self.reward, "sources": packed(self.sources)}

    @classmethod
    def read(cls, path: Path) -> Self:
        """Return the rewards of a file."""
        found = read_arrays(path, {"prompts", "prompt", "digest", "reward", "sources"})
        prompts, sources = (tuple(unpacked(found[name])) for name in ("prompts", "sources"))
        return cls(prompts, found["prompt"].astype(np.intp), found["digest"], found["reward"], sources)

    @classmethod
    def joined(
        cls, prompts: tuple[str, ...], prompt: NDArray[np.intp], kept: NDArray[np.intp], parts: Sequence[RewardRows]
    ) -> Self:
        """Return some rows of several parts: those at the places `kept` of all, whose prompts are given."""
        digest, reward = (
            np.concatenate([getattr(part, name) for part in parts])[kept] for name in ("digest", "reward")
        )
        return cls(
            prompts, prompt, digest, reward, tuple(dict.fromkeys(each for part in parts for each in part.sources))
        )


Rows = DrawRows | RewardRows
R = TypeVar("R", DrawRows, RewardRows)


def digests(responses: Responses, by_tokens: bool) -> NDArray[np.uint64]:
    """Return a number that stands for each response: for its text, or for its text and tokens."""
    wholes = [text.encode("utf-8", "surrogatepass") for text in responses.texts]
    if by_tokens:
        pairs = zip(wholes, responses.token_ids.astype("<i4"), responses.lengths, strict=True)
        wholes = [length.tobytes() + row[:length].tobytes() + text for text, row, length in pairs]
    return np.frombuffer(b"".join(hashlib.blake2b(w, digest_size=8).digest() for w in wholes), dtype="<u8")


def join(parts: Sequence[R]) -> R:
    """Return the rows of several files as those of one; of two with one prompt and key the first."""
    place = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompt for part in parts for prompt in part.prompts))}
    prompt = np.concatenate([np.array([place[text] for text in p.prompts], dtype=np.intp)[p.prompt] for p in parts])
    key = np.concatenate([part.key for part in parts])
    order = np.lexsort((np.arange(len(key)), key, prompt))
    first = np.r_[True, (np.diff(prompt[order]) != 0) | (key[order][1:] != key[order][:-1])]
    kept = order[first]
    return parts[0].joined(tuple(place), prompt[kept], kept, parts)


def add(folder: Path, kind: str, rows: Rows) -> None:
    """Write rows to a new file."""
    _write(folder / f"{kind}-{time.time_ns():020d}-{secrets.token_hex(4)}.npz", rows)


def listed(folder: Path, kind: str) -> list[Path]:
    """Return the files of a kind, the first ones first."""
    before = None
    # A folder that is read while files are merged can show neither the old ones nor the new one.
    while (now := sorted(folder.glob(f"{kind}-*.npz"))) != before:
        before = now
    return now


def read_each(folder: Path, kind: str, read: Callable[[Path], T]) -> list[T]:
    """Return what is read of each file of a kind, in their order; if some are merged meanwhile, of the new one."""
    found: dict[Path, T] = {}
    files = listed(folder, kind)
    while True:
        try:
            for file in files:
                if file not in found:
                    found[file] = read(file)
            return [found[file] for file in files]
        except FileNotFoundError:
            before, files = files, listed(folder, kind)
            if files == before:
                raise


def read_prompts(path: Path) -> list[str]:
    """Return the prompts that a file has rows of; nothing else of it is read."""
    return unpacked(read_arrays(path, {"prompts"}, partly=True)["prompts"])


def holds_any(path: Path, prompts: Iterable[str]) -> bool:
    """Return whether a file has rows of one of some prompts; it is remembered which prompts those are."""
    about = path.stat()
    hashes = np.fromiter(map(hash, prompts), dtype=np.int64)
    return bool(np.isin(hashes, _hashes(path, about.st_mtime_ns, about.st_size)).any())


@lru_cache(maxsize=1 << 14)
def _hashes(path: Path, written: int, size: int) -> NDArray[np.int64]:
    """Hashes of the prompts of a file, of eight bytes each: of many files the prompts themselves would be too much."""
    return np.fromiter(map(hash, read_prompts(path)), dtype=np.int64)


def merge(folder: Path, kind: str, rows: type[R]) -> None:
    """Merge small files of a kind into larger ones, unless another process is doing so."""
    from filelock import FileLock, Timeout

    with suppress(FileNotFoundError):  # another process is at it
        if all(len(run) < 2 for run in _runs(listed(folder, kind))):
            return
    with suppress(Timeout, NotImplementedError), FileLock(folder / "merge.lock", timeout=0):
        for run in list(_runs(listed(folder, kind))):
            if len(run) > 1:
                mark = hashlib.sha256(" ".join(file.name for file in run).encode()).hexdigest()[:8]
                merged = join([rows.read(file) for file in run])
                # It stands where its first part stood, so that the same rows count as before.
                _write(folder / f"{run[0].stem.rpartition('-')[0]}-{mark}.npz", merged)
                for file in run:
                    file.unlink()


def _runs(files: Sequence[Path]) -> Iterator[list[Path]]:
    """Neighbours to be merged, from the newest on: of about one size, so that a row is seldom written again."""
    run: list[Path] = []
    total = 0
    for file in reversed(files):
        size = file.stat().st_size
        if run and (total + size > LARGE or size > max(2 * total, SMALL)):
            yield run
            run, total = [], 0
        run.insert(0, file)
        total += size
    yield run


def _write(path: Path, rows: Rows) -> None:
    columns = {"prompts": packed(rows.prompts), "prompt": rows.prompt.astype(np.int32), **rows.arrays()}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **columns)  # type: ignore[arg-type]
    try:
        replace_file(path, buffer.getvalue())
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise OSError(
            error.errno,
            f"the disk is full ({error.strerror}): free some, run `python -m bonlib store --prune DAYS`, or set "
            "BONLIB_STORE to a folder on another one. What was drawn before is kept",
            str(path),
        ) from error


def replace_file(path: Path, content: bytes) -> None:
    """Write a file so that readers, and whoever comes after a crash, see all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    try:
        with temporary.open("xb") as file:  # with the rights that the user's files have
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)  # an interrupt may come when it has its name already
        raise


def sweep(folder: Path, age: float = 3600.0) -> None:
    """Delete what a killed process left half written; a living one renames its file within seconds."""
    for leftover in folder.glob("*.part"):
        with suppress(FileNotFoundError):
            if leftover.stat().st_mtime < time.time() - age:
                leftover.unlink()


def read_arrays(
    path: Path, names: set[str], perhaps: set[str] | None = None, *, partly: bool = False
) -> dict[str, NDArray[Any]]:
    """Return arrays of a file by name.

    Args:
        path: of the file.
        names: those that it must have.
        perhaps: those that it may have.
        partly: whether it may have others, which are not read.

    Raises:
        DamagedFileError: if it cannot be read, or has others.
    """
    known = names | (perhaps or set())
    with path.open("rb") as file:
        try:
            with np.load(file, allow_pickle=False) as archive:
                has = set(archive)
                found = {name: archive[name] for name in has & known}
        except Exception as error:  # a flipped bit can surface as any of a dozen kinds
            raise DamagedFileError(f"{path} is damaged ({error}): delete it, and what it held is made again") from error
    if not names <= has or not (partly or has <= known):
        raise DamagedFileError(f"{path} holds {sorted(has)} in place of {sorted(names)}: delete it")
    return found


def packed(texts: Sequence[str]) -> NDArray[np.uint8]:
    """Return texts as bytes: NumPy's own strings would lose NULs at their ends."""
    return np.frombuffer(json.dumps(list(texts), ensure_ascii=False).encode("utf-8", "surrogatepass"), dtype=np.uint8)


def unpacked(content: NDArray[Any]) -> list[str]:
    """Return texts that `packed` has made bytes; older files have NumPy's strings."""
    if content.dtype != np.uint8:
        return [str(text) for text in content]
    texts: list[str] = json.loads(content.tobytes().decode("utf-8", "surrogatepass"))
    return texts
