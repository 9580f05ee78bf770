"""Draws that come with the project, for notebooks whose lesson begins after the drawing.

`python -m bonlib.course.experiments.bundled imdb` makes those of movie reviews anew, `… instruct` those of notebook 11,
`… readable` the texts that notebook 05 shows of a larger reference.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Hashable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bonlib.course.experiments.instruct import asked
from bonlib.course.experiments.results import RESULTS
from bonlib.course.experiments.setting import Setting, imdb_setting, review_judge
from bonlib.course.making.reviews import review_prompts
from bonlib.course.profiles import get_profile, readable
from bonlib.draws.rewards import CutPenalty, SentimentReward, checked_score
from bonlib.draws.samplers import SamplingSettings, TransformersSampler
from bonlib.draws.segments import replace_file
from bonlib.draws.store import Draws, SampleStore, check_draws
from bonlib.exact import Array
from bonlib.models.loaded import LoadedModel, load_language_model
from bonlib.models.responses import Responses, concatenate
from bonlib.models.texts import response_texts

FILES = {name: RESULTS.parent / f"{name}_draws.parquet" for name in ("imdb", "instruct")}
READABLE, READ = RESULTS.parent / "readable.parquet", 64  # a file of texts, and how many it has to a prompt
FEW = 8  # draws that the reward model reads again before the others are believed

Row = dict[Hashable, Any]


def bundled_draws(
    loaded: LoadedModel, prompts: Sequence[str], count: int, settings: SamplingSettings, seed: int
) -> Draws | None:
    """Return draws that come with the project, without drawing anything.

    Args:
        loaded: the model that they are to be of; it reads a few of them again.
        prompts: P, all different.
        count: draws a prompt.
        settings: the law to draw from.
        seed: of the draws.

    Returns:
        The draws, which no store has; None if the files lack some of them, or hold those of another model or law.
    """
    if not (rows := _find(loaded, prompts, count, settings, seed)):
        return None
    encoded = loaded.encode(list(prompts), settings.max_new_tokens)
    responses = tuple(_responses(loaded, ids, row, count) for ids, row in zip(encoded, rows, strict=True))
    draws = Draws(tuple(prompts), responses, model=loaded.name, settings=settings)
    try:
        check_draws(draws, loaded)
    except ValueError:
        return None
    return draws


def scored_draws(setting: Setting, prompts: Sequence[str], count: int, seed: int) -> tuple[Draws, Array] | None:
    """Return draws of movie reviews that come with the project, and their rewards, without drawing anything.

    Args:
        setting: models and law of the draws; the reward model reads a few of them again, as the reference does.
        prompts: P, all different.
        count: draws a prompt.
        seed: of the draws.

    Returns:
        The draws of `bundled_draws` and rewards of shape (P, count); None where that has none, or if the reward model
        says otherwise.
    """
    if not (draws := bundled_draws(setting.reference, prompts, count, setting.sampling, seed)):
        return None
    rows = _find(setting.reference, prompts, count, setting.sampling, seed)
    rewards = np.array([row["rewards"][:count] for row in rows], dtype=np.float64)
    places = np.unique(np.linspace(0, len(rows) - 1, FEW).astype(int))
    few, asked_again = (
        concatenate([draws.responses[place][:1] for place in places]),
        [prompts[place] for place in places],
    )
    same = np.allclose(checked_score(setting.reward_model, asked_again, few), rewards[places, 0], atol=1e-3)
    return (draws, rewards) if same else None


def _find(loaded: LoadedModel, prompts: Sequence[str], count: int, settings: SamplingSettings, seed: int) -> list[Row]:
    """The row of each prompt in the file that has so many draws for all; none if there is no such file."""
    if settings != SamplingSettings(settings.max_new_tokens):
        return []
    keys = [(loaded.name, settings.max_new_tokens, seed, prompt) for prompt in prompts]
    for table in map(_table, FILES.values()):
        if all(key in table and len(table[key]["lengths"]) >= count for key in keys):
            return [table[key] for key in keys]
    return []


@cache
def _table(file: Path) -> dict[tuple[Any, ...], Row]:
    """The rows of a file by what they are asked for by; none if it is missing or damaged."""
    try:
        rows = pd.read_parquet(file).to_dict("records")
        return {(row["model"], row["max_new_tokens"], row["seed"], row["prompt"]): row for row in rows}
    except Exception:  # a flipped bit can surface as any of a dozen kinds
        return {}


def _responses(loaded: LoadedModel, prompt: list[int], row: Row, count: int) -> Responses:
    lengths = row["lengths"][:count].astype(int)
    ids = np.full((count, lengths.max()), -1, np.int32)
    ids[np.arange(ids.shape[1]) < lengths[:, None]] = row["tokens"][: lengths.sum()]
    tokens = [drawn[:length].tolist() for drawn, length in zip(ids, lengths, strict=True)]
    texts = response_texts(loaded.tokenizer, [prompt] * count, tokens)
    log_probs = row["log_probs"][:count].astype(np.float64)
    return Responses(np.array(texts, dtype=object), ids, log_probs, log_probs)


def make_imdb() -> None:
    """Draw the movie reviews that notebooks of the profile quick begin with, and write them with their rewards."""
    profile = get_profile("quick")
    imdb, sizes, seed = profile.imdb, profile.cdf, profile.seed
    setting = imdb_setting(profile)
    learned = review_prompts(
        setting.reference.tokenizer, imdb.train_prompts, seed=seed, split="train", lengths=imdb.prompt_tokens
    )
    draw = partial(_draw, setting.sampler, setting.sampling, setting.reward_model)
    examined = setting.prompts[: sizes.prompts]
    rows = draw(examined, sizes.samples + max(sizes.ms), seed)
    means = np.array([row["rewards"][: sizes.samples] for row in rows], float).mean(axis=1)
    rows += draw(setting.prompts[sizes.prompts :], imdb.draws + imdb.opponents, seed)
    rows += draw(learned, profile.training.draws, seed)
    chosen = dict.fromkeys((means.argmin(), np.abs(means - 0.5).argmin(), means.argmax()))  # those of notebook 06
    rows += draw([examined[place] for place in chosen], sizes.truth_draws, seed + 1)
    # A review to learn from may begin as one to be judged by: the fewer draws of a prompt are the first of the more.
    rows.sort(key=lambda row: len(row["rewards"]))
    _write("imdb", [*{(row["seed"], row["prompt"]): row for row in rows}.values()])


def make_instruct() -> None:
    """Draw what notebook 11 begins with in the profile quick, in single precision, and write it."""
    profile = get_profile("quick")
    sizes = profile.instruct
    loaded = load_language_model(profile.instruct_model, device="cpu", dtype="float32")
    sampler = TransformersSampler(loaded, batch_size=sizes.batch_size)
    law, prompts = SamplingSettings(sizes.max_new_tokens), list(asked(loaded).values())
    _write("instruct", _draw(sampler, law, None, prompts, sizes.draws, profile.seed))


def make_readable() -> None:
    """Write texts of the readable reference with what both judges say of them, a row a text."""
    profile = readable(get_profile("laptop"))
    setting, store = imdb_setting(profile), SampleStore()
    draws = store.draw(setting.sampler, setting.prompts, READ, setting.sampling, seed=profile.seed)
    tables = {"reward": store.score(setting.reward_model, draws), "gold": store.score(review_judge(profile), draws)}
    rows = {"prompt": np.repeat(draws.prompts, READ), "response": draws.texts.ravel()}
    rows |= {name: table.ravel().astype(np.float32) for name, table in tables.items()}
    replace_file(READABLE, _compressed(pd.DataFrame(rows)))


def _draw(
    sampler: TransformersSampler,
    settings: SamplingSettings,
    reward_model: SentimentReward | CutPenalty | None,
    prompts: Sequence[str],
    count: int,
    seed: int,
) -> list[dict[str, Any]]:
    store = SampleStore()
    draws = store.draw(sampler, prompts, count, settings, seed=seed)
    rows: list[dict[str, Any]] = [
        {
            "model": draws.model,
            "max_new_tokens": settings.max_new_tokens,
            "seed": seed,
            "prompt": prompt,
            "tokens": drawn.token_ids[drawn.token_ids >= 0].astype(np.uint16),
            "lengths": drawn.lengths.astype(np.uint16),
            "log_probs": drawn.log_probs.astype(np.float32),
        }
        for prompt, drawn in zip(draws.prompts, draws.responses, strict=True)
    ]
    if reward_model is not None:
        for row, rewards in zip(rows, store.score(reward_model, draws), strict=True):
            row.update(reward_model=reward_model.loaded.name, rewards=rewards.astype(np.float32))
    return rows


def _write(name: str, rows: list[dict[str, Any]]) -> None:
    replace_file(FILES[name], _compressed(pd.DataFrame(rows)))


def _compressed(rows: pd.DataFrame) -> bytes:
    content = io.BytesIO()
    rows.to_parquet(content, index=False, compression="zstd", compression_level=19)
    return content.getvalue()


if __name__ == "__main__":
    makers = {"imdb": make_imdb, "instruct": make_instruct, "readable": make_readable}
    parser = argparse.ArgumentParser(description="Make a file of draws that come with the project anew.")
    parser.add_argument("file", choices=makers)
    makers[parser.parse_args().file]()
