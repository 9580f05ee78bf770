"""Tokens a second of our decoding loop, as a ratio to `model.generate` in the same run.

    python benchmarks/sampling.py [--model imdb-gpt2-tiny] [--batch 256] [--new-tokens 24] [--rounds 5]

Both draw from the same model, prompt, batch and number format, in turns, so that a busy machine slows both alike.
"""

import argparse
import statistics
import time

import torch

from bonlib.lm.models import load_language_model
from bonlib.lm.samplers import SamplingSettings, TransformersSampler


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="imdb-gpt2-tiny")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--new-tokens", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    loaded = load_language_model(arguments.model)
    sampler = TransformersSampler(loaded, batch_size=arguments.batch)
    prompt, settings = "I watched this film", SamplingSettings(arguments.new_tokens)
    encoded = loaded.tokenizer([prompt], return_tensors="pt").to(loaded.device)

    def ours(seed):
        return int(sampler.sample([prompt] * arguments.batch, settings, seed=seed).lengths.sum())

    def peers(seed):
        torch.manual_seed(seed)
        sequences = loaded.model.generate(
            **encoded,
            do_sample=True,
            top_k=0,
            max_new_tokens=arguments.new_tokens,
            num_return_sequences=arguments.batch,
            pad_token_id=loaded.tokenizer.pad_token_id,
        )
        response = sequences[:, encoded["input_ids"].shape[1] :]
        return int((response != loaded.tokenizer.pad_token_id).sum())

    def tokens_a_second(draw, seed):
        begun = time.perf_counter()
        return draw(seed) / (time.perf_counter() - begun)

    for draw in (ours, peers):
        draw(0)  # the first call pays for set-up
    rates = [(tokens_a_second(ours, seed), tokens_a_second(peers, seed)) for seed in range(arguments.rounds)]
    ratios = sorted(mine / other for mine, other in rates)
    print(f"{arguments.model}, batch {arguments.batch}, {arguments.new_tokens} new tokens, {loaded.model.dtype}")
    mine, other = (statistics.median(column) for column in zip(*rates, strict=True))
    print(f"ours {mine:,.0f} tokens/s, generate {other:,.0f} tokens/s")
    print(f"ratio {statistics.median(ratios):.2f} (from {ratios[0]:.2f} to {ratios[-1]:.2f} in {len(ratios)} rounds)")


if __name__ == "__main__":
    main()
