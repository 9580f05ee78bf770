"""Every method on sentiment control: the grid of runs, each with one stored row, for notebooks 07 to 10."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from bonlib.checks import number, one_of, settle, whole
from bonlib.course.experiments.bundled import scored_draws
from bonlib.course.experiments.results import RESULTS, add_run, claim, done_runs, options_text, provenance
from bonlib.course.experiments.setting import Setting, imdb_setting, review_judge
from bonlib.course.making.reviews import review_prompts
from bonlib.course.profiles import Imdb, Profile, Summaries, Training, known_sizes
from bonlib.course.runner import BUILD, commit_of_workbook
from bonlib.draws.rewards import ClassifierReward, CutPenalty, checked_score
from bonlib.draws.store import Draws, SampleStore
from bonlib.evaluate import Evaluation, TestSet, divergences, evaluate, log_quantiles
from bonlib.exact import Array
from bonlib.methods import METHODS, get_method
from bonlib.methods.bond import Bond
from bonlib.methods.jbond import JBond
from bonlib.metrics import mean_over_prompts, win_probability
from bonlib.models.kernels import release_freed_memory
from bonlib.models.loaded import LoadedModel
from bonlib.models.responses import Responses, concatenate
from bonlib.training.quantile import fit_quantile_model
from bonlib.training.reward_cdf import LogCdf, SampledCdf
from bonlib.training.settings import Ppo, TrainingData, TrainSettings
from bonlib.training.trainer import DivergedError, Trained, train

FEW = 32  # reference samples a prompt that a quantile model learns from
SETTABLE = [field.name for field in fields(TrainSettings) if field.name not in ("seed", "ppo")]  # these a run decides
TEXTS_KEPT = 4  # test prompts whose responses are kept as text

MEASURED = ("reward", "win_rate", "kl", "entropy", "reverse_kl", "forward_kl", "log_quantile")  # while training


@dataclass(frozen=True)
class Run:
    """One training run of a sweep.

    Attributes:
        method: a key of `bonlib.methods.registry.METHODS`.
        value: of its setting, which its entry in `METHODS` names.
        seed: of training.
        sweep: which table it belongs to: "sentiment", "cdf", "budget", "bond", "learning_rates", "noise", "price" or
            "tldr".
        cdf: "samples" for a CDF counted on samples, "exponential" for a curve fitted to that, "learned" for a quantile
            model.
        m: samples behind it.
        changes: settings of training that differ from the profile's, as pairs.
        options: fields of the method that differ from its own, as pairs.
        target: n of the best-of-n that a method is compared with which has none.
    """

    method: str
    value: float
    seed: int
    sweep: str = "sentiment"
    cdf: str = "samples"
    m: int | None = None
    changes: tuple[tuple[str, Any], ...] = field(default=())
    options: tuple[tuple[str, Any], ...] = field(default=())
    target: int = 0

    def __post_init__(self) -> None:
        get_method(self.method)
        one_of("cdf", self.cdf, ("samples", "exponential", "learned"))
        m = None if self.m is None else whole("m", self.m, 1, what="the number of samples behind a CDF")
        value = float(number(METHODS[self.method].setting, self.value))  # 8 and 8.0 are one run
        settle(self, value=value, seed=whole("seed", self.seed), m=m)

    def make(self) -> Any:
        """Return the method with its settings.

        Raises:
            ValueError: if it has no such option, or one is out of range.
        """
        self.check_names()
        entry = METHODS[self.method]
        return entry.make(self._value, **entry.as_stored(self.options))

    def check_names(self) -> None:
        """Raise a ValueError if the method has no option of a name in `options`."""
        known = set(METHODS[self.method].options)
        if not set(dict(self.options)) <= known:
            unknown = min(set(dict(self.options)) - known)
            raise ValueError(
                f"setting {unknown!r} is unknown; {self.method} has {', '.join(sorted(known)) or 'none'}, and training "
                f"{', '.join(SETTABLE)}"
            )

    @property
    def _value(self) -> float:
        entry = METHODS[self.method]
        if entry.algorithm != "offline" or entry.setting != "n":
            return self.value
        if self.value != int(self.value):
            raise ValueError(f"n is {self.value}; {self.method} takes the best of a whole number of draws")
        return int(self.value)


class Harness:
    """Reference, reward model, draws and test prompts of a profile, the same for every method: sentiment control.

    Args:
        profile: names models and sizes.
        store: of draws; the user's own if None.
        build: where checkpoints and policies go.
    """

    compares = True  # whether there are draws enough to measure how far a policy is from best-of-n, and by gold
    glance = (128, 1)  # test prompts, and responses to each, that a policy is measured on while it learns

    def __init__(self, profile: Profile, store: SampleStore | None = None, *, build: Path = BUILD) -> None:
        self.profile, self.store, self.build = profile, store or SampleStore(), build
        self.commit = commit_of_workbook()  # now: the code that runs is the code that was loaded
        self._learned: dict[int, LogCdf] = {}
        self._fit_seconds: dict[int, float] = {}

    @property
    def sizes(self) -> Imdb | Summaries:
        """How much is drawn to measure with."""
        return self.profile.imdb

    @property
    def training(self) -> Training:
        """Sizes of training."""
        return self.profile.training

    @property
    def tested_on(self) -> int | Sequence[str]:
        """How many prompts policies are measured on, or which ones."""
        return self.training.test_prompts

    @cached_property
    def setting(self) -> Setting:
        """Models and test prompts."""
        # In the precision of policies, else one that has learned nothing would be away from its reference.
        dtype = "float32" if self.profile.dtype == "auto" else self.profile.dtype
        return imdb_setting(replace(self.profile, dtype=dtype), self.tested_on)

    @cached_property
    def prompts(self) -> list[str]:
        """Openings of training reviews."""
        return review_prompts(
            self.setting.reference.tokenizer,
            self.profile.imdb.train_prompts,
            seed=self.profile.seed,
            split="train",
            lengths=self.profile.imdb.prompt_tokens,
            source=self.profile.reviews,
            revision=self.setting.source.partition("@")[2] or None,
        )

    def draw(self, prompts: Sequence[str], count: int, seed: int, temperature: float = 1.0) -> tuple[Draws, Any]:
        """Return draws of the reference and their rewards: the project's own if it has them, else the store's."""
        if temperature == 1 and (bundled := scored_draws(self.setting, prompts, count, seed)):
            return bundled
        sampler, sampling = self.setting.sampler, replace(self.setting.sampling, temperature=temperature)
        draws = self.store.draw(sampler, prompts, count, sampling, seed=seed)
        return draws, self.store.score(self.setting.reward_model, draws)

    @cached_property
    def reference_draws(self) -> tuple[Draws, Any]:
        """Draws of the training prompts, and their rewards."""
        return self.draw(self.prompts, self.training.draws, self.profile.seed)

    @cached_property
    def test(self) -> TestSet:
        """Test prompts, with opponents that no best-of-n of notebook 05 has chosen from."""
        sizes, seed = self.sizes, self.profile.seed
        draws, rewards = self.draw(self.setting.prompts, sizes.draws + sizes.opponents, seed)
        own, opponents = rewards[:, : sizes.draws], rewards[:, sizes.draws :]
        sampling = self.setting.sampling
        return TestSet(self.setting.prompts, opponents, sampling, self.training.responses, seed, draws, own)

    @cached_property
    def gold(self) -> ClassifierReward | CutPenalty:
        """A reward model that no policy is trained on."""
        return review_judge(self.profile)

    def judged_by_gold(self, responses: Responses) -> Array:
        """What it says of responses to the test prompts, as many to each, those to one prompt together, (P, k)."""
        each = len(responses) // len(self.test.prompts)
        prompts = [prompt for prompt in self.test.prompts for _ in range(each)]
        return checked_score(self.gold, prompts, responses).reshape(-1, each)

    def gold_of_draws(self, part: slice) -> Array:
        """What it says of a part of the reference's draws to each test prompt; a store keeps that."""
        assert self.test.draws is not None
        draws = replace(self.test.draws, responses=tuple(drawn[part] for drawn in self.test.draws.responses))
        if draws.folder is None:
            return self.judged_by_gold(concatenate(draws.responses))
        return self.store.score(self.gold, draws)

    @cached_property
    def gold_opponents(self) -> Array:
        """What it says of the opponents, (P, b)."""
        return self.gold_of_draws(slice(self.sizes.draws, None))

    @cached_property
    def seen(self) -> TestSet:
        """Training prompts, as many as a policy is measured on while it learns, with opponents it has not met."""
        prompts, seed = self.prompts[: self.glance[0]], self.profile.seed
        _, opponents = self.draw(prompts, self.sizes.opponents, seed + 1)
        return TestSet(prompts, opponents, self.setting.sampling, self.training.responses, seed)

    def on_seen(self, policy: LoadedModel) -> dict[str, float]:
        """Return what a policy does on training prompts: its win rate, its KL and their errors."""
        found = evaluate(policy, self.setting.reference, self.setting.reward_model, self.seen).summary()
        return {f"seen_{name}": found[name] for name in ("win_rate", "win_rate_se", "kl", "kl_se")}

    def by_gold(self, evaluation: Evaluation) -> dict[str, float]:
        """Return the mean of gold over a policy's responses, and how often it prefers them to the reference's."""
        gold, row = self.judged_by_gold(evaluation.responses), dict[str, float]()
        for name, table in {"gold": gold, "gold_win_rate": win_probability(gold, self.gold_opponents)}.items():
            mean, error = mean_over_prompts(table.mean(axis=1))
            row |= {name: float(mean), f"{name}_se": float(error)}
        return row

    def samples_behind(self, run: Run) -> int:
        """Return how many draws of each training prompt a run's CDF is made from."""
        return run.m or (FEW if run.cdf == "learned" else self.training.cdf_samples)

    def cdf(self, kind: str, m: int) -> LogCdf:
        """Return a CDF made from the first m draws of each training prompt; `Run` says what kinds there are."""
        if m > self.training.draws:
            raise ValueError(f"m is {m}; profile {self.profile.name} has {self.training.draws} draws a prompt")
        draws, rewards = self.reference_draws
        if kind != "learned":
            return SampledCdf(self.prompts, rewards[:, :m], "exponential" if kind == "exponential" else "posterior")
        if m not in self._learned:
            begun, scratch = time.perf_counter(), self.build / "quantiles" / str(os.getpid())
            model = fit_quantile_model(
                self.profile.language_model, self.prompts, draws.texts[:, :m], rewards[:, :m], scratch=scratch
            )
            self._learned[m], self._fit_seconds[m] = model, time.perf_counter() - begun
        return self._learned[m]

    def settings(self, run: Run) -> TrainSettings:
        """Return the settings of a run: the profile's, with the method's learning rate."""
        sizes = self.training
        chosen: dict[str, Any] = {
            "steps": sizes.steps,
            "lora_rank": sizes.lora_rank,
            "precision": sizes.precision,
            "ppo": Ppo() if METHODS[run.method].algorithm == "ppo" else None,
            "seed": run.seed,
        }
        named = self.usual(run.method) | dict(run.changes)
        settings = TrainSettings(**(chosen | named))
        return settings if "measure_every" in named else replace(settings, measure_every=max(settings.steps // 10, 10))

    def usual(self, method: str) -> dict[str, Any]:
        """Return the settings that a method has here: its learning rate, and how a step is made up."""
        usual = TrainSettings.prompts
        named = {"learning_rate": 1e-4, "prompts": usual, **METHODS[method].training}
        return named | {"prompts": named["prompts"] * self.training.prompts // usual}

    def identity(self, run: Run) -> str:
        """Return a hash of all that the run's numbers depend on, but the code."""
        profile, sizes = self.profile, self.training
        about = {
            # Two fields came late.
            **{name: value for name, value in asdict(run).items() if name not in ("options", "target") or value},
            "settings": self.settings(run).described(),
            "draws": sizes.draws,
            "cdf_samples": self.samples_behind(run),
            "test": [sizes.test_prompts, sizes.responses],
            "seed": profile.seed,
            **self.sources(),
        }
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:12]

    def sources(self) -> dict[str, Any]:
        """Return what draws and rewards depend on."""
        profile = self.profile
        return {
            "imdb": {name: value for name, value in known_sizes(profile.imdb).items() if name != "ns"},
            "models": [profile.language_model, profile.reward_model, profile.reviews],
            "revisions": [profile.language_model_revision, profile.reward_model_revision],
        }

    def folder(self, run: Run) -> Path:
        """Return where a run keeps its checkpoints and its policy."""
        name = f"{run.method}-{run.value:g}-{run.seed}-{self.identity(run)}"
        return self.build / "train" / self.profile.name / name

    def check(self, run: Run) -> None:
        """Raise a ValueError if the profile has too few draws for a run; nothing is drawn to find out."""
        method, name = run.make(), self.profile.name
        if isinstance(method, Bond) and not method.asks_anchor and self.compares and 2 * method.n > self.sizes.draws:
            raise ValueError(
                f"n is {method.n}; profile {name} has {self.sizes.draws} draws a test prompt, and "
                "the distance from best-of-n is measured with 2 n: lower n"
            )
        if method.needs_draws > self.training.draws:
            raise ValueError(
                f"{METHODS[run.method].setting} is {run.value:g}, for which {run.method} needs {method.needs_draws} "
                f"draws a prompt; profile {name} has {self.training.draws}: lower it, or take a larger profile"
            )

    def train(self, run: Run, *, folder: Path | None = None, show: bool = True) -> Trained:
        """Train the policy of a run; it goes on where it was interrupted."""
        self.check(run)
        method = run.make()
        data = TrainingData(self.prompts, self.setting.reward_model, self.setting.sampling)
        if method.needs_draws or method.needs_cdf:  # others need no draw of the reference
            draws, rewards = self.reference_draws
            cdf = self.cdf(run.cdf, self.samples_behind(run))
            data = replace(data, draws=draws, rewards=rewards, cdf=cdf)
        small = self.test.first(*self.glance)

        def measure(policy: LoadedModel) -> dict[str, float]:
            evaluation = evaluate(policy, self.setting.reference, self.setting.reward_model, small)
            found = evaluation.summary() | self.divergences(run, policy, evaluation, small)
            return {f"test_{name}": figure for name, figure in found.items() if name in MEASURED}

        where, settings = folder or self.folder(run), self.settings(run)
        return train(self.setting.reference, method, data, settings, where, measure=measure, show=show)

    def evaluate(self, policy: LoadedModel) -> Evaluation:
        """Measure a policy on the test prompts."""
        return evaluate(policy, self.setting.reference, self.setting.reward_model, self.test)

    def divergences(self, run: Run, policy: LoadedModel, evaluation: Evaluation, test: TestSet) -> dict[str, float]:
        """Return the KLs to and from best-of-n, where that is the target and stays; of BOND the quantiles as well."""
        method, found = run.make(), {}
        if isinstance(method, Bond | JBond):
            found["log_quantile"] = log_quantiles(evaluation, test)
        n = run.target or getattr(method, "n", 0)
        draws = 0 if test.rewards is None or not self.compares else test.rewards.shape[1]
        if n and n == int(n) and not method.asks_anchor and 2 * n <= draws:
            found["reverse_kl"], found["forward_kl"] = divergences(policy, evaluation, test, int(n))
        row: dict[str, float] = {}
        for name, table in found.items():
            mean, error = mean_over_prompts(table.mean(axis=1))
            row |= {name: float(mean), f"{name}_se": float(error)}
        return row

    def row(self, run: Run, trained: Trained, evaluation: Evaluation) -> dict[str, Any]:
        """Return the row that is stored of a run."""
        settings, entry = self.settings(run), METHODS[run.method]
        reference, told_cdf = self.setting.reference, getattr(run.make(), "needs_cdf", False)
        return {
            "profile": self.profile.name,
            "method": run.method,
            "setting": entry.setting,
            "value": run.value,
            **({"target": run.target} if run.target else {}),
            "seed": run.seed,
            "algorithm": entry.algorithm,
            "cdf": run.cdf if told_cdf else None,
            "m": self.samples_behind(run) if told_cdf else None,
            "options": options_text(run.options),
            "learning_rate": settings.learning_rate,
            "steps": settings.steps,
            "decay": settings.decay,
            "responses": trained.responses,
            "seconds": trained.seconds,
            "fit_seconds": self._fit_seconds.get(self.samples_behind(run)) if run.cdf == "learned" else None,
            **evaluation.summary(),
            **self.divergences(run, trained.policy, evaluation, self.test),
            **(self.by_gold(evaluation) | self.on_seen(trained.policy) if self.compares else {}),
            "train_prompts": len(self.prompts),
            "test_prompts": len(self.test.prompts),
            "precision": settings.precision,
            "lora_rank": settings.lora_rank,
            "reference": f"{reference.name}@{reference.commit or reference.fingerprint[:12]}",
            **provenance(reference.device, self.commit),
        }

    def run_all(self, runs: Iterable[Run], *, results: Path = RESULTS) -> bool:
        """Train and measure every run that has no row yet; several processes may do so at once.

        Args:
            runs: in the order of their importance.
            results: folder of the tables.

        Returns:
            Whether all went well; a run that diverged or was refused is reported, and the others go on.
        """
        went_well = True
        for run in runs:
            try:
                folder = self.folder(run)
                with claim(folder.with_name(f"{folder.name}.lock")) as ours:
                    if ours:
                        self._run_one(run, results)
            except (DivergedError, ValueError) as error:
                print(f"bonlib: {run.method} at {run.value:g}: {error}", file=sys.stderr, flush=True)
                went_well = False
        return went_well

    def _run_one(self, run: Run, results: Path) -> None:
        identity, table = self.identity(run), results / f"{run.sweep}.parquet"
        if identity in done_runs(table):
            return
        trained = self.train(run)
        release_freed_memory()  # evaluation reads batches of other sizes, and would add theirs to it
        evaluation = self.evaluate(trained.policy)
        row = self.row(run, trained, evaluation)
        parts = {"curves": trained.curve, "prompts": _by_prompt(evaluation), "texts": _texts(self.test, evaluation)}
        add_run(table, identity, row, **parts)
        print(
            f"{run.method:11s} {row['setting']} = {run.value:g}, seed {run.seed}: reward {row['reward']:.3f}, win "
            f"rate {row['win_rate']:.3f}, KL {row['kl']:.2f}, {trained.seconds:.0f} s",
            flush=True,
        )


def _by_prompt(evaluation: Evaluation) -> list[dict[str, Any]]:
    figures = {"reward": evaluation.rewards, "win_rate": evaluation.wins, "kl": evaluation.kl}
    means = pd.DataFrame({name: table.mean(axis=1) for name, table in figures.items()})
    return [{"prompt": place, **dict(row)} for place, row in means.iterrows()]


def _texts(test: TestSet, evaluation: Evaluation) -> list[dict[str, Any]]:
    k = evaluation.rewards.shape[1]
    return [
        {
            "prompt": test.prompts[i],
            "response": str(evaluation.responses.texts[i * k]),
            "reward": evaluation.rewards[i, 0],
            "log_prob": evaluation.responses.log_probs[i * k],
            "ref_log_prob": evaluation.ref_log_probs[i, 0],
        }
        for i in range(min(TEXTS_KEPT, len(test.prompts)))
    ]
