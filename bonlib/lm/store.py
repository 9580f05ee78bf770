"""A store of draws and their rewards, so that nothing is sampled twice and an interruption costs one chunk at most.

A chunk is a fixed number of draws for one prompt, made as one batch with a seed of its own. Its folder is named by a
hash of all that the draws depend on; more draws are more chunks, so the first N of them never change.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from platformdirs import user_cache_path
from tqdm import tqdm

from bonlib.lm.rewards import RewardModel, checked_score
from bonlib.lm.samplers import Responses, Sampler, SamplingSettings, concatenate

FORMAT = 2  # of the files and the way of drawing; raise it when either changes, and older chunks are drawn anew


class DamagedFileError(ValueError):
    """A file of the store cannot be read; the message names it."""


@dataclass(frozen=True, eq=False)
class Draws:
    """The draws of several prompts, `count` each.

    Attributes:
        prompts: the P prompts.
        responses: of each prompt, in the order drawn.
        chunks: the files that hold them, of each prompt.
    """

    prompts: tuple[str, ...]
    responses: tuple[Responses, ...]
    chunks: tuple[tuple[Path, ...], ...]

    @cached_property
    def texts(self) -> NDArray[np.str_]:
        """(P, count) the responses as text."""
        return np.stack([r.texts for r in self.responses])

    @cached_property
    def log_probs(self) -> NDArray[np.float64]:
        """(P, count) log-probability of each response under the model at temperature 1, nats."""
        return np.stack([r.log_probs for r in self.responses])

    @cached_property
    def lengths(self) -> NDArray[np.intp]:
        """(P, count) tokens of each response, the end token included."""
        return np.stack([r.lengths for r in self.responses])


class SampleStore:
    """Draws and rewards on disk.

    Args:
        root: folder; the environment variable BONLIB_STORE if None, else the user's cache folder.
    """

    def __init__(self, root: str | os.PathLike[str] | None = None) -> None:
        chosen = root or os.environ.get("BONLIB_STORE")
        self.root = Path(chosen).expanduser() if chosen else user_cache_path("bonlib") / "samples"

    def draw(
        self,
        sampler: Sampler,
        prompts: Sequence[str],
        count: int,
        settings: SamplingSettings,
        *,
        seed: int,
        chunk_size: int = 64,
    ) -> Draws:
        """Return `count` draws for each prompt, sampling only those that the store lacks.

        Args:
            sampler: draws what is missing.
            prompts: different from each other, at least one.
            count: draws a prompt, at least 1; the first `count` are the same whatever `count` is.
            settings: length, temperature, top-p.
            seed: a different seed gives independent draws.
            chunk_size: draws made and kept together; part of what identifies a draw.

        Raises:
            ValueError: if an argument is out of range.
            DamagedFileError: if a stored chunk cannot be read.
        """
        check_request(prompts, count, chunk_size)
        identity = {
            "sampler": sampler.fingerprint,
            "settings": asdict(settings),
            "seed": seed,
            "chunk_size": chunk_size,
            "format": FORMAT,
        }
        count_chunks = -(-count // chunk_size)
        chunks = tuple(self._chunks({**identity, "prompt": p}, count_chunks, sampler.name) for p in prompts)
        missing = [
            (prompt, path) for prompt, paths in zip(prompts, chunks, strict=True) for path in paths if not path.exists()
        ]
        for prompt, path in _progress(missing, "sampling"):
            chunk_seed = int(_hash([path.parent.name, path.name])[:15], 16)
            responses = sampler.sample([prompt] * chunk_size, settings, seed=chunk_seed)
            if len(responses) != chunk_size or not np.isfinite(responses.log_probs).all():
                raise ValueError(
                    f"{sampler.name} returned {len(responses)} responses for {chunk_size} draws of {prompt!r}, or one "
                    "whose log-probability is not finite: the model is broken (NaN weights?); the chunk is not kept"
                )
            _write(path, **vars(responses))
        drawn = tuple(_first(concatenate([_read_responses(path) for path in paths]), count) for paths in chunks)
        return Draws(tuple(prompts), drawn, chunks)

    def score(self, reward_model: RewardModel, draws: Draws) -> NDArray[np.float64]:
        """Return the reward of every draw, shape (P, count), scoring only what has no stored reward.

        Raises:
            ValueError: if the reward model returns something other than a finite number for a response.
            DamagedFileError: if a stored file cannot be read.
        """
        suffix = f".reward-{_hash(reward_model.fingerprint)[:20]}.npz"
        missing = [
            (prompt, path)
            for prompt, paths in zip(draws.prompts, draws.chunks, strict=True)
            for path in paths
            if not path.with_suffix(suffix).exists()
        ]
        for prompt, path in _progress(missing, "scoring"):
            drawn = _read_responses(path)
            _write(path.with_suffix(suffix), rewards=checked_score(reward_model, [prompt] * len(drawn), drawn))
        count = len(draws.responses[0])
        rewards = [
            [_read(path.with_suffix(suffix), {"rewards"})["rewards"] for path in paths] for paths in draws.chunks
        ]
        return np.stack([np.concatenate(parts)[:count] for parts in rewards])

    def size(self) -> int:
        """Return how many bytes the store takes."""
        return sum(path.stat().st_size for path in self.root.rglob("*") if path.is_file())

    def describe(self) -> list[dict[str, Any]]:
        """Return one row for each sampler and setting in the store: how many prompts, files and bytes."""
        rows: dict[str, dict[str, Any]] = {}
        for about in self.root.glob("*/*/about.json"):
            try:
                identity = json.loads(about.read_text())
                key = {"model": identity["model"], "sampler": identity["sampler"][:8], "seed": identity["seed"]}
                key.update(identity["settings"])
            except (ValueError, KeyError) as error:
                raise DamagedFileError(f"{about} is damaged ({error}): delete its folder") from error
            files = list(about.parent.glob("*.npz"))
            row = rows.setdefault(_hash(key), {**key, "prompts": 0, "files": 0, "bytes": 0})
            row["prompts"] += 1
            row["files"] += len(files)
            row["bytes"] += sum(file.stat().st_size for file in files)
        return list(rows.values())

    def prune(self, unused_days: float = 0.0) -> int:
        """Delete the draws of prompts last asked for so many days ago; return how many bytes that freed."""
        freed = 0
        for about in list(self.root.glob("*/*/about.json")):
            if about.stat().st_mtime <= time.time() - unused_days * 86_400:
                freed += sum(file.stat().st_size for file in about.parent.iterdir())
                shutil.rmtree(about.parent)
        return freed

    def _chunks(self, identity: dict[str, Any], count: int, name: str) -> tuple[Path, ...]:
        key = _hash(identity)
        about = self.root / key[:2] / key / "about.json"
        if about.exists():
            about.touch()  # prune asks when it was last used
            _sweep(about.parent)
        else:
            replace_file(about, json.dumps({"model": name, **identity}, indent=1).encode())
        return tuple(about.with_name(f"{number:05d}.npz") for number in range(count))


def check_request(prompts: Sequence[str], count: int, chunk_size: int) -> None:
    """Raise a ValueError if `SampleStore.draw` would refuse these arguments."""
    if isinstance(prompts, str) or len(prompts) == 0:
        raise ValueError(f"prompts is {prompts!r}; it must be a list of at least one prompt")
    prompt, times = Counter(prompts).most_common(1)[0]
    if times > 1:
        raise ValueError(f"prompts has {prompt!r} {times} times, each to get the same draws: ask for more draws")
    for name, value in (("count", count), ("chunk_size", chunk_size)):
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")


def _progress(chunks: list[tuple[str, Path]], what: str) -> Iterable[tuple[str, Path]]:
    # Every refresh stays in a notebook's output for good, so there are few.
    return tqdm(chunks, desc=what, unit="chunk", disable=not chunks, mininterval=5, leave=False)


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _sweep(folder: Path, age: float = 3600.0) -> None:
    """Delete what a killed process left half written; a living one renames its file within seconds."""
    for leftover in folder.glob("*.part"):
        if leftover.stat().st_mtime < time.time() - age:
            leftover.unlink(missing_ok=True)


def _write(path: Path, **arrays: NDArray[Any]) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
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
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _read(path: Path, names: set[str]) -> dict[str, NDArray[Any]]:
    content = path.read_bytes()
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            arrays = dict(archive)
    except Exception as error:  # a flipped bit can surface as any of a dozen kinds
        raise DamagedFileError(f"{path} is damaged ({error}): delete it, and what it held is made again") from error
    if set(arrays) != names:
        raise DamagedFileError(f"{path} holds {sorted(arrays)} in place of {sorted(names)}: delete it")
    return arrays


def _read_responses(path: Path) -> Responses:
    return Responses(**_read(path, {field.name for field in fields(Responses)}))


def _first(responses: Responses, count: int) -> Responses:
    return Responses(**{name: value[:count] for name, value in vars(responses).items()})
