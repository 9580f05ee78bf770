"""Draws of the bundled models that come with the project, for notebooks whose lesson begins after the drawing.

`python -m bonlib.course.experiments.imdb_draws` makes the file anew.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Hashable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bonlib.course.experiments.results import RESULTS
from bonlib.course.experiments.setting import Setting, imdb_setting
from bonlib.course.making.reviews import review_prompts
from bonlib.course.profiles import get_profile
from bonlib.draws.rewards import checked_score
from bonlib.draws.samplers import SamplingSettings
from bonlib.draws.segments import replace_file
from bonlib.draws.store import Draws, SampleStore, check_draws
from bonlib.exact import Array
from bonlib.models.responses import Responses, concatenate
from bonlib.models.texts import response_texts

FILE = RESULTS.parent / "imdb_draws.parquet"
FEW = 8  # draws that the reward model reads again before the others are believed


def bundled_draws(setting: Setting, prompts: Sequence[str], count: int, seed: int) -> tuple[Draws, Array] | None:
    """Return draws of the reference that come with the project, and their rewards, without drawing anything.

    Args:
        setting: models and law of the draws.
        prompts: P, all different.
        count: draws a prompt.
        seed: that they were drawn with.

    Returns:
        The draws, which no store has, and rewards of shape (P, count); None if the file lacks some of them, or holds
        those of other models: the models in hand read a few again.
    """
    if setting.sampling != SamplingSettings(length := setting.sampling.max_new_tokens):
        return None
    keys, table = [(setting.reference.name, length, seed, prompt) for prompt in prompts], _table()
    if not all(key in table and len(table[key]["rewards"]) >= count for key in keys):
        return None
    rows = [table[key] for key in keys]
    asked = setting.reference.encode(list(prompts), length)
    responses = tuple(_responses(setting, ids, row, count) for ids, row in zip(asked, rows, strict=True))
    rewards = np.array([row["rewards"][:count] for row in rows], dtype=np.float64)
    draws = Draws(tuple(prompts), responses, model=setting.reference.name, settings=setting.sampling)
    try:
        check_draws(draws, setting.reference)
    except ValueError:
        return None
    places = np.unique(np.linspace(0, len(rows) - 1, FEW).astype(int))
    few, asked_again = concatenate([responses[place][:1] for place in places]), [prompts[place] for place in places]
    same = np.allclose(checked_score(setting.reward_model, asked_again, few), rewards[places, 0], atol=1e-3)
    return (draws, rewards) if same else None


@lru_cache(maxsize=1)
def _table() -> dict[tuple[Any, ...], dict[Hashable, Any]]:
    rows = pd.read_parquet(FILE).to_dict("records")
    return {(row["model"], row["max_new_tokens"], row["seed"], row["prompt"]): row for row in rows}


def _responses(setting: Setting, prompt: list[int], row: dict[Hashable, Any], count: int) -> Responses:
    ends = np.cumsum(row["lengths"][:count])
    tokens = [part.tolist() for part in np.split(row["tokens"][: ends[-1]], ends[:-1])]
    ids = np.full((count, max(map(len, tokens))), -1, np.int32)
    for place, drawn in enumerate(tokens):
        ids[place, : len(drawn)] = drawn
    texts = response_texts(setting.reference.tokenizer, [prompt] * count, tokens)
    log_probs = np.array(row["log_probs"][:count], float)
    return Responses(np.array(texts, dtype=object), ids, log_probs, log_probs)


def make() -> None:
    """Draw what the notebooks of the profile quick begin with, and write it to `FILE`."""
    profile = get_profile("quick")
    imdb, sizes, seed = profile.imdb, profile.cdf, profile.seed
    setting = imdb_setting(profile)
    learned = review_prompts(
        setting.reference.tokenizer, imdb.train_prompts, seed=seed, split="train", lengths=imdb.prompt_tokens
    )
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        store = SampleStore(Path(folder))

        def add(prompts: Sequence[str], count: int, seed: int) -> Array:
            draws = store.draw(setting.sampler, prompts, count, setting.sampling, seed=seed)
            rewards = store.score(setting.reward_model, draws)
            rows.extend(map(_row, [(setting, seed)] * len(prompts), prompts, draws.responses, rewards))
            return rewards

        examined = setting.prompts[: sizes.prompts]
        rewards = add(examined, sizes.samples + max(sizes.ms), seed)
        add(setting.prompts[sizes.prompts :], imdb.draws + imdb.opponents, seed)
        add(learned, profile.training.draws, seed)
        means = rewards[:, : sizes.samples].mean(axis=1)  # the three prompts of notebook 06
        chosen = dict.fromkeys(map(int, (means.argmin(), np.abs(means - 0.5).argmin(), means.argmax())))
        add([examined[place] for place in chosen], sizes.truth_draws, seed + 1)
    buffer = io.BytesIO()
    # A review to learn from may begin as one to be judged by: the fewer draws of a prompt are the first of the more.
    different = {(row["seed"], row["prompt"]): row for row in sorted(rows, key=lambda row: len(row["rewards"]))}
    pd.DataFrame([*different.values()]).to_parquet(buffer, index=False, compression="zstd", compression_level=19)
    replace_file(FILE, buffer.getvalue())


def _row(about: tuple[Setting, int], prompt: str, drawn: Responses, rewards: Array) -> dict[str, Any]:
    setting, seed = about
    return {
        "model": setting.reference.name,
        "reward_model": setting.reward_model.loaded.name,
        "max_new_tokens": setting.sampling.max_new_tokens,
        "seed": seed,
        "prompt": prompt,
        "tokens": drawn.token_ids[drawn.token_ids >= 0].astype(np.int16),
        "lengths": drawn.lengths.astype(np.int16),
        "log_probs": drawn.log_probs.astype(np.float32),
        "rewards": rewards.astype(np.float32),
    }


if __name__ == "__main__":
    make()
