"""Prompts and a reward that small random models can learn from in a few steps."""

import itertools

from bonlib.course.making.adapters import Ranked
from bonlib.course.making.documents import Document

PROMPTS = ["the film", "a bad", "I saw", "nobody knows"]


def vowels(prompt, response):
    return sum(letter in "aeiou" for letter in response) / 10 + len(response) / 1000


DOCUMENTS = [Document(f"the film was {kind} and the end was sad.", ("a very bad film",)) for kind in ("good", "bad")]
EXAMPLES = [
    Ranked(f"the film was {a} {b}\n\nTL;DR:", (good, bad, "laughed"), (0.5, 0.0), ((0, 1), (0, 2), (1, 2)))
    for a, b in itertools.product(["good", "bad"], ["and sad", "indeed"])
    for good, bad in [("a very bad film", "nobody knows why"), ("a film", "my mother")]
]
