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
import warnings
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import click
import numpy as np
import torch
from numpy.typing import NDArray
from platformdirs import user_cache_path
from tqdm import tqdm

from bonlib.checks import literal, number, strings, whole
from bonlib.draws.rewards import RewardModel, check_reward_model, checked_score
from bonlib.draws.samplers import Sampler, SamplingSettings, TransformersSampler
from bonlib.models.loaded import LoadedModel
from bonlib.models.reading import response_log_probs
from bonlib.models.responses import Responses, concatenate

FORMAT = 2  # of the files and the way of drawing; raise it when either changes, and older chunks are drawn anew
POLICIES = "policies"  # folder of those that `bonlib.train` keeps beside the draws


T = TypeVar("T")


class DamagedFileError(ValueError):
    """A file of the store cannot be read; the message names it."""


@dataclass(frozen=True, eq=False)
class Draws:
    """The draws of several prompts, `count` each.

    Attributes:
        prompts: the P prompts.
        responses: of each prompt, in the order drawn.
        chunks: the files that hold them, of each prompt.
        sampler: fingerprint of what drew them; empty if it is not known.
        model: its name; likewise.
        settings: the law that they are drawn from; None if it is not known.
    """

    prompts: tuple[str, ...]
    responses: tuple[Responses, ...]
    chunks: tuple[tuple[Path, ...], ...]
    sampler: str = ""
    model: str = ""
    settings: SamplingSettings | None = None

    @cached_property
    def texts(self) -> NDArray[np.object_]:
        """(P, count) the responses as text."""
        return np.stack([r.texts for r in self.responses])

    @cached_property
    def log_probs(self) -> NDArray[np.float64]:
        """(P, count) log-probability of each response under the law that it was drawn from, nats."""
        return np.stack([r.sampling_log_probs for r in self.responses])

    @cached_property
    def model_log_probs(self) -> NDArray[np.float64]:
        """(P, count) the same under the model as it is: temperature 1, every token allowed."""
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
            settings: the law to draw from.
            seed: a different seed gives independent draws.
            chunk_size: draws made and kept together; part of what identifies a draw.

        Raises:
            ValueError: if an argument is out of range.
            DamagedFileError: if a stored chunk cannot be read.
        """
        prompts, count, chunk_size = check_request(prompts, count, chunk_size)
        if not hasattr(sampler, "sample"):
            raise ValueError(f"sampler is {sampler!r}; give TransformersSampler(load_language_model(NAME))")
        seed = whole("seed", seed)
        fingerprint = sampler.fingerprint
        identity = {
            "sampler": fingerprint,
            "settings": settings.described(),
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
            _write(path, **{**vars(responses), "texts": _packed(responses.texts.tolist())})
        drawn = tuple(concatenate([_read_responses(path) for path in paths])[:count] for paths in chunks)
        return Draws(tuple(prompts), drawn, chunks, fingerprint, sampler.name, settings)

    def score(self, reward_model: RewardModel, draws: Draws) -> NDArray[np.float64]:
        """Return the reward of every draw, shape (P, count), scoring only these, and of them what has no stored reward.

        Equal responses to a prompt are scored once and have one reward, whatever chunks they are in.

        Raises:
            ValueError: if the reward model returns something other than a finite number for a response.
            DamagedFileError: if a stored file cannot be read.
        """
        check_reward_model(reward_model)
        suffix = f".reward-{_hash(reward_model.fingerprint)[:20]}.npz"
        source = getattr(reward_model, "source", "")
        by_tokens, others = hasattr(reward_model, "score_responses"), set[str]()
        judged: list[dict[Hashable, float]] = [{} for _ in draws.prompts]
        missing: list[tuple[str, tuple[Path, Responses, dict[Hashable, float]]]] = []
        for prompt, responses, paths, known in zip(draws.prompts, draws.responses, draws.chunks, judged, strict=True):
            for path, chunk in zip(paths, _by_chunk(responses, paths), strict=True):
                file = path.with_suffix(suffix)
                stored, before = _stored_rewards(file)
                if source and before.split()[:1] == source.split()[:1] and before != source:
                    others.add(before)
                for key, reward in zip(_keys(chunk, by_tokens), stored.tolist(), strict=False):
                    known.setdefault(key, reward)
                if len(stored) < len(chunk):
                    missing.append((prompt, (file, chunk, known)))
            if known and hasattr(reward_model, "remember"):
                place = {key: place for place, key in enumerate(_keys(responses, by_tokens)) if key in known}
                rewards = np.array([known[key] for key in place])
                reward_model.remember([prompt] * len(place), responses[list(place.values())], rewards)
        if others:
            warnings.warn(
                f"stored rewards come back that another function called {getattr(reward_model, 'name', '')!r} gave: "
                "call this one otherwise",
                stacklevel=2,
            )
        for prompt, (file, chunk, known) in _progress(missing, "scoring"):
            keys = _keys(chunk, by_tokens)
            new = {key: place for place, key in enumerate(keys) if key not in known}
            if new:
                found = checked_score(reward_model, [prompt] * len(new), chunk[list(new.values())])
                known.update(zip(new, found.tolist(), strict=True))
            if len(_stored_rewards(file)[0]) < len(chunk):  # else another process has scored more meanwhile
                about = {"source": np.array(source)} if source else {}
                _write(file, rewards=np.array([known[key] for key in keys]), **about)
        return np.array(
            [
                [known[key] for key in _keys(responses, by_tokens)]
                for responses, known in zip(draws.responses, judged, strict=True)
            ]
        )

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
        """Delete draws of prompts last asked for so many days ago, and policies trained then; return the bytes freed.

        Raises:
            ValueError: if `unused_days` is not a finite number of at least 0.
        """
        unused_days = number("unused_days", unused_days, least=0)
        freed = 0
        for about in [*self.root.glob("*/*/about.json"), *self.root.glob(f"{POLICIES}/*/run.json")]:
            if about.stat().st_mtime <= time.time() - unused_days * 86_400:
                freed += sum(file.stat().st_size for file in about.parent.rglob("*") if file.is_file())
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


def check_request(prompts: Sequence[str], count: int, chunk_size: int) -> tuple[list[str], int, int]:
    """Return what is asked of `SampleStore.draw` in Python's own kinds; a ValueError says what it would refuse."""
    texts = strings("prompts", prompts, least=1)
    prompt, times = Counter(texts).most_common(1)[0]
    if times > 1:
        raise ValueError(f"prompts has {prompt!r} {times} times, each to get the same draws: ask for more draws")
    return texts, whole("count", count, 1), whole("chunk_size", chunk_size, 1)


def check_draws(draws: Draws, reference: LoadedModel, few: int = 8) -> None:
    """Raise a ValueError unless draws are those of a model: their log-probabilities are taken for its own.

    Of those that another sampler drew, such as one of vLLM, the model reads a few.
    """
    if draws.sampler == TransformersSampler(reference).fingerprint:
        return
    count = len(draws.responses[0])
    chosen = np.unique(np.linspace(0, len(draws.prompts) * count - 1, few).astype(int))
    places = [divmod(int(place), count) for place in chosen]
    asked = [draws.prompts[prompt] for prompt, _ in places]
    responses = concatenate([draws.responses[prompt][[draw]] for prompt, draw in places])
    said, read = responses.log_probs, np.full(len(places), -np.inf)
    if responses.token_ids.max() < reference.vocabulary:
        read = response_log_probs(reference, asked, responses)
    exact = next(reference.model.parameters()).dtype == torch.float32
    off = np.abs(said - read) - (1e-3 if exact else 3e-2) * np.maximum(np.abs(said), 1.0)
    worst = int(off.argmax())
    if not off[worst] <= 0:
        raise ValueError(
            f"draws are those of {draws.model or 'another model'}, not of the reference {reference.name}: of response "
            f"{responses.texts[worst][:40]!r} they have the log-probability {said[worst]:.4f}, and it says "
            f"{read[worst]:.4f}: draw with TransformersSampler(reference)"
        )


def _progress(chunks: list[tuple[str, T]], what: str) -> Iterable[tuple[str, T]]:
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


def _read(path: Path, names: set[str], perhaps: frozenset[str] = frozenset()) -> dict[str, NDArray[Any]]:
    content = path.read_bytes()
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            arrays = dict(archive)
    except Exception as error:  # a flipped bit can surface as any of a dozen kinds
        raise DamagedFileError(f"{path} is damaged ({error}): delete it, and what it held is made again") from error
    if set(arrays) - perhaps != names:
        raise DamagedFileError(f"{path} holds {sorted(arrays)} in place of {sorted(names)}: delete it")
    return arrays


def _packed(texts: list[str]) -> NDArray[np.uint8]:
    """Texts as bytes: NumPy's own strings would lose NULs at their ends."""
    return np.frombuffer(json.dumps(texts, ensure_ascii=False).encode("utf-8", "surrogatepass"), dtype=np.uint8)


def _read_responses(path: Path) -> Responses:
    arrays = _read(path, {field.name for field in fields(Responses)})
    if arrays["texts"].dtype == np.uint8:  # older files have NumPy's strings
        arrays["texts"] = json.loads(arrays["texts"].tobytes().decode("utf-8", "surrogatepass"))
    return Responses(**arrays)


def _stored_rewards(file: Path) -> tuple[NDArray[np.float64], str]:
    """Rewards of the first draws of a chunk, as far as they are there, and which code gave them, if that is known."""
    if not file.exists():
        return np.empty(0), ""
    arrays = _read(file, {"rewards"}, frozenset({"source"}))
    return arrays["rewards"], str(arrays.get("source", ""))


def _by_chunk(responses: Responses, paths: Sequence[Path]) -> list[Responses]:
    """The responses to a prompt, chunk by chunk."""
    size = len(responses)
    if len(paths) > 1:
        size = int(json.loads(paths[0].with_name("about.json").read_text())["chunk_size"])
    return [responses[start : start + size] for start in range(0, len(responses), size)]


def _keys(responses: Responses, by_tokens: bool) -> list[Hashable]:
    """What tells responses to a prompt apart: their text, and for a reward model that looks at them their tokens."""
    if not by_tokens:
        return list(responses.texts)
    tokens = (row[row >= 0].tobytes() for row in responses.token_ids)
    return list(zip(responses.texts, tokens, strict=True))


def _days(context: click.Context, option: click.Parameter, text: str | None) -> float | None:
    return None if text is None else number("--prune: prune", literal(text), least=0)


@click.command("store")
@click.option("--root", type=Path, help="folder, instead of BONLIB_STORE or the user's cache folder")
@click.option("--prune", callback=_days, metavar="DAYS", help="delete what nobody asked for in so many days (0: all)")
def store_command(root: Path | None, prune: float | None) -> None:
    """Show what the store of draws holds, or prune it."""
    if root and not root.expanduser().is_dir():
        raise ValueError(f"--root is {str(root)!r}, where there is no store: check the spelling")
    store = SampleStore(root and root.expanduser())
    if prune is not None:
        print(f"freed {store.prune(prune) / 1e6:.1f} MB")
    for row in store.describe():
        print("  ".join(f"{key}={value}" for key, value in row.items()))
    if policies := list((store.root / POLICIES).glob("*/run.json")):
        print(f"{len(policies)} trained policies in {store.root / POLICIES}")
    print(f"{store.root}: {store.size() / 1e6:.1f} MB")
