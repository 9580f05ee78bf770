"""A store of draws and their rewards, so that nothing is sampled twice and an interruption costs seconds at most.

A draw follows from sampler, settings, seed, prompt and its number among the draws of the prompt: it has a seed of its
own, and is the same whatever it is drawn with, but for rounding. So draws of many prompts are made in one batch, and
the first ones never change when more are asked for. What was drawn with one sampler, settings and seed is in one
folder, in files of many draws; their rewards lie beside them.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import click
import numpy as np
import torch
from numpy.typing import NDArray
from platformdirs import user_cache_path
from tqdm import tqdm

from bonlib.checks import literal, number, strings, whole
from bonlib.draws import former
from bonlib.draws.rewards import RewardModel, check_reward_model, checked_rewards, checked_score
from bonlib.draws.samplers import Sampler, SamplingSettings, TransformersSampler
from bonlib.draws.segments import (
    DamagedFileError,
    DrawRows,
    RewardRows,
    add,
    digests,
    holds_any,
    merge,
    read_each,
    read_prompts,
    replace_file,
    sweep,
)
from bonlib.models.loaded import LoadedModel
from bonlib.models.reading import response_log_probs
from bonlib.models.responses import Responses, concatenate

FORMAT = 3  # of the files and the way of drawing; raise it when either changes
POLICIES = "policies"  # folder of those that `bonlib.train` keeps beside the draws
BATCH = 256  # responses asked for at once, where sampler or reward model do not say
KEEP_SECONDS, KEEP_ROWS = 2.0, 1 << 14  # what is drawn or scored is written after so long, or so much of it
ODD = np.uint64(0x9E3779B97F4A7C15)  # times the place of a prompt; sets apart equal digests of responses to others

T = TypeVar("T")
R = TypeVar("R", DrawRows, RewardRows)


@dataclass(frozen=True, eq=False)
class Draws:
    """The draws of several prompts, `count` each.

    Attributes:
        prompts: the P prompts.
        responses: of each prompt, in the order drawn.
        folder: where the store keeps them, and their rewards; None if no store does.
        sampler: fingerprint of what drew them; empty if it is not known.
        model: its name; likewise.
        settings: the law that they are drawn from; None if it is not known.
    """

    prompts: tuple[str, ...]
    responses: tuple[Responses, ...]
    folder: Path | None = None
    sampler: str = ""
    model: str = ""
    settings: SamplingSettings | None = None

    @cached_property
    def texts(self) -> NDArray[np.object_]:
        """(P, count) the responses as text."""
        return np.stack([r.texts for r in self.responses])

    @cached_property
    def log_probs(self) -> NDArray[np.float64]:
        """(P, count) log-probability of each response under the law that it was drawn from, nats; NaN: not known."""
        return np.stack([r.sampling_log_probs for r in self.responses])

    @cached_property
    def model_log_probs(self) -> NDArray[np.float64]:
        """(P, count) the same under the model as it is: temperature 1, every token allowed; NaN: not known."""
        return np.stack([r.log_probs for r in self.responses])

    @cached_property
    def lengths(self) -> NDArray[np.intp]:
        """(P, count) tokens of each response, the end token included; 0: not counted."""
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
        self, sampler: Sampler, prompts: Sequence[str], count: int, settings: SamplingSettings, *, seed: int
    ) -> Draws:
        """Return `count` draws for each prompt, sampling only those that the store lacks.

        Args:
            sampler: draws what is missing.
            prompts: different from each other, at least one.
            count: draws a prompt, at least 1; the first `count` are the same whatever `count` is.
            settings: the law to draw from.
            seed: a different seed gives independent draws.

        Raises:
            ValueError: if an argument is out of range.
            DamagedFileError: if a file of these draws cannot be read.
        """
        prompts, count = check_request(prompts, count)
        folder = self._folder(sampler, prompts, settings, seed)
        while True:
            held, parts = _held(folder, prompts, count)
            missing = np.flatnonzero(~held.ravel())
            if not missing.size:
                break
            _sample(folder, sampler, prompts, count, settings, missing)
        merge(folder, "draws", DrawRows)
        places = np.concatenate([at for at, _ in parts])
        drawn = concatenate([part for _, part in parts])[np.argsort(places)]
        responses = tuple(drawn[start : start + count] for start in range(0, len(drawn), count))
        return Draws(tuple(prompts), responses, folder, sampler.fingerprint, sampler.name, settings)

    def held(
        self, sampler: Sampler, prompts: Sequence[str], count: int, settings: SamplingSettings, *, seed: int
    ) -> NDArray[np.bool_]:
        """Return which of the draws that `draw` would return are there already, (P, count)."""
        prompts, count = check_request(prompts, count)
        return _held(self._folder(sampler, prompts, settings, seed), prompts, count)[0]

    def score(self, reward_model: RewardModel, draws: Draws) -> NDArray[np.float64]:
        """Return the reward of every draw, shape (P, count), scoring only these, and of them what has no stored reward.

        Equal responses to a prompt are scored once and have one reward.

        Raises:
            ValueError: if the draws are of no store, or the reward model returns something other than a finite number
                for a response.
            DamagedFileError: if a file of these rewards cannot be read.
        """
        check_reward_model(reward_model)
        folder = draws.folder
        if folder is None:
            raise ValueError("draws are of no store, which could keep their rewards: ask the reward model itself")
        kind = f"rewards-{_hash(reward_model.fingerprint)[:20]}"
        by_tokens, count = hasattr(reward_model, "score_responses"), len(draws.responses[0])
        digest = np.concatenate([digests(responses, by_tokens) for responses in draws.responses])
        keys = digest + np.repeat(np.arange(len(draws.prompts), dtype=np.uint64), count) * ODD
        different, first, which = np.unique(keys, return_index=True, return_inverse=True)
        rewards = _stored_rewards(draws, folder, kind, different, reward_model)
        if hasattr(reward_model, "remember"):
            known = np.flatnonzero(~np.isnan(rewards))
            for part in _blocks(known[np.argsort(first[known])], KEEP_ROWS):
                reward_model.remember(*_some(draws, first[part]), rewards[part])
        while (missing := np.isnan(rewards)).any():
            _score(draws, folder, kind, np.sort(first[missing]), digest, reward_model)
            rewards = _stored_rewards(draws, folder, kind, different, reward_model)
        merge(folder, kind, RewardRows)
        return rewards[which].reshape(len(draws.prompts), count)

    def size(self) -> int:
        """Return how many bytes the store takes."""
        return sum(path.stat().st_size for path in self.root.rglob("*") if path.is_file())

    def describe(self) -> list[dict[str, Any]]:
        """Return one row for each sampler and setting in the store: how many prompts, files and bytes."""
        rows: dict[str, dict[str, Any]] = {}
        for about in self._abouts():
            try:
                identity = json.loads(about.read_text())
                key = {"model": identity["model"], "sampler": identity["sampler"][:8], "seed": identity["seed"]}
                key.update(identity["settings"])
            except (ValueError, KeyError) as error:
                raise DamagedFileError(f"{about} is damaged ({error}): delete its folder") from error
            files = list(about.parent.glob("*.npz"))
            row = rows.setdefault(_hash(key), {**key, "prompts": 0, "files": 0, "bytes": 0})
            prompts = [[identity["prompt"]]] if "prompt" in identity else read_each(about.parent, "draws", read_prompts)
            row["prompts"] += len({prompt for each in prompts for prompt in each})
            row["files"] += len(files)
            row["bytes"] += sum(file.stat().st_size for file in files)
        return list(rows.values())

    def prune(self, unused_days: float = 0.0) -> int:
        """Delete what was not asked for in so many days; return the bytes freed.

        Draws of one sampler, settings and seed go together, once none of them was asked for so long, and their rewards
        with them; policies go so long after they were trained.

        Raises:
            ValueError: if `unused_days` is not a finite number of at least 0.
        """
        unused_days = number("unused_days", unused_days, least=0)
        freed = 0
        for about in [*self._abouts(), *self.root.glob(f"{POLICIES}/*/run.json")]:
            if about.stat().st_mtime <= time.time() - unused_days * 86_400:
                freed += sum(file.stat().st_size for file in about.parent.rglob("*") if file.is_file())
                shutil.rmtree(about.parent)
        return freed

    def _abouts(self) -> list[Path]:
        """The files that describe folders of draws."""
        return [*self.root.glob("draws/*/about.json"), *self.root.glob(former.ABOUTS)]

    def _folder(self, sampler: Sampler, prompts: Sequence[str], settings: SamplingSettings, seed: int) -> Path:
        """The folder of the draws of a sampler, settings and seed, marked as used."""
        if not hasattr(sampler, "sample"):
            raise ValueError(f"sampler is {sampler!r}; give TransformersSampler(load_language_model(NAME))")
        about = {"sampler": sampler.fingerprint, "settings": settings.described(), "seed": whole("seed", seed)}
        folder = self.root / "draws" / _hash({**about, "format": FORMAT})[:40]
        file = folder / "about.json"
        if file.exists():
            file.touch()  # prune asks when it was last used
            sweep(folder)
        else:
            replace_file(file, json.dumps({"model": sampler.name, **about, "format": FORMAT}, indent=1).encode())
        former.adopt(self.root, folder, about, prompts)
        return folder


def check_request(prompts: Sequence[str], count: int) -> tuple[list[str], int]:
    """Return what is asked of `SampleStore.draw` in Python's own kinds; a ValueError says what it would refuse."""
    texts = strings("prompts", prompts, least=1)
    prompt, times = Counter(texts).most_common(1)[0]
    if times > 1:
        raise ValueError(f"prompts has {prompt!r} {times} times, each to get the same draws: ask for more draws")
    return texts, whole("count", count, 1)


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
    if not all(each.tokens_known and np.isfinite(each.log_probs).all() for each in draws.responses):
        raise ValueError(
            f"draws are of {draws.model or 'a server'}, which did not tell each one's tokens and log-probability, "
            "which are needed: draw with bon.load(NAME), or from a server that tells them (vLLM's /v1/completions)"
        )
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


def _held(
    folder: Path, prompts: Sequence[str], count: int
) -> tuple[NDArray[np.bool_], list[tuple[NDArray[np.intp], Responses]]]:
    """Which of the draws asked for are there, (P, count), and these: their places in that table and responses."""
    place = {prompt: i for i, prompt in enumerate(prompts)}

    def read(file: Path) -> tuple[NDArray[np.intp], Responses] | None:
        if not holds_any(file, prompts):
            return None
        rows = DrawRows.read(file)
        asked = np.array([place.get(prompt, -1) for prompt in rows.prompts])[rows.prompt]
        kept = np.flatnonzero((asked >= 0) & (rows.index < count))
        return asked[kept] * count + rows.index[kept], rows.responses[kept]

    held = np.zeros(len(prompts) * count, dtype=bool)
    parts = []
    for found in read_each(folder, "draws", read):
        if found is not None:
            at, responses = found
            new = ~held[at]  # what two processes drew at once stands in two files
            held[at] = True
            parts.append((at, responses) if new.all() else (at[new], responses[new]))
    return held.reshape(len(prompts), count), parts


def _sample(
    folder: Path,
    sampler: Sampler,
    prompts: Sequence[str],
    count: int,
    settings: SamplingSettings,
    missing: NDArray[np.intp],
) -> None:
    """Make draws at some places of the table (P, count), and keep them as they come."""
    lengths = sampler.prompt_lengths(prompts) if hasattr(sampler, "prompt_lengths") else [0] * len(prompts)
    order = missing[np.argsort(np.array(lengths)[missing // count], kind="stable")]
    keys = [hashlib.sha256(json.dumps([folder.name, prompt]).encode()).digest() for prompt in prompts]
    written = itertools.count(1)

    def write(at: NDArray[np.intp], parts: list[Responses]) -> None:
        prompt, index = np.divmod(at, count)
        some, within = np.unique(prompt, return_inverse=True)
        rows = DrawRows(tuple(prompts[i] for i in some), within, index, concatenate(parts))
        _add(folder, "draws", rows, next(written))

    def come(at: NDArray[np.intp], places: NDArray[np.intp], responses: Responses) -> None:
        unknown = hasattr(sampler, "sample_each") & np.isnan(responses.log_probs)  # servers need not say them
        if len(responses) != len(places) or not (np.isfinite(responses.log_probs) | unknown).all():
            raise ValueError(
                f"{sampler.name} returned {len(responses)} responses for {len(places)} draws, the first to "
                f"{prompts[at[places][0] // count]!r}, or one whose log-probability is not finite: the model is broken "
                "(NaN weights?); they are not kept"
            )
        keep(at[places], responses)

    def at_once(asked: list[str], law: SamplingSettings, *, seed: list[int], keep: Callable[..., None]) -> None:
        keep(np.arange(len(asked)), sampler.sample(asked, law, seed=seed))

    each, size, seconds = at_once, getattr(sampler, "batch_size", BATCH), KEEP_SECONDS
    if hasattr(sampler, "sample_each"):
        each, size, seconds = sampler.sample_each, KEEP_ROWS, 0.0
    with _keeping(write, len(order), "sampling", seconds) as keep:
        for at in _blocks(order, size):
            pairs = [divmod(place, count) for place in at.tolist()]
            asked = [prompts[prompt] for prompt, _ in pairs]
            each(asked, settings, seed=[_seed(keys[prompt], index) for prompt, index in pairs], keep=partial(come, at))


def _seed(key: bytes, index: int) -> int:
    """The seed of a draw, a hash of all that it depends on."""
    digest = hashlib.blake2b(index.to_bytes(8, "little"), key=key, digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _stored_rewards(
    draws: Draws, folder: Path, kind: str, keys: NDArray[np.uint64], reward_model: RewardModel
) -> NDArray[np.float64]:
    """Rewards of some responses, known by their keys in ascending order; NaN where none is stored."""
    place = {prompt: i for i, prompt in enumerate(draws.prompts)}

    def read(file: Path) -> RewardRows | None:
        return RewardRows.read(file) if holds_any(file, draws.prompts) else None

    rewards, sources = np.full(len(keys), np.nan), set[str]()
    for rows in read_each(folder, kind, read):
        if rows is None:
            continue
        prompt = np.array([place.get(prompt, -1) for prompt in rows.prompts])[rows.prompt]
        asked = prompt >= 0
        theirs = rows.digest[asked] + prompt[asked].astype(np.uint64) * ODD
        at = np.minimum(np.searchsorted(keys, theirs), len(keys) - 1)
        new = (keys[at] == theirs) & np.isnan(rewards[at])
        rewards[at[new]] = rows.reward[asked][new]
        sources |= set(rows.sources)
    own = getattr(reward_model, "source", "")
    if own and any(each != own and each.split()[:1] == own.split()[:1] for each in sources):
        warnings.warn(
            f"stored rewards come back that another function called {getattr(reward_model, 'name', '')!r} gave: "
            "call this one otherwise",
            stacklevel=3,
        )
    return rewards


def _score(
    draws: Draws,
    folder: Path,
    kind: str,
    missing: NDArray[np.intp],
    digest: NDArray[np.uint64],
    reward_model: RewardModel,
) -> None:
    """Score responses at some places of the table (P, count), and keep their rewards as they come."""
    source, count = getattr(reward_model, "source", ""), len(draws.responses[0])
    written = itertools.count(1)

    def write(at: NDArray[np.intp], parts: list[NDArray[np.float64]]) -> None:
        some, within = np.unique(at // count, return_inverse=True)
        prompts, sources = tuple(draws.prompts[i] for i in some), (source,) if source else ()
        rows = RewardRows(prompts, within, digest[at], np.concatenate(parts), sources)
        _add(folder, kind, rows, next(written))

    def come(at: NDArray[np.intp], places: NDArray[np.intp], rewards: NDArray[np.float64]) -> None:
        keep(at[places], checked_rewards(rewards, *_some(draws, at[places])))

    size, seconds = getattr(reward_model, "batch_size", BATCH), KEEP_SECONDS
    if hasattr(reward_model, "score_each"):
        size, seconds = KEEP_ROWS, 0.0
    with _keeping(write, len(missing), "scoring", seconds) as keep:
        for at in _blocks(missing, size):
            asked, responses = _some(draws, at)
            if hasattr(reward_model, "score_each"):
                reward_model.score_each(asked, responses.texts.tolist(), keep=partial(come, at))
            else:
                keep(at, checked_score(reward_model, asked, responses))


def _some(draws: Draws, places: NDArray[np.intp]) -> tuple[list[str], Responses]:
    """Prompts and responses at some places of the table (P, count), in ascending order."""
    prompt, index = np.divmod(places, len(draws.responses[0]))
    some, begins = np.unique(prompt, return_index=True)
    parts = [draws.responses[i][rows] for i, rows in zip(some, np.split(index, begins[1:]), strict=True)]
    return [draws.prompts[i] for i in prompt], concatenate(parts)


def _blocks(places: NDArray[np.intp], size: int) -> Iterator[NDArray[np.intp]]:
    yield from (places[start : start + size] for start in range(0, len(places), size))


def _add(folder: Path, kind: str, rows: R, written: int) -> None:
    """Write the so manieth rows of a work, and merge files where it writes many."""
    add(folder, kind, rows)
    if written % 64 == 0:
        merge(folder, kind, type(rows))


@contextmanager
def _keeping(
    write: Callable[[NDArray[np.intp], list[T]], None], total: int, what: str, seconds: float
) -> Iterator[Callable[[NDArray[np.intp], T], None]]:
    """Have what is made written, every so many seconds and at the end, whatever ends the work."""
    places, parts, begun = list[NDArray[np.intp]](), list[T](), time.monotonic()

    def flush() -> None:
        nonlocal places, parts, begun
        if parts:
            write(np.concatenate(places), parts)
            places, parts, begun = [], [], time.monotonic()

    # Every refresh stays in a notebook's output for good, so there are few.
    with tqdm(total=total, desc=what, unit="draw", mininterval=5, leave=False) as progress:

        def keep(at: NDArray[np.intp], part: T) -> None:
            places.append(at)
            parts.append(part)
            progress.update(len(at))
            if time.monotonic() - begun >= seconds or sum(map(len, places)) >= KEEP_ROWS:
                flush()

        try:
            yield keep
        finally:
            flush()


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


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
