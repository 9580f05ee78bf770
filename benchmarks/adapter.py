"""What the adapter of the readable reference costs, as a ratio to the model below it, and where the time goes.

    python benchmarks/adapter.py [--rounds 5] [--responses 64] [--threads 1]

Both draw 24 tokens to each of so many openings, and take a gradient step on as many texts of 6 and 24 tokens: of the
adapter's weights, or of an adapter with the same rank on all layers. They take turns.
"""

import argparse
import statistics
import time

import torch
from torch.profiler import ProfilerActivity, profile

from bonlib.draws.samplers import SamplingSettings, TransformersSampler
from bonlib.models.loaded import load_language_model
from bonlib.models.reading import token_batch
from bonlib.training.policy import Policy, trainable

KINDS = {
    "products": ("mm", "addmm", "_linear_pointwise"),
    "attention": ("bmm", "_softmax", "baddbmm"),
    "copies": ("copy_", "cat", "_reorder_linear_weight", "index"),
}


def shares(action):
    """Where an action's time goes."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        action()
    spent = {event.key.rpartition("::")[2]: event.self_cpu_time_total for event in seen.key_averages()}
    total = sum(spent.values())
    found = {kind: sum(spent.get(name, 0) for name in names) / total for kind, names in KINDS.items()}
    return {**found, "the rest": 1 - sum(found.values())}


def actions(name, responses):
    """Drawing with a model, and a step of its training."""
    loaded = load_language_model(name, device="cpu", dtype="bfloat16")
    sampler, law = TransformersSampler(loaded, batch_size=responses), SamplingSettings(24)
    policy = Policy(trainable(loaded.model, 0 if hasattr(loaded.model, "peft_config") else 16))
    prompts, texts = [list(range(100, 106))] * responses, [list(range(200, 224))] * responses
    batch = token_batch(prompts, texts, pad_id=loaded.pad_token_id, device="cpu")

    def step():
        policy(batch)[0].sum().backward()

    return {"draws": lambda: sampler.sample(["This film was"] * responses, law, seed=0), "step": step}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="imdb-smollm2")
    parser.add_argument("--peer", default="smollm2-135m-instruct")
    parser.add_argument("--responses", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    both = {name: actions(name, given.responses) for name in (given.model, given.peer)}
    for what in ("draws", "step"):
        times = {name: [] for name in both}
        for _ in range(given.rounds + 1):
            for name, each in both.items():
                begun = time.perf_counter()
                each[what]()
                times[name].append(time.perf_counter() - begun)
        ratios = sorted(ours / peer for ours, peer in zip(*(found[1:] for found in times.values()), strict=True))
        ours = statistics.median(times[given.model][1:])
        print(f"{what}: {ours:.2f} s for {given.responses} responses, {statistics.median(ratios):.2f} times as long as")
        print(f"  with {given.peer} ({ratios[0]:.2f} to {ratios[-1]:.2f})")
        for name, each in both.items():
            told = ", ".join(f"{kind} {share:.2f}" for kind, share in shares(each[what]).items())
            print(f"  {name}: {told}", flush=True)


if __name__ == "__main__":
    main()
