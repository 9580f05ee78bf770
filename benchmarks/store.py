"""The store with many prompts: tokens a second and files of few draws each, and seconds to open what is there.

    python benchmarks/store.py [--model imdb-gpt2-tiny] [--shapes 200x4 50x16 4x1024] [--stored 2000x64]

The draws are those of openings of movie reviews; beside them stands the sampler alone, on one prompt and without a
store, which is what they could reach. Opening and scoring again are measured on draws of a sampler that costs nothing.
"""

import argparse
import resource
import tempfile
import time

import numpy as np

from bonlib.course.making.reviews import review_prompts
from bonlib.draws.rewards import FunctionReward
from bonlib.draws.samplers import SamplingSettings, TransformersSampler
from bonlib.draws.store import SampleStore
from bonlib.models.loaded import load_language_model
from bonlib.models.responses import Responses


class RandomSampler:
    """Random words of a few tokens at once."""

    fingerprint = name = "random words"

    def sample(self, prompts, settings, *, seed):
        """Return one response to each prompt."""
        rng = np.random.default_rng(seed)
        tokens = rng.integers(0, 50_000, (len(prompts), settings.max_new_tokens)).astype(np.int32)
        tokens[np.arange(tokens.shape[1]) >= rng.integers(1, tokens.shape[1] + 1, len(prompts))[:, None]] = -1
        texts = [" ".join(f"{token:x}" for token in row if token >= 0) for row in tokens.tolist()]
        log_probs = -rng.gamma(8.0, 1.0, len(prompts))
        return Responses(texts, tokens, log_probs, log_probs)


def shape(text):
    prompts, count = text.split("x")
    return int(prompts), int(count)


def files(root):
    return sum(path.is_file() for path in root.rglob("*"))


def seconds(action):
    begun = time.perf_counter()
    found = action()
    return time.perf_counter() - begun, found


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="imdb-gpt2-tiny")
    parser.add_argument("--new-tokens", type=int, default=24)
    parser.add_argument("--shapes", type=shape, nargs="*", default=[(200, 4), (50, 16), (4, 1024)])
    parser.add_argument("--stored", type=shape, default=(2000, 64))
    arguments = parser.parse_args()
    length = FunctionReward(lambda prompt, response: float(len(response)), name="letters of a response")

    if arguments.shapes:
        loaded = load_language_model(arguments.model)
        sampler, settings = TransformersSampler(loaded), SamplingSettings(arguments.new_tokens)
        prompts = review_prompts(loaded.tokenizer, max(prompts for prompts, _ in arguments.shapes), seed=0)
        for warm in (0, 1):
            took, drawn = seconds(lambda warm=warm: sampler.sample(prompts[:1] * 1024, settings, seed=warm))
        print(f"sampler alone, one prompt: {drawn.lengths.sum() / took:,.0f} tokens/s")
    for number, count in arguments.shapes:
        with tempfile.TemporaryDirectory() as folder:
            store, asked = SampleStore(folder), prompts[:number]
            took, draws = seconds(lambda: store.draw(sampler, asked, count, settings, seed=0))  # noqa: B023
            tokens = draws.lengths.sum()
            print(
                f"{number} × {count}: {took:.2f} s, {tokens / took:,.0f} tokens/s of those asked for, "
                f"{files(store.root)} files, {store.size() / 1e6:.2f} MB"
            )

    number, count = arguments.stored
    asked = [f"prompt {place} of many" for place in range(number)]
    with tempfile.TemporaryDirectory() as folder:

        def draw():
            return SampleStore(folder).draw(RandomSampler(), asked, count, SamplingSettings(8), seed=0)

        drawing, draws = seconds(draw)
        scoring, _ = seconds(lambda: SampleStore(folder).score(length, draws))
        opening, draws = seconds(draw)
        again, _ = seconds(lambda: SampleStore(folder).score(length, draws))
        few, _ = seconds(lambda: SampleStore(folder).draw(RandomSampler(), asked[:4], 4, SamplingSettings(8), seed=0))
        store = SampleStore(folder)
        print(
            f"{number} × {count} of at most 8 tokens: kept in {drawing:.1f} s, scored in {scoring:.1f} s; opened in "
            f"{opening:.2f} s, scored again in {again:.2f} s, 4 × 4 of them opened in {1e3 * few:.0f} ms; "
            f"{files(store.root)} files, {store.size() / 1e6:.1f} MB; "
            f"at most {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB of memory"
        )


if __name__ == "__main__":
    main()
