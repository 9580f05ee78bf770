"""Prompts and a reward that small random models can learn from in a few steps."""

PROMPTS = ["the film", "a bad", "I saw", "nobody knows"]


def vowels(prompt, response):
    return sum(letter in "aeiou" for letter in response) / 10 + len(response) / 1000
