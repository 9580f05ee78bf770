"""Rows a second and memory of a report on many responses, as a ratio to a plain loop over prompts.

    python benchmarks/report.py [--prompts 15625] [--draws 64] [--repeat 0.2] [--file rows.jsonl]

The peer is what one would write with pandas and the estimators, on the first prompts only: a group a prompt, and for
each N the best reward, win rate and KL, one after the other. With --file, made if it is not there, the time of reading
it is measured, too, and what it needs of memory.
"""

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from bonlib.estimates import best_of_n_kl, best_of_n_reward, best_of_n_win_rate
from bonlib.records.measures import some_numbers
from bonlib.records.records import Records
from bonlib.records.report import report

PEER = 20  # prompts for the peer


def made(prompts, draws, repeat):
    """Draws of which some share repeats, with a reward, a second one, log-probabilities and lengths."""
    rng = np.random.default_rng(0)
    rows = prompts * draws
    prompt = np.repeat(np.arange(prompts), draws)
    number = np.where(rng.random(rows) < repeat, rng.integers(0, 8, rows), np.arange(rows))
    # Equal responses have equal rewards, lengths and log-probabilities.
    seen = np.random.default_rng(1).normal(size=(2, 1 << 20))
    key = (prompt * 7919 + number) % (1 << 20)
    rewards, other = seen[0][key], 0.7 * seen[0][key] + seen[1][key]
    texts = np.array([f"response {one} " + "word " * (one % 17) for one in number], dtype=object)
    likely = np.log(repeat / 8) if repeat else 0.0
    return Records(
        prompts=np.array([f"prompt {place}" for place in range(prompts)], dtype=object),
        prompt=prompt,
        responses=texts,
        scores={"reward": rewards, "gold": other},
        lengths=np.array([len(text) for text in texts]),
        log_probs=np.where(number < 8, likely, -40.0),
        rows=np.arange(1, rows + 1),
        bad=pd.DataFrame({"place": [], "reason": [], "row": []}),
        source="made",
    )


def peer(records, prompts):
    """A group a prompt, N after N."""
    table = records.table()
    few = table[records.prompt < prompts]
    found = {}
    for prompt, mine in few.groupby("prompt"):
        m = len(mine)
        rewards, logs, texts = (mine[name].to_numpy() for name in ("reward", "log_prob", "response"))
        found[prompt] = (
            [float(best_of_n_reward(rewards, n).value) for n in range(1, m + 1)],
            [float(best_of_n_win_rate(rewards, n)) for n in range(1, m)],
            [float(best_of_n_kl(rewards, n, log_probs=logs, responses=texts)) for n in some_numbers(m // 2, 64, 8)],
        )
    return found


def timed(work, *arguments):
    begun = time.perf_counter()
    result = work(*arguments)
    return result, time.perf_counter() - begun


def gigabytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def write_rows(records, file):
    with file.open("w") as out:
        for row in records.table().to_dict("records"):
            out.write(json.dumps(row) + "\n")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--prompts", type=int, default=15_625)
    parser.add_argument("--draws", type=int, default=64)
    parser.add_argument("--repeat", type=float, default=0.2)
    parser.add_argument("--file", type=Path)
    arguments = parser.parse_args()
    reading = 0.0
    if arguments.file:
        from bonlib.records.reading import read

        if not arguments.file.exists():
            write_rows(made(arguments.prompts, arguments.draws, arguments.repeat), arguments.file)
            return print(f"made {arguments.file}; run again to measure")
        records, reading = timed(read, str(arguments.file))
        print(f"read {len(records):,} rows in {reading:.1f} s, {gigabytes():.2f} GB at most")
    else:
        records = made(arguments.prompts, arguments.draws, arguments.repeat)
        print(f"made {len(records):,} rows, {gigabytes():.2f} GB at most")
    few = min(PEER, len(records.prompts))
    times = [timed(peer, records, few)[1]]
    found, ours = timed(report, records)
    times.append(timed(peer, records, few)[1])
    print(f"report {ours:.1f} s, {gigabytes():.2f} GB at most; {found.kl_from}")
    with tempfile.TemporaryDirectory() as folder:
        _, saving = timed(found.save, folder)
    print(f"page and tables saved in {saving:.1f} s, {gigabytes():.2f} GB at most")
    rows = len(records) / (ours + saving)
    theirs = records.counts[:few].sum() * len(times) / sum(times)
    print(f"{rows:,.0f} rows a second; the peer {theirs:,.0f}: {rows / theirs:.0f} times as many")
    print(f"in all {reading + ours + saving:.1f} s")


if __name__ == "__main__":
    main()
