"""Documents to summarise, with people's summaries of them, and the prompts that ask for one."""

from __future__ import annotations

import hashlib
import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from bonlib.course.making.reviews import load_reviews
from bonlib.course.making.rows import checked_text, checked_texts, entry, read_jsonl, source_rows

REQUEST = "\n\nTL;DR:"
RELATIONSHIPS = ("relationships", "relationship_advice")
SCITLDR = "allenai/scitldr"
REDDIT = "vwxyzjn/summarize_from_feedback_tldr_3_filtered"

_SENTENCE_END = re.compile(r"\n+|(?<=[.!?])[\"')\]]*\s+")


@dataclass(frozen=True)
class Document:
    """A text to summarise.

    Attributes:
        text: of the document.
        summaries: of it by people; none for movie reviews.
        title: of a post on Reddit, where it is part of the prompt.
        subreddit: where that was posted, without "r/".

    Raises:
        ValueError: if the text is empty, or `summaries` is one string and not a tuple of them.
    """

    text: str
    summaries: tuple[str, ...] = ()
    title: str = ""
    subreddit: str = ""

    def __post_init__(self) -> None:
        checked_text("text", self.text)
        if isinstance(self.summaries, str):
            raise ValueError(f"summaries is {self.summaries!r}; it must be a tuple of strings, such as ('a summary',)")

    def prompt(self, text: str) -> str:
        """Return the request for a summary, with the document's text or a shorter one in its place."""
        if not self.subreddit:
            return text + REQUEST
        return f"SUBREDDIT: r/{self.subreddit}\n\nTITLE: {self.title}\n\nPOST: {text}{REQUEST}"


def summary_prompt(tokenizer: Any, document: Document, max_tokens: int) -> str:
    """Return the request for a summary of a document, its text cut where a sentence ends if it is too long.

    Args:
        tokenizer: of the model that is asked.
        document: to summarise.
        max_tokens: of the prompt, its special tokens included.

    Raises:
        ValueError: if not even the first word fits.

    Source: Stiennon et al. 2020, appendix B, for the form of Reddit posts and for cutting the post, not its title.
    """

    def fits(end: int) -> bool:
        return len(tokenizer(document.prompt(document.text[:end]))["input_ids"]) <= max_tokens

    # Where there is not room for a sentence, one is cut between words.
    sentences = [match.start() for match in _SENTENCE_END.finditer(document.text)]
    words = [match.start() for match in re.finditer(r"\s+", document.text[: sentences[0] if sentences else None])]
    ends = [*words, *sentences, len(document.text)]
    low, high = 0, len(ends)  # the first `low` fit
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if fits(ends[middle]) else (low, middle)
    if low == 0:
        raise ValueError(
            f"max_tokens is {max_tokens}; the request alone takes as much for {document.text[:40]!r}…: raise it"
        )
    return document.prompt(document.text[: ends[low - 1]].rstrip())


@lru_cache(maxsize=4)
def load_abstracts(split: str) -> tuple[Document, ...]:
    """Return abstracts of computational linguistics from the package `aclsum`, each with three one-sentence summaries.

    They say, of a paper, the challenge, the approach and the outcome.

    Args:
        split: "train" (100 abstracts), "validation" (50) or "test" (100, for evaluation only).

    Raises:
        ValueError: if `split` is none of them.
        ModuleNotFoundError: if the package is not installed.

    Source: Takeshita et al. 2024 (ACLSum).
    """
    from nltk.tokenize.treebank import TreebankWordDetokenizer

    file = {"train": "train", "validation": "val", "test": "test"}.get(split)
    if file is None:
        raise ValueError(f"split is {split!r}; it must be 'train', 'validation' or 'test'")
    spec = importlib.util.find_spec("aclsum")  # found, never imported: its own dependencies need not be there
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            "the package that carries the abstracts is missing: pip install --no-deps aclsum==0.1.2"
        )
    joined = TreebankWordDetokenizer()
    return tuple(
        Document(
            " ".join(joined.detokenize(sentence.split()) for sentence in row["sentences"]["abstract"]),
            tuple(row["summary"].values()),
        )
        for row in read_jsonl(Path(spec.origin).parent / "dataset" / f"{file}.jsonl")
    )


def review_documents(least_words: int = 80) -> list[Document]:
    """Return held-out movie reviews of at least so many words, in a fixed random order: far from any abstract."""
    return [Document(review.text) for review in load_reviews("heldout") if len(review.text.split()) >= least_words]


@lru_cache(maxsize=4)
def load_scitldr(split: str, source: str = SCITLDR, revision: str | None = None) -> tuple[Document, ...]:
    """Return abstracts of papers on machine learning with people's one-sentence TL;DRs, shuffled by a hash of the text.

    Args:
        split: "train" (1,992 abstracts, one TL;DR each), "validation" (619, 2.3 each) or "test" (618, 3.2 each).
        source: data set on the hub, or a local folder with its files train.jsonl, dev.jsonl and test.jsonl.
        revision: commit, tag or branch of a hub data set.

    Raises:
        ValueError: if `split` is none of them, or a row is not as SciTLDR's are.
        FileNotFoundError: if a local folder lacks the file.

    Source: Cachola et al. 2020 (SciTLDR).
    """
    file = {"train": "train", "validation": "dev", "test": "test"}.get(split)
    if file is None:
        raise ValueError(f"split is {split!r}; it must be 'train', 'validation' or 'test'")
    documents = [
        Document(
            " ".join(" ".join(checked_texts(f"{where}: source", entry(where, row, "source"))).split()),
            tuple(" ".join(text.split()) for text in checked_texts(f"{where}: target", entry(where, row, "target"))),
        )
        for where, row in source_rows(source, file, split, name="Abstract", revision=revision)
    ]
    if not documents:
        raise ValueError(f"source is {source!r}, whose {file} split has no rows; give abstracts and their TL;DRs")
    return _shuffled(documents)


def _shuffled(documents: Sequence[Document]) -> tuple[Document, ...]:
    return tuple(sorted(documents, key=lambda document: hashlib.sha256(document.text.encode()).hexdigest()))


def load_reddit(
    split: str, *, relationships: bool, source: str = REDDIT, revision: str | None = None
) -> tuple[Document, ...]:
    """Return Reddit posts with their authors' summaries, in an order shuffled by the hash of their text.

    Args:
        split: "train", "validation" or "test".
        relationships: whether to take the posts of r/relationships and r/relationship_advice, or all others.
        source: data set on the hub, or a local folder, with the columns subreddit, title, post and summary.
        revision: commit, tag or branch of a hub data set.

    Raises:
        ValueError: if a row lacks one of these, or has no text there.

    Source: Stiennon et al. 2020; the division is that of Amini et al., section 6.
    """
    columns = {"subreddit": True, "title": True, "post": False, "summary": False}  # whether it may be blank
    rows = (
        [checked_text(f"{where}: {name}", entry(where, row, name), blank=may).strip() for name, may in columns.items()]
        for where, row in source_rows(source, split, split, revision=revision)
    )
    documents = [
        Document(post, (summary,), title, subreddit)
        for name, title, post, summary in rows
        for subreddit in [name.removeprefix("r/")]
        if (subreddit in RELATIONSHIPS) == relationships
    ]
    return _shuffled(documents)


def rouge(summaries: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """Return how close summaries are to those of people: the mean of ROUGE-1, ROUGE-2 and ROUGE-L, as F1 from 0 to 1.

    Args:
        summaries: B texts.
        references: B times at least one text by a person; of several, each ROUGE takes the closest.

    Raises:
        ValueError: if the numbers differ, or a summary has no reference.

    Source: Lin 2004; `rouge-score`, with stemming, and the closest of several as in Cachola et al. 2020.
    """
    from rouge_score.rouge_scorer import RougeScorer

    for name, given in (("summaries", [summaries]), ("references", [references, *references])):
        alone = next((each for each in given if isinstance(each, str)), None)
        if alone is not None:  # its letters would be taken for texts
            raise ValueError(f"{name} holds {alone[:60]!r} where a list of strings is wanted: put it into brackets")
    if len(summaries) != len(references) or not all(references):
        raise ValueError(
            f"there are {len(summaries)} summaries and {len(references)} lists of references; give each summary a list "
            "of at least one"
        )
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    found = []
    for summary, texts in zip(summaries, references, strict=True):
        scores = scorer.score_multi(list(texts), summary)
        found.append(sum(score.fmeasure for score in scores.values()) / len(scores))
    return found
