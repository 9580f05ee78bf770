"""Draws of the store's former layout: a folder for each prompt, with files of so many draws each and their rewards.

When a prompt is asked for, they become the first of its draws in the files of today, and the folder goes.
"""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from bonlib.draws.segments import (
    DrawRows,
    RewardRows,
    add,
    digests,
    join,
    read_arrays,
    read_each,
    read_prompts,
    unpacked,
)
from bonlib.models.responses import Responses

ABOUTS = "??/*/about.json"  # where in a store they are described
FORMAT = 2
ROWS = 1 << 14  # of draws that are moved at once


def adopt(root: Path, folder: Path, about: dict[str, Any], prompts: Sequence[str]) -> None:
    """Move draws of prompts, and their rewards, into a folder of today.

    Args:
        root: of the store.
        folder: of the draws with this sampler, settings and seed.
        about: which these are.
        prompts: those asked for.
    """
    former = _folders(root.absolute()).get(json.dumps(about, sort_keys=True), {})
    if former.keys().isdisjoint(prompts):
        return
    there = {prompt for each in read_each(folder, "draws", read_prompts) for prompt in each}
    moved, rows = list[Path](), dict[str, list[Any]]()
    for prompt in prompts:
        found = former.pop(prompt, None)
        if found is None or prompt in there:
            continue
        with suppress(FileNotFoundError):  # another process is moving it
            for kind, parts in _read(found, prompt).items():
                rows.setdefault(kind, []).extend(parts)
            moved.append(found)
        if sum(len(part.index) for part in rows.get("draws", [])) >= ROWS:
            _move(folder, moved, rows)
            moved, rows = [], {}
    _move(folder, moved, rows)


@functools.cache  # once a process: there are as many as there are prompts
def _folders(root: Path) -> dict[str, dict[str, Path]]:
    """Folders of former draws: by sampler, settings and seed, and then by prompt the one that has most draws."""
    found: dict[str, dict[str, Path]] = {}
    sizes: dict[Path, int] = {}
    for file in sorted(root.glob(ABOUTS)):
        with suppress(ValueError, KeyError):
            identity = json.loads(file.read_text())
            if identity["format"] != FORMAT:
                continue
            about = {name: identity[name] for name in ("sampler", "settings", "seed")}
            of_prompt = found.setdefault(json.dumps(about, sort_keys=True), {})
            sizes[file.parent] = len(list(file.parent.glob("?????.npz"))) * identity["chunk_size"]
            before = of_prompt.get(identity["prompt"])
            if before is None or sizes[before] < sizes[file.parent]:
                of_prompt[identity["prompt"]] = file.parent
    return found


def _read(folder: Path, prompt: str) -> dict[str, list[Any]]:
    """The draws to a prompt and their rewards, by kind of file."""
    size = json.loads((folder / "about.json").read_text())["chunk_size"]
    found: dict[str, list[Any]] = {}
    for file in sorted(folder.glob("?????.npz")):
        columns = read_arrays(file, {field.name for field in fields(Responses)})
        responses = Responses(**{**columns, "texts": np.array(unpacked(columns["texts"]), dtype=object)})
        prompts, prompt_of = (prompt,), np.zeros(len(responses), dtype=np.intp)
        index = int(file.stem) * size + np.arange(len(responses))
        found.setdefault("draws", []).append(DrawRows(prompts, prompt_of, index, responses))
        for scored in sorted(folder.glob(f"{file.stem}.reward-*.npz")):
            columns = read_arrays(scored, {"rewards"}, {"source"})
            reward = columns["rewards"]
            sources = (str(columns["source"]),) if "source" in columns else ()
            of_kind = found.setdefault(f"rewards-{scored.stem.partition('.reward-')[2]}", [])
            for by_tokens in (False, True):  # it is not said whether the reward model looks at tokens
                digest = digests(responses[: len(reward)], by_tokens)
                of_kind.append(RewardRows(prompts, prompt_of[: len(reward)], digest, reward, sources))
    return found


def _move(folder: Path, moved: Sequence[Path], rows: dict[str, list[Any]]) -> None:
    """Write draws and rewards, the rewards first, and delete where they were."""
    for kind in sorted(rows, reverse=True):
        add(folder, kind, join(rows[kind]))
    for each in moved:
        shutil.rmtree(each, ignore_errors=True)
        with suppress(OSError):  # others are left
            each.parent.rmdir()
