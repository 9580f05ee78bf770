"""How much slower draws and training get beside one other busy process, with our setting and with libgomp's own.

    python benchmarks/busy.py [--seconds 6] [--rounds 3]

PyTorch's threads wait for each other some hundred times a token. libgomp has them turn in a circle meanwhile, 300,000
times by default, and on a machine where another process wants a core, they turn where that one, or the thread they
wait for, could run. `import bonlib` asks for 1,000 times (GOMP_SPINCOUNT), before PyTorch is loaded.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

import bonlib  # noqa: F401  (before PyTorch)

SETTINGS = {"ours": {}, "libgomp's own": {"GOMP_SPINCOUNT": "300000"}}


def work(seconds):
    """Print how often a second each of two things is done, alone and beside a busy process."""
    import torch

    from bonlib.draws.samplers import SamplingSettings, TransformersSampler
    from bonlib.models.loaded import load_language_model

    loaded = load_language_model("imdb-gpt2-tiny", dtype="float32")
    sampler, settings = TransformersSampler(loaded), SamplingSettings(24)
    ids = torch.randint(5, 4000, (64, 32), generator=torch.Generator().manual_seed(0))

    def draw(seed):
        return int(sampler.sample(["I watched this film"] * 256, settings, seed=seed).lengths.sum())

    def learn(_):
        loaded.model(ids, labels=ids).loss.backward()
        return ids.numel()

    def rate(action):
        begun, done, turns = time.perf_counter(), 0, 0
        while time.perf_counter() - begun < seconds:
            done, turns = done + action(turns), turns + 1
        return done / (time.perf_counter() - begun)

    for action in (draw, learn):
        action(0)
        alone = rate(action)
        with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
            beside = rate(action)
            other.kill()
        print(alone, beside)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        return work(arguments.seconds)
    found = {name: [] for name in SETTINGS}
    command = [sys.executable, __file__, "--work", "--seconds", str(arguments.seconds)]
    for _ in range(arguments.rounds):
        for name, setting in SETTINGS.items():
            environment = {key: value for key, value in os.environ.items() if key != "GOMP_SPINCOUNT"} | setting
            said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
            found[name].append([[float(number) for number in line.split()] for line in said.splitlines()[-2:]])
    for place, what in enumerate(("drawing", "a gradient")):
        for name, rounds in found.items():
            alone, beside = (statistics.median(each[place][i] for each in rounds) for i in range(2))
            slower = statistics.median(each[place][0] / each[place][1] for each in rounds)
            print(
                f"{what}, {name}: {alone:,.0f} tokens/s alone, {beside:,.0f} beside a busy one: {slower:.2f} × slower"
            )


if __name__ == "__main__":
    main()
