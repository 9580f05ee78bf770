"""The requests of notebook 11 to an instruct model, and the draws of its responses that come with the project.

`python -m bonlib.course.experiments.instruct_draws` makes the file anew.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import pandas as pd

from bonlib.course.experiments.results import RESULTS
from bonlib.course.profiles import get_profile
from bonlib.draws.samplers import SamplingSettings, TransformersSampler
from bonlib.draws.segments import replace_file
from bonlib.draws.store import Draws, SampleStore, check_draws
from bonlib.models.loaded import LoadedModel, load_language_model
from bonlib.models.responses import Responses
from bonlib.models.texts import chat_prompt, response_texts

FILE = RESULTS.parent / "instruct_draws.parquet"
# Beirami et al., appendix C: four requests of the Alpaca data set, and four to translate. The last two are the paper's
# own abstract, whose symbols the copy at hand had lost.
REQUESTS = {
    "P1": "Transform the following sentence into a yes/no question. It is going to rain tomorrow.",
    "P2": "Describe the function of a computer motherboard.",
    "P3": "What is the capital of France?",
    "P4": "Give three tips for staying healthy.",
}
ABSTRACT = (
    "A simple and effective method for the inference-time alignment and scaling test-time compute of generative models "
    "is the best-of-n policy, where n samples are drawn from a reference policy, ranked based on a reward function, "
    "and the highest ranking one is selected. A commonly used analytical expression in the literature claims that the "
    "KL divergence between the best-of-n policy and the reference policy is equal to log(n) - (n-1)/n. We disprove the "
    "validity of this claim, and show that it is an upper bound on the actual KL divergence. We also explore the "
    "tightness of this upper bound in different regimes, and propose a new estimator for the KL divergence and "
    "empirically show that it provides a tight approximation. We also show that the win rate of the best-of-n policy "
    "against the reference policy is upper bounded by n/(n+1) and derive bounds on the tightness of this "
    "characterization. We conclude with analyzing the tradeoffs between win rate and KL divergence of the best-of-n "
    "alignment policy, which demonstrate that very good tradeoffs are achievable with n < 1000."
)
TRANSLATIONS = {
    f"{size}, {language}": f"Translate the next sentences to {language}. {text}"
    for size, text in (("short", "I want to buy bread."), ("long", ABSTRACT))
    for language in ("German", "French")
}


def asked(loaded: LoadedModel) -> dict[str, str]:
    """Return the eight requests in an instruct model's chat template, by their labels."""
    return {label: chat_prompt(loaded.tokenizer, text) for label, text in (REQUESTS | TRANSLATIONS).items()}


def bundled_draws(
    sampler: TransformersSampler, prompts: Sequence[str], count: int, settings: SamplingSettings, seed: int
) -> Draws | None:
    """Return draws of the instruct model that come with the project, without drawing anything.

    Args:
        sampler: of the model that they are to be of; it reads a few of them again.
        prompts: P, in the chat template.
        count: draws a prompt.
        settings: the law to draw from.
        seed: of the draws.

    Returns:
        The draws; None if the file lacks some of them, or holds those of another model or law.
    """
    table = pd.read_parquet(FILE).set_index("prompt")
    laws = table[["max_new_tokens", "seed"]].drop_duplicates().to_numpy().tolist()
    if (
        not settings.plain
        or settings.stop
        or laws != [[settings.max_new_tokens, seed]]
        or set(prompts) - set(table.index)
    ):
        return None
    rows = table.loc[list(prompts)]
    if rows["lengths"].map(len).min() < count:
        return None
    responses = tuple(_responses(sampler.loaded, str(prompt), row, count) for prompt, row in rows.iterrows())
    draws = Draws(tuple(prompts), responses, FILE.parent, model=rows["model"].iloc[0], settings=settings)
    try:
        check_draws(draws, sampler.loaded)
    except ValueError:
        return None
    return draws


def _responses(loaded: LoadedModel, prompt: str, row: pd.Series, count: int) -> Responses:
    ends = np.cumsum(row["lengths"][:count], dtype=np.int64)
    parts = np.split(row["tokens"][: ends[-1]].astype(np.int32), ends[:-1])
    token_ids = np.full((count, max(map(len, parts))), -1, np.int32)
    for place, part in enumerate(parts):
        token_ids[place, : len(part)] = part
    (encoded,) = loaded.encode([prompt], token_ids.shape[1])
    texts = response_texts(loaded.tokenizer, [encoded] * count, [part.tolist() for part in parts])
    log_probs = row["log_probs"][:count].astype(np.float64)
    return Responses(np.array(texts, dtype=object), token_ids, log_probs, log_probs)


def make() -> None:
    """Draw what notebook 11 begins with in the profile quick, in single precision, and write it to `FILE`."""
    profile = get_profile("quick")
    settings, seed = SamplingSettings(profile.instruct.max_new_tokens), profile.seed
    loaded = load_language_model(profile.instruct_model, device="cpu", dtype="float32")
    sampler = TransformersSampler(loaded, batch_size=profile.instruct.batch_size)
    draws = SampleStore().draw(sampler, list(asked(loaded).values()), profile.instruct.draws, settings, seed=seed)
    rows = [
        {
            "model": loaded.name,
            "max_new_tokens": settings.max_new_tokens,
            "seed": seed,
            "prompt": prompt,
            "tokens": drawn.token_ids[drawn.token_ids >= 0].astype(np.uint16),
            "lengths": drawn.lengths.astype(np.uint8),
            "log_probs": drawn.log_probs.astype(np.float32),
        }
        for prompt, drawn in zip(draws.prompts, draws.responses, strict=True)
    ]
    content = io.BytesIO()
    pd.DataFrame(rows).to_parquet(content, index=False, compression="zstd", compression_level=19)
    replace_file(FILE, content.getvalue())


if __name__ == "__main__":
    make()
