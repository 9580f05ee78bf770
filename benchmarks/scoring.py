"""Responses scored a second by a reward model on a causal language model, as a ratio to reading each text whole.

    python benchmarks/scoring.py [--model imdb-sentiment-tiny] [--prompt-words 8] [--responses 256] [--rounds 5]

Both read the same texts in batches of like length, in turns, so that a busy machine slows both alike. A language model
is given a head of random weights: what it says is of no use, what it costs is that of any reward model on it.
"""

import argparse
import statistics
import time

import numpy as np
import torch

from bonlib.course.making.reviews import load_reviews
from bonlib.draws.rewards import ClassifierReward, SentimentReward
from bonlib.models.loaded import load_classifier


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="imdb-sentiment-tiny")
    parser.add_argument("--prompt-words", type=int, default=8)
    parser.add_argument("--response-words", type=int, default=18)
    parser.add_argument("--responses", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    loaded = load_classifier(arguments.model, device="cpu")
    kind = SentimentReward if loaded.model.config.num_labels == 2 else ClassifierReward
    words = " ".join(review.text for review in load_reviews("heldout")[:300]).split()
    prompt = " ".join(words[: arguments.prompt_words])
    starts = np.random.default_rng(0).integers(len(words) - arguments.response_words, size=arguments.responses)
    responses = [" " + " ".join(words[start : start + arguments.response_words]) for start in starts]
    prompts, wholes = [prompt] * len(responses), [prompt + response for response in responses]

    def seconds(score):
        begun = time.perf_counter()
        found = score()
        return time.perf_counter() - begun, found

    rounds = [
        (
            # A new one each time: a reward model does not judge a text twice.
            seconds(lambda: kind(loaded, batch_size=64).score(prompts, responses)),
            seconds(lambda: kind(loaded, batch_size=64).score_texts(wholes)),
        )
        for _ in range(arguments.rounds + 1)
    ][1:]  # the first round pays for set-up
    difference = max(np.abs(ours[1] - whole[1]).max() for ours, whole in rounds)
    ratios = sorted(whole[0] / ours[0] for ours, whole in rounds)
    rate = len(responses) / statistics.median(ours[0] for ours, _ in rounds)
    tokens = len(loaded.tokenizer(prompt)["input_ids"])
    print(f"{arguments.model}, {len(responses)} responses to a prompt of {tokens} tokens, {loaded.model.dtype}")
    print(f"{rate:,.0f} responses a second; rewards differ by at most {difference:.1e}")
    print(f"ratio to reading all of each text {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")


if __name__ == "__main__":
    main()
