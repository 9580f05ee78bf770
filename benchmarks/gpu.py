"""The decoding loop on a GPU: ours, `generate` and the matrix products alone, for two models of random weights.

    python benchmarks/gpu.py [--minutes 9] [--out FILE]

Two models, a GPT-2 of 4 million parameters, which launches of kernels hold up, and a Llama of SmolLM2's shape, 135
million, each in float32 and bfloat16, with batches of 256 and 1,024, prompts of 4 and 256 tokens and responses of 24
and 128. Nothing is downloaded. Before a model is timed, each of its ways to draw is compared with the plain pass
(`bonlib.models.ways`), that by CUDA graphs among them; the log-probabilities that come with the draws are compared with
a reading of the same responses. A line is printed and appended to the file as it comes.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.pytorch_utils import Conv1D

from bonlib.models import steps
from bonlib.models.decoding import decode
from bonlib.models.next_token import Law
from bonlib.models.reading import response_logits, token_batch, token_log_probs
from bonlib.models.ways import proven

TINY = {"n_embd": 256, "n_layer": 4, "n_head": 4, "n_positions": 512, "vocab_size": 4096}
SMALL = {
    "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3, "vocab_size": 49152, "max_position_embeddings": 2048, "tie_word_embeddings": True,
}  # fmt: skip
MODELS = {
    "GPT-2, 4M": lambda: GPT2LMHeadModel(GPT2Config(**TINY, bos_token_id=0, eos_token_id=0, pad_token_id=0)),
    "Llama, 135M": lambda: LlamaForCausalLM(LlamaConfig(**SMALL, bos_token_id=0, eos_token_id=0, pad_token_id=0)),
}


def seconds(action, device, rounds=3):
    """The median time of an action that has been done once before."""
    found = []
    for _ in range(rounds):
        if device == "cuda":
            torch.cuda.synchronize()
        begun = time.perf_counter()
        action()
        if device == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - begun)
    return statistics.median(found)


def limit(model, batch):
    """A function that does the matrix products of one step."""
    modules = [module for module in model.modules() if type(module) in (torch.nn.Linear, Conv1D)]
    weights = [module.weight if type(module) is torch.nn.Linear else module.weight.t() for module in modules]
    inputs = [weight.new_ones(batch, weight.shape[1]) for weight in weights]

    @torch.inference_mode()
    def step():
        for weight, x in zip(weights, inputs, strict=True):
            torch.nn.functional.linear(x, weight)

    return step


def measure(name, model, batch, prompt_tokens, new_tokens, device):
    prompt = torch.randint(5, 4000, (prompt_tokens,), generator=torch.Generator().manual_seed(0)).tolist()
    uniforms = torch.rand(batch, new_tokens, generator=torch.Generator().manual_seed(1))

    def ours(recorded=steps.RECORDED_ON):
        steps.RECORDED_ON = recorded
        return decode(model, [prompt] * batch, Law(), end_ids=[0], pad_id=0, uniforms=uniforms)

    def generate():
        ids = torch.tensor([prompt], device=device)
        options = {"do_sample": True, "top_k": 0, "max_new_tokens": new_tokens, "num_return_sequences": batch}
        model.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=0, **options)

    recorded = steps.RECORDED_ON
    drawn = ours()
    some = [tokens[:length].tolist() for tokens, length in zip(drawn.tokens[:16], drawn.lengths[:16], strict=True)]
    read = token_batch([prompt] * len(some), some, pad_id=0, device=model.device)
    with torch.no_grad():
        said = token_log_probs(response_logits(model, read).logits, read.responses[read.response_mask.bool()])
    off = (said - drawn.log_probs[:16][read.response_mask.bool()]).abs().max()
    step, tokens = limit(model, batch), int(drawn.lengths.sum())
    row = {
        "model": name,
        "dtype": str(model.dtype).removeprefix("torch."),
        "batch": batch,
        "prompt": prompt_tokens,
        "new": new_tokens,
        "off": float(off),
        "tokens": tokens,
    }
    row["ours"] = tokens / seconds(ours, device)
    ours(())
    row["without graphs"] = tokens / seconds(lambda: ours(()), device)
    steps.RECORDED_ON = recorded
    generate()
    row["generate"] = tokens / seconds(generate, device)
    step()
    row["limit"] = batch / seconds(step, device, rounds=20)
    return row


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=9)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--small", action="store_true", help="small batches, to try the script on a CPU")
    arguments = parser.parse_args()
    end = time.perf_counter() + 60 * arguments.minutes
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(torch.__version__, torch.cuda.get_device_name() if device == "cuda" else "no GPU: the numbers mean little")
    batches, prompts, news = ((8,), (4,), (16,)) if arguments.small else ((256, 1024), (4, 256), (24, 128))
    longest = 0.0
    for dtype in (torch.bfloat16, torch.float32):
        for name, make in MODELS.items():
            torch.manual_seed(0)
            model = make().to(device, dtype).eval().requires_grad_(False)
            print(name, dtype, sorted(proven(model, "drawing", begin=4, length=384)))
            for batch, prompt, new in ((b, p, n) for b in batches for p in prompts for n in news):
                if time.perf_counter() + 2 * longest > end:
                    print("the time is up: the rest is left out")
                    return
                begun = time.perf_counter()
                row = measure(name, model, batch, prompt, new, device)
                longest = max(longest, time.perf_counter() - begun)
                print(
                    f"{name}, {row['dtype']}, batch {batch}, prompt {prompt}, {new} new: ours {row['ours']:,.0f} "
                    f"tokens/s (without graphs {row['without graphs']:,.0f}), generate {row['generate']:,.0f}, limit "
                    f"{row['limit']:,.0f}; ours to generate {row['ours'] / row['generate']:.2f}, to the limit "
                    f"{row['ours'] / row['limit']:.2f}; log-probabilities off by {row['off']:.1e}",
                    flush=True,
                )
                if arguments.out:
                    with arguments.out.open("a") as file:
                        file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
