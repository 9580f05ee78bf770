"""Draws with the rewards of two judges, and of their beginnings by one: what notebook 15 spends.

`python -m bonlib.course.experiments.spending draws` makes the files anew; what was drawn and judged when it was stopped
is in the store.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bonlib.checks import one_of
from bonlib.course.experiments.results import RESULTS, add_run, done_runs, options_text, provenance
from bonlib.course.experiments.sentiment import TEXTS_KEPT
from bonlib.course.experiments.setting import Setting, imdb_setting
from bonlib.course.experiments.summarisation import SummaryHarness
from bonlib.course.making.documents import REQUEST, load_abstracts
from bonlib.course.making.words import WordsReward
from bonlib.course.profiles import get_profile
from bonlib.course.runner import commit_of_workbook
from bonlib.draws.rewards import CutPenalty, RewardModel, Rewards, checked_score
from bonlib.draws.segments import replace_file
from bonlib.draws.store import SampleStore
from bonlib.exact import Array
from bonlib.inference.smc import SequentialMonteCarlo
from bonlib.inference.speculative_rejection import SpeculativeRejection
from bonlib.inference.steered import steer
from bonlib.inference.steering import Steering
from bonlib.inference.tree_best_of_n import TreeBestOfN
from bonlib.metrics import mean_over_prompts, win_probability
from bonlib.models.responses import Responses
from bonlib.models.texts import response_texts

FOLDER = RESULTS.parent
SEED = 0
PARTIAL = "partial_"  # columns of the rewards of the first so many tokens


class Sizes(NamedTuple):
    """How much is drawn in a world.

    Attributes:
        prompts: that no model was trained on.
        draws: of each.
        checkpoints: tokens after which the proxy judges each draw as well.
        steered: of the prompts, how many get responses by methods that choose while decoding.
        seeds: of those.
    """

    prompts: int
    draws: int
    checkpoints: tuple[int, ...]
    steered: int
    seeds: int


WORLDS = {
    "imdb": Sizes(64, 256, (4, 8, 12, 16, 20), steered=64, seeds=4),
    "tldr": Sizes(24, 128, (4, 8, 16, 24, 32), steered=24, seeds=1),
}
WARMTH = {"imdb": 0.13, "tldr": 0.8}  # λ of what is soft, in units of the proxy


@dataclass(frozen=True, eq=False)
class StoredDraws:
    """M draws of each of P prompts, and what two judges say of them.

    Attributes:
        prompts: (P,).
        texts: (P, M) the responses.
        rewards: (P, M) by the proxy, which rules choose by.
        gold: (P, M) by the other judge.
        log_probs: (P, M) of the responses under the reference that drew them, nats.
        lengths: (P, M) in tokens, the end token included.
        partial: (P, M, C) by the proxy, of their first tokens; of a response that is no longer, its own reward.
        checkpoints: C numbers of tokens.
    """

    prompts: list[str]
    texts: NDArray[np.object_]
    rewards: Array
    gold: Array
    log_probs: Array
    lengths: NDArray[np.intp]
    partial: Array
    checkpoints: tuple[int, ...]


class World(NamedTuple):
    """What draws and judges in a world: the models of a setting, and a second reward model."""

    setting: Setting
    gold: RewardModel


def stored_draws(world: str) -> StoredDraws:
    """Return the draws that come with the project.

    Args:
        world: "imdb" for movie reviews, "tldr" for summaries of abstracts.

    Raises:
        ValueError: if there is no such world.
    """
    rows = pd.read_parquet(file_of(world))

    def table(name: str) -> Any:
        return np.stack(rows[name].to_list())

    checkpoints = [int(name.removeprefix(PARTIAL)) for name in map(str, rows) if name.startswith(PARTIAL)]
    return StoredDraws(
        prompts=_prompts(rows),
        texts=table("texts"),
        rewards=table("proxy").astype(np.float64),
        gold=table("gold").astype(np.float64),
        log_probs=table("log_probs").astype(np.float64),
        lengths=table("lengths").astype(np.intp),
        partial=np.stack([table(f"{PARTIAL}{tokens}") for tokens in checkpoints], axis=2).astype(np.float64),
        checkpoints=tuple(checkpoints),
    )


def _prompts(rows: pd.DataFrame) -> list[str]:
    """The prompts of a file; of abstracts, which come with their package, it has how many characters were asked for."""
    if "prompt" in rows:
        return [str(prompt) for prompt in rows["prompt"]]
    return [each.text[:end] + REQUEST for each, end in zip(load_abstracts("test"), rows["characters"], strict=False)]


def file_of(world: str) -> Path:
    """Return the file of a world's draws; a ValueError says which worlds there are."""
    return FOLDER / f"judged_{one_of('world', world, WORLDS)}.parquet"


def load_world(name: str) -> World:
    """Load the models of a world and its prompts, as many as have stored draws."""
    profile, count = get_profile("laptop"), WORLDS[name].prompts
    if name == "imdb":
        # Single precision, as policies are trained in: bfloat16 differs from machine to machine.
        return World(imdb_setting(replace(profile, dtype="float32"), count), WordsReward())
    harness = SummaryHarness(profile)
    return World(replace(harness.setting, prompts=harness.setting.prompts[:count]), harness.gold)


def beginnings(setting: Setting, prompt: str, responses: Responses, tokens: int) -> Responses:
    """Return the first tokens of responses to a prompt."""
    (encoded,) = setting.reference.encode([prompt], tokens)
    ids = np.where(np.arange(responses.token_ids.shape[1]) < tokens, responses.token_ids, -1)
    texts = response_texts(setting.reference.tokenizer, [encoded] * len(ids), [row[row >= 0].tolist() for row in ids])
    unknown = np.full(len(ids), np.nan)
    return Responses(np.array(texts, dtype=object), ids, unknown, unknown)


def judged(world: World, prompt: str, sizes: Sizes, store: SampleStore) -> dict[str, Any]:
    """Return a row of a file: draws of a prompt and all their rewards."""
    setting, gold = world
    draws = store.draw(setting.sampler, [prompt], sizes.draws, setting.sampling, seed=SEED)
    (responses,) = draws.responses
    proxy = setting.reward_model
    rewards = store.score(proxy, draws)[0]
    asked = {"characters": len(prompt.removesuffix(REQUEST))} if prompt.endswith(REQUEST) else {"prompt": prompt}
    row = {
        **asked,
        "texts": responses.texts,
        "lengths": responses.lengths.astype(np.uint16),
        "log_probs": responses.log_probs.astype(np.float32),
        "proxy": rewards.astype(np.float32),
        "gold": store.score(gold, draws)[0].astype(np.float32),
    }
    # What has not been ended yet is no less for that.
    lenient = proxy.reward_model if isinstance(proxy, CutPenalty) else proxy
    for tokens in sizes.checkpoints:
        begun = replace(draws, responses=(beginnings(setting, prompt, responses, tokens),))
        partial = store.score(lenient, begun)[0]
        row[f"{PARTIAL}{tokens}"] = np.where(responses.lengths > tokens, partial, rewards).astype(np.float32)
    return row


def make_draws(name: str) -> None:
    """Draw and judge what a world's file holds, and write it; it grows with every few prompts."""
    world, store, rows = load_world(name), SampleStore(), []
    for place, prompt in enumerate(world.setting.prompts, 1):
        rows.append(judged(world, prompt, WORLDS[name], store))
        if place % 4 == 0 or place == len(world.setting.prompts):
            content = io.BytesIO()
            pd.DataFrame(rows).to_parquet(content, index=False, compression="zstd", compression_level=19)
            replace_file(file_of(name), content.getvalue())
            print(f"{name}: {place} prompts", flush=True)


class LateCutPenalty:
    """A reward model that takes its penalty off responses cut at their full length only, and judges beginnings as such.

    Args:
        reward_model: which takes it off all that have no end token.
        length: at which responses are cut, in tokens.
    """

    def __init__(self, reward_model: CutPenalty, length: int) -> None:
        self.reward_model, self.length = reward_model, length

    @property
    def fingerprint(self) -> str:
        """A hash of reward model and length."""
        return hashlib.sha256(f"{self.reward_model.fingerprint} {self.length}".encode()).hexdigest()

    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> Rewards:
        """Return the reward of texts, which count as ended, shape (B,)."""
        return self.reward_model.score(prompts, responses)

    def score_responses(self, prompts: Sequence[str], responses: Responses) -> Rewards:
        """Return the reward of responses, finished or not, shape (B,)."""
        begun = responses.lengths < self.length
        lenient = self.reward_model.score(prompts, responses.texts.tolist())
        return np.where(begun, lenient, self.reward_model.score_responses(prompts, responses))


def steered_rules(world: str) -> list[tuple[str, Steering]]:
    """Return the methods that are run in a world, by name: all that were tried, written down before the first run.

    All begin 16 responses, and as many tokens as best-of-16 are drawn by all but speculative rejection, which therefore
    is run once more with as many beginnings (21, 27) as take these tokens at 24 a response. λ is half a standard
    deviation of the proxy among the draws of a prompt.
    """
    warmth, once, twice = WARMTH[world], (12,), (8, 16)
    return [
        *(("best-of-n", SpeculativeRejection(n, ())) for n in (1, 8, 16, 32)),
        *(("speculative rejection", SpeculativeRejection(n, once)) for n in (16, 21)),
        *(("speculative rejection", SpeculativeRejection(n, twice)) for n in (16, 27)),
        *(("TreeBoN", TreeBestOfN(16, 4, 4, at)) for at in (once, twice)),
        *(("blockwise", TreeBestOfN(16, 1, 16, at)) for at in (once, twice)),
        *(("SMC", SequentialMonteCarlo(16, warmth, at)) for at in (once, twice)),
        ("soft best-of-n", SequentialMonteCarlo(16, warmth, ())),
    ]


def run_steered(
    name: str, world: World, file: Path = RESULTS / "spending.parquet", *, rules: Sequence[tuple[str, Steering]] = ()
) -> None:
    """Write a response to each prompt of a world by each method and seed, a row each; those that are there are left.

    Args:
        name: of the world.
        world: its models and prompts, which must have stored draws.
        file: gets the rows.
        rules: the methods; those of `steered_rules` if there are none.
    """
    setting, gold = world
    sizes, commit, stored = WORLDS[name], commit_of_workbook(), stored_draws(name)
    proxy = setting.reward_model
    judge = LateCutPenalty(proxy, setting.sampling.max_new_tokens) if isinstance(proxy, CutPenalty) else proxy
    prompts = stored.prompts[: sizes.steered]
    opponents = {"win_rate": stored.rewards[: len(prompts)], "gold_win_rate": stored.gold[: len(prompts)]}
    prints = [setting.sampler.fingerprint, judge.fingerprint, gold.fingerprint, setting.sampling.described(), prompts]
    for seed, (method, rule) in product(range(sizes.seeds), rules or steered_rules(name)):
        about = {"world": name, "method": method, "settings": options_text(vars(rule).items()), "seed": seed}
        run = hashlib.sha256(json.dumps([about, prints], sort_keys=True).encode()).hexdigest()[:12]
        if run in done_runs(file):
            continue
        found = steer(setting.sampler, judge, prompts, rule, setting.sampling, seed=seed)
        golden = checked_score(gold, prompts, found.responses)
        figures: dict[str, Any] = {"reward": found.rewards, "gold": golden}
        for label, theirs in opponents.items():
            mine = found.rewards if label == "win_rate" else golden
            figures[label] = win_probability(mine[:, None], theirs)[:, 0]
        figures |= {"tokens": found.tokens, "read_again": found.read_again, "calls": found.calls}
        figures |= {"length": found.responses.lengths, "log_prob": found.responses.log_probs}
        row: dict[str, Any] = {**about, "n": rule.n, "test_prompts": len(prompts)}
        for label, values in figures.items():
            mean, error = mean_over_prompts(values)
            row |= {label: float(mean), f"{label}_se": float(error)}
        row |= {"seconds": found.seconds, **provenance(setting.reference.device, commit)}
        places = range(len(prompts))
        measured = [{"prompt": i, **{label: float(values[i]) for label, values in figures.items()}} for i in places]
        texts = [{"prompt": i, "text": found.responses.texts[i]} for i in places[:TEXTS_KEPT]]
        add_run(file, run, row, prompts=measured, texts=texts)
        print(f"{name}: {method}, {about['settings']}, seed {seed}: {found.seconds:.0f} s", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make what notebook 15 spends anew: the draws, or the runs.")
    parser.add_argument("what", choices=("draws", "run"))
    parser.add_argument("worlds", nargs="*", help="imdb, tldr; both if none")
    given = parser.parse_args()
    for each in given.worlds or WORLDS:
        if given.what == "draws":
            make_draws(each)
        else:
            run_steered(each, load_world(each))
