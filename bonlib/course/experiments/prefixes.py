"""What prefixes tell of a response's end, what their values know of that, and what following these would give.

`python -m bonlib.course.experiments.prefixes` measures it, on prompts that no value was fitted to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from tqdm.auto import tqdm

from bonlib.cdf import EmpiricalCdf
from bonlib.course.experiments.results import RESULTS, add_run, done_runs, provenance
from bonlib.course.experiments.sentiment import Harness
from bonlib.course.profiles import get_profile
from bonlib.course.runner import commit_of_workbook
from bonlib.exact import Array
from bonlib.metrics import win_probability
from bonlib.models.decoding import decode
from bonlib.models.reading import response_logits
from bonlib.training.learner import PromptTokens
from bonlib.training.prefix_values import PrefixReader, PrefixRecipe, fit_prefix_values
from bonlib.training.settings import TrainingData

N = 8
LENGTHS = (1, 2, 4, 8, 12, 16, 20)  # tokens of a prefix
CONTINUED = 64  # ways in which the reference goes on after one
FOLLOWED = 32  # draws a prompt that the policy of the values is measured on
NEXT = 64  # next tokens that it is normalised by
REPLICATES = 200
# As many draws a prompt as BoN by tokens reads; and 512 · 25, as many responses as 200 steps of training learn from.
RECIPES = (PrefixRecipe(), PrefixRecipe(draws=25), PrefixRecipe(draws=25, seed=1))


def known_shares(said: ArrayLike, worth: ArrayLike) -> dict[str, float]:
    """Return how much of the variance of a response's worth its prefix decides, and how much what is said of it tells.

    Args:
        said: the mean worth of the responses that begin with each of S prefixes, as it is said to be, shape (S,).
        worth: of K independent responses that begin with it, shape (S, K), K at least 2.

    Returns:
        `decided`: Var(E[worth | prefix]) over the whole variance; `told`: the share that is left when what is said is
        taken off, less than nought if it is worse than the mean. Both without the bias of K being finite.
    """
    said, worth = np.asarray(said, float), np.asarray(worth, float)
    within = worth.var(axis=1, ddof=1).mean()
    noise, means = within / worth.shape[1], worth.mean(axis=1)
    between = means.var(ddof=1) - noise
    whole = between + within
    return {
        "decided": between / whole,
        "told": (between - ((said - means) ** 2).mean() + noise) / whole,
    }


def followed(log_weights: ArrayLike, targets: ArrayLike, wins: ArrayLike) -> dict[str, float]:
    """Return the figures of a policy, by its likelihood ratios at draws of the reference.

    Args:
        log_weights: log of the policy's probability over the reference's, up to a constant, of any one shape.
        targets: the same of best-of-n.
        wins: chance that each draw beats one of the reference.
    """
    weights, best = (np.exp(np.asarray(logs, float)) for logs in (log_weights, targets))
    weights, best, wins = weights / weights.mean(), best / best.mean(), np.asarray(wins, float)
    apart = np.log(best) - np.log(weights)
    return {
        "win_rate": (weights * wins).mean(),
        "kl": (weights * np.log(weights)).mean(),
        "best_win_rate": (best * wins).mean(),
        "best_kl": (best * np.log(best)).mean(),
        "forward_kl": (best * apart).mean(),
        "reverse_kl": -(weights * apart).mean(),
    }


def with_errors(measure: Callable[..., dict[str, float]], *tables: Array) -> dict[str, float]:
    """Return what `measure` says of tables whose rows are prompts, with bootstrap errors over these."""
    rng, count = np.random.default_rng(0), len(tables[0])
    row = measure(*tables)
    again = [measure(*(table[chosen] for table in tables)) for chosen in rng.integers(0, count, (REPLICATES, count))]
    return row | {f"{name}_se": float(np.std([each[name] for each in again], ddof=1)) for name in row}


class Prefixes:
    """Values that were fitted to the draws of a harness, and prompts that they are tested on.

    Args:
        harness: of a profile.
        prompts: of its test prompts, how many.
        recipe: of the values.
    """

    def __init__(self, harness: Harness, prompts: int, recipe: PrefixRecipe | None = None) -> None:
        setting = harness.setting
        self.reference, self.judge, self.sampling = setting.reference, setting.reward_model, setting.sampling
        draws, rewards = harness.reference_draws
        data = TrainingData(harness.prompts, self.judge, self.sampling, draws, rewards)
        reader = PrefixReader(self.reference, self.judge, harness.prompts, rewards)
        self.values = fit_prefix_values(reader, PromptTokens(self.reference, data), draws, rewards, N, recipe)
        test = harness.test
        assert test.draws is not None
        assert test.rewards is not None
        self.prompts, self.own = test.prompts[:prompts], test.rewards[:prompts]
        self.opponents = test.opponents[:prompts]
        self.rows = [[row[row >= 0].tolist() for row in each.token_ids] for each in test.draws.responses[:prompts]]
        self.tokens = PromptTokens(self.reference, TrainingData(self.prompts, self.judge, self.sampling))
        self.reader = PrefixReader(self.reference, self.judge, self.prompts, self.own)
        self.cdfs = [EmpiricalCdf(np.concatenate(rows)) for rows in zip(self.own, self.opponents, strict=True)]

    @torch.no_grad()
    def going_on(self, length: int, generator: torch.Generator) -> tuple[Array, Array]:
        """Let the reference go on from a stored draw's first tokens, one of each prompt that is so long.

        Returns:
            What the values say of these prefixes, shape (S,), and F≤^(n−1) of the responses, (S, `CONTINUED`).
        """
        said, worth, model = list[float](), list[Array](), self.reference
        for prompt, rows, cdf in zip(self.prompts, self.rows, self.cdfs, strict=True):
            if len(begun := rows[0][:length]) < length or begun[-1] in model.end_token_ids:
                continue
            known = self.reader.along([prompt], self.tokens.batch([prompt], [begun]))[0, -1]
            said.append(float(self.values(known).exp()))
            uniforms = torch.rand(CONTINUED, self.sampling.max_new_tokens - length, generator=generator)
            decoded = decode(
                model.model,
                [self.tokens.ids[prompt] + begun] * CONTINUED,
                self.sampling.law,
                end_ids=model.end_token_ids,
                pad_id=model.pad_token_id,
                uniforms=uniforms,
            )
            ends = [row[:size].tolist() for row, size in zip(decoded.tokens, decoded.lengths, strict=True)]
            texts = model.tokenizer.batch_decode([begun + end for end in ends], skip_special_tokens=True)
            rewards = self.judge.score([prompt] * CONTINUED, texts)
            worth.append(np.exp((N - 1) * cdf.log_weak(rewards)))
        return np.array(said), np.array(worth)

    @torch.no_grad()
    def weights(self, place: int, generator: torch.Generator) -> tuple[Array, Array, Array]:
        """Return what `followed` asks of a prompt's first draws, for the policy π e^V, normalised at each token."""
        prompt, rows = self.prompts[place], self.rows[place][:FOLLOWED]
        names, batch = [prompt] * len(rows), self.tokens.batch([prompt] * len(rows), rows)
        real = batch.response_mask.bool()
        chances = response_logits(self.reference.model, batch).logits.softmax(-1)
        drawn = torch.multinomial(chances, NEXT, replacement=True, generator=generator)
        instead = drawn.new_zeros(*real.shape, NEXT).index_put((real,), drawn)
        promised = self.values(self.reader.next(names, replace(batch, instead=instead)))
        level = promised.logsumexp(-1) - np.log(NEXT)  # log E e^V over the next token
        spread = (promised - level[..., None]).exp().var(-1) / (2 * NEXT)  # by as much, on average, it is too low
        risen = self.values(self.reader.along(names, batch))[:, 1:] - level - spread
        count = len(rows)
        targets = (N - 1) * self.cdfs[place].log_weak(self.own[place, :count])
        wins = win_probability(self.own[place : place + 1, :count], self.opponents[place : place + 1])[0]
        return (risen * real).sum(1).double().numpy(), targets, wins


def lengths_told(prefixes: Prefixes, length: int) -> dict[str, Any]:
    """Measure what the first so many tokens decide, and what the values tell of that."""
    said, worth = prefixes.going_on(length, torch.Generator().manual_seed(length))
    return {"tokens": length, "prompts": len(said), **with_errors(known_shares, said, worth)}


def values_followed(prefixes: Prefixes) -> dict[str, Any]:
    """Measure the policy π e^V, normalised over next tokens."""
    places, generator = range(len(prefixes.prompts)), torch.Generator().manual_seed(0)
    rows = [prefixes.weights(place, generator) for place in tqdm(places, desc="prompts", leave=False)]
    return {"prompts": len(rows), **with_errors(followed, *map(np.array, zip(*rows, strict=True)))}


def main() -> None:
    """Measure with the profile `laptop`, into `data/results/prefixes.parquet`; what it has is not measured again."""
    table, harness = RESULTS / "prefixes.parquet", Harness(get_profile("laptop"))
    about = {"profile": harness.profile.name, "n": N, "train_prompts": len(harness.prompts)}
    about |= provenance(harness.setting.reference.device, commit_of_workbook())
    for recipe in RECIPES:
        fit = f"{recipe.draws} draws, seed {recipe.seed}"
        tasks: dict[str, Callable[[Prefixes], dict[str, Any]]] = {f"followed, {fit}": values_followed}
        if recipe is RECIPES[0]:
            tasks |= {f"after {length}": partial(lengths_told, length=length) for length in LENGTHS}
        tasks = {name: task for name, task in tasks.items() if name not in done_runs(table)}
        if tasks:
            prefixes = Prefixes(harness, len(harness.test.prompts) // 2, recipe)
            for name, task in tasks.items():
                add_run(table, name, {**about, "draws": recipe.draws, "seed": recipe.seed, **task(prefixes)})


if __name__ == "__main__":
    main()
