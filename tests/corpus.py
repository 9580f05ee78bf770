"""Sentences that the tokenizers of the tests are made from."""

TEXTS = [
    "the film was good and the end was sad",
    "a bad film, a very bad film indeed",
    "I saw this with my mother and we laughed",
    "nobody knows why this was made",
] * 8
