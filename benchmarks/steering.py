"""Seconds and tokens of methods that choose while decoding, as ratios to plain best-of-n of as many responses.

    python benchmarks/steering.py [--prompts 32] [--n 32] [--new-tokens 24] [--batch 1024]

All write with the bundled tiny model, judged by its sentiment classifier, in turns, so that a busy machine slows all
alike. What the tokens promise is kept if the seconds of writing are in the ratio of the tokens, and those of judging in
that of the reward calls. "Draws and rewards" is best-of-n without the loop of these methods.
"""

import argparse
import statistics
import time

from bonlib.course.making.reviews import load_reviews
from bonlib.draws.rewards import SentimentReward
from bonlib.draws.samplers import SamplingSettings, TransformersSampler
from bonlib.inference.smc import SequentialMonteCarlo
from bonlib.inference.speculative_rejection import SpeculativeRejection
from bonlib.inference.steered import steer
from bonlib.inference.tree_best_of_n import TreeBestOfN
from bonlib.models.loaded import load_classifier, load_language_model


class Timed:
    """A reward model, and the seconds that it took."""

    def __init__(self, reward_model):
        self.reward_model, self.fingerprint, self.seconds = reward_model, reward_model.fingerprint, 0.0

    def score(self, prompts, responses):
        """Return the rewards, shape (B,)."""
        begun = time.perf_counter()
        rewards = self.reward_model.score(prompts, responses)
        self.seconds += time.perf_counter() - begun
        return rewards


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--n", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=24)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    n, length, classifier = arguments.n, arguments.new_tokens, load_classifier("imdb-sentiment-tiny")
    sampler = TransformersSampler(load_language_model("imdb-gpt2-tiny"), batch_size=arguments.batch)
    reward, settings = Timed(SentimentReward(classifier)), SamplingSettings(length)
    prompts = [" ".join(review.text.split()[:4]) for review in load_reviews("heldout")[: arguments.prompts]]
    third, half = length // 3, length // 2
    rules = {
        "best-of-n": SpeculativeRejection(n, ()),
        f"half rejected at {half}": SpeculativeRejection(n, (half,)),
        f"half rejected at {third}, {2 * third}": SpeculativeRejection(n, (third, 2 * third)),
        f"half rejected at {length // 4}, {half}, {3 * length // 4}": SpeculativeRejection(
            n, (length // 4, half, 3 * length // 4)
        ),
        f"TreeBoN, a quarter four times at {half}": TreeBestOfN(n, n // 4, 4, (half,)),
        f"SMC, resampled at {third}, {2 * third}": SequentialMonteCarlo(n, 0.1, (third, 2 * third)),
    }

    def write(rule, seed):
        found = steer(sampler, reward, prompts, rule, settings, seed=seed)
        return int(found.tokens.sum()), int(found.calls.sum()), float(found.rewards.mean())

    def draws_and_rewards(seed):
        listed = [prompt for prompt in prompts for _ in range(n)]
        draws = sampler.sample(listed, settings, seed=seed)
        rewards = reward.score(listed, draws.texts.tolist()).reshape(-1, n)
        return int(draws.lengths.sum()), rewards.size, float(rewards.max(axis=1).mean())

    ways = {name: lambda seed, rule=rule: write(rule, seed) for name, rule in rules.items()}
    ways["draws and rewards"] = draws_and_rewards
    ways["best-of-n"](99)  # the first call pays for set-up
    took, cost = {name: [] for name in ways}, {}
    for seed in range(arguments.rounds):
        for name, way in ways.items():
            reward.reward_model = SentimentReward(classifier)  # which remembers nothing
            begun, judging = time.perf_counter(), reward.seconds
            cost[name] = way(seed)
            whole, judging = time.perf_counter() - begun, reward.seconds - judging
            took[name].append((whole, whole - judging, judging))
    print(f"imdb-gpt2-tiny, {len(prompts)} prompts, n = {n}, {length} tokens, batch {arguments.batch}")
    for name in ways:
        pairs = zip(took[name], took["best-of-n"], strict=True)
        by_round = [[a / b for a, b in zip(*pair, strict=True)] for pair in pairs]
        ratios = [sorted(column) for column in zip(*by_round, strict=True)]
        whole, writing, judging = map(statistics.median, ratios)
        tokens, calls, mean = cost[name]
        tokens, calls = tokens / cost["best-of-n"][0], calls / cost["best-of-n"][1]
        print(
            f"{name}: {statistics.median(each[0] for each in took[name]):.2f} s, {whole:.2f} of best-of-n's (from "
            f"{ratios[0][0]:.2f} to {ratios[0][-1]:.2f}): writing {writing:.2f} for {tokens:.2f} of the tokens, "
            f"judging {judging:.2f} for {calls:.2f} of the calls; reward {mean:.3f}"
        )


if __name__ == "__main__":
    main()
