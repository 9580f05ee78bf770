"""Tokens a second of our decoding loop, as a ratio to `model.generate`, to vLLM and to its matrix products alone.

    python benchmarks/sampling.py [--model imdb-gpt2-tiny] [--batch 256] [--new-tokens 24] [--dtype float32]
    python benchmarks/sampling.py --repeat 20              # a longer prompt: its words so many times
    .venv-vllm/bin/python benchmarks/sampling.py --vllm    # after `make test-vllm`, which makes that environment

All draw from the same model, prompt, batch and number format, in turns, so that a busy machine slows all alike. "The
limit" is the time of the matrix products of a token with the model's weights, as fast as PyTorch does them on this
device, and nothing else: no loop over layers of this model can be faster.
"""

import argparse
import statistics
import time

import torch
from transformers.pytorch_utils import Conv1D

from bonlib.draws.samplers import SamplingSettings, TransformersSampler
from bonlib.models.kernels import cpu_kernels
from bonlib.models.loaded import load_language_model


def products(model, batch):
    """A function that does the matrix products of one step of a batch."""
    modules = [module for module in model.modules() if type(module) in (torch.nn.Linear, Conv1D)]
    with torch.no_grad(), cpu_kernels(model) as packed:
        weights = [module.weight if type(module) is torch.nn.Linear else module.weight.t() for module in modules]
        inputs = [weight.new_ones(batch, weight.shape[1]) for weight in weights]

    @torch.inference_mode()
    def step():
        for module, weight, x in zip(modules, weights, inputs, strict=True):
            if module in packed:
                torch.ops.mkldnn._linear_pointwise(x, packed[module], None, "none", [], "")
            else:
                torch.nn.functional.linear(x, weight)
        if model.device.type == "cuda":
            torch.cuda.synchronize()

    return step


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="imdb-gpt2-tiny")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--new-tokens", type=int, default=24)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeat", type=int, default=1, help="how often the prompt's words are repeated")
    parser.add_argument("--vllm", action="store_true", help="with vLLM as a third")
    arguments = parser.parse_args()
    loaded = load_language_model(arguments.model, dtype=arguments.dtype)
    prompt, settings = " ".join(["I watched this film"] * arguments.repeat), SamplingSettings(arguments.new_tokens)
    encoded = loaded.tokenizer([prompt], return_tensors="pt").to(loaded.device)
    ends = torch.tensor(loaded.end_token_ids, device=loaded.device)

    def with_sampler(sampler):
        return lambda seed: int(sampler.sample([prompt] * arguments.batch, settings, seed=seed).lengths.sum())

    def generate(seed):
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
        ended = torch.isin(response, ends).int().cumsum(1)
        return int((ended.cumsum(1) <= 1).sum())  # up to the end token and with it

    step = products(loaded.model, arguments.batch)

    def limit(seed):
        for _ in range(arguments.new_tokens):
            step()
        return arguments.batch * arguments.new_tokens

    ways = {
        "ours": with_sampler(TransformersSampler(loaded, batch_size=arguments.batch)),
        "generate": generate,
        "the limit": limit,
    }
    if arguments.vllm:
        from bonlib.draws.vllm import VllmSampler

        dtype = str(loaded.model.dtype).removeprefix("torch.")
        ways["vLLM"] = with_sampler(VllmSampler(arguments.model, dtype=dtype, engine={"max_model_len": 256}))

    def tokens_a_second(draw, seed):
        begun = time.perf_counter()
        return draw(seed) / (time.perf_counter() - begun)

    for draw in ways.values():
        draw(0)  # the first call pays for set-up
    rounds = [{way: tokens_a_second(draw, seed) for way, draw in ways.items()} for seed in range(arguments.rounds)]
    print(f"{arguments.model}, batch {arguments.batch}, {arguments.new_tokens} new tokens, {loaded.model.dtype}")
    print(", ".join(f"{way} {statistics.median(rates[way] for rates in rounds):,.0f} tokens/s" for way in ways))
    pairs = [("ours", way) for way in list(ways)[1:]] + [("the limit", "generate")]
    for one, other in pairs:
        ratios = sorted(rates[one] / rates[other] for rates in rounds)
        middle = statistics.median(ratios)
        print(f"{one} to {other}: {middle:.2f} (from {ratios[0]:.2f} to {ratios[-1]:.2f} in {len(ratios)} rounds)")


if __name__ == "__main__":
    main()
