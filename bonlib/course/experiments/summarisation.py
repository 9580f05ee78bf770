"""Every method on summarisation: trained on a proxy reward, judged by another, for notebook 12."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bonlib.checks import one_of
from bonlib.course.experiments.judging import Condition, Judgement, Judges, copied
from bonlib.course.experiments.results import RESULTS, add_run, claim, done_runs, provenance, read_rows
from bonlib.course.experiments.sentiment import TEXTS_KEPT, Harness, Run
from bonlib.course.experiments.setting import Setting
from bonlib.course.making.adapters import save_adapter, write_card
from bonlib.course.making.documents import (
    Document,
    load_abstracts,
    load_reddit,
    review_documents,
    rouge,
    summary_prompt,
)
from bonlib.course.profiles import Profile, Summaries, Training, known_sizes
from bonlib.course.runner import BUILD
from bonlib.draws.rewards import ClassifierReward, CutPenalty, checked_score
from bonlib.draws.samplers import SamplingSettings, TransformersSampler
from bonlib.draws.store import Draws, SampleStore
from bonlib.estimates import best_of_n_weights
from bonlib.inference.best_of_n import best_of_n
from bonlib.methods import METHODS
from bonlib.metrics import mean_over_prompts, win_probability
from bonlib.models.kernels import has_bfloat16
from bonlib.models.loaded import LoadedModel, load_classifier, load_language_model, pick_device
from bonlib.models.places import BUNDLED
from bonlib.models.responses import Responses, concatenate

Array = NDArray[np.float64]
SWEEP = "tldr"
DISTRIBUTIONS = ("in", "out")
# Sizes that a training run depends on.
SOURCES = (
    "train_prompts",
    "test_prompts",
    "draws",
    "opponents",
    "prompt_tokens",
    "max_new_tokens",
    "cut_penalty",
    "chunk_size",
)
# vBoN as its section 6 has it: the bound L, with a curve fitted to log F.
TRAINED = ("bon-sft", "kl-rl-ppo", "dpo", "bonbon", "vbon-bound", "bond", "jbond")
LEARNING_RATES = {"kl-rl-ppo": 3e-4}
LEARNING_RATE = 5e-4  # of the others


def grid(profile: Profile, methods: Sequence[str] = ()) -> list[Run]:
    """Return the runs of notebook 12, seed by seed: each method at the N of the profile, or at what is equivalent."""
    training = profile.summaries.training
    values = {"n": training.ns[0], "beta": training.betas[0], "rate": training.anchor_rates[0]}
    return [
        Run(
            method,
            values.get(METHODS[method].setting, METHODS[method].grid[0]),
            seed,
            SWEEP,
            cdf="exponential" if method == "vbon-bound" else "samples",
        )
        for seed in training.seeds
        for method in methods or TRAINED
    ]


class Exam(NamedTuple):
    """Documents of one kind that policies are judged on.

    Attributes:
        prompts: requests for summaries, P.
        documents: what they are of.
    """

    prompts: list[str]
    documents: list[Document]


class SummaryHarness(Harness):
    """Reference, proxy and gold reward model, draws and documents of a profile: summarisation."""

    compares = False
    glance = (16, 1)

    def __init__(self, profile: Profile, store: SampleStore | None = None, *, build: Path = BUILD) -> None:
        super().__init__(profile, store, build=build)
        self._drawn: dict[Condition, tuple[Draws, Judges]] = {}

    @property
    def sizes(self) -> Summaries:
        """How much is drawn to measure with."""
        return self.profile.summaries

    @property
    def training(self) -> Training:
        """Sizes of training."""
        return self.sizes.training

    @cached_property
    def setting(self) -> Setting:
        """Models, and the prompts in distribution."""
        profile, sizes = self.profile, self.sizes
        where = {"device": pick_device(profile.device)}
        where["dtype"] = "bfloat16" if profile.dtype == "auto" and has_bfloat16(where["device"]) else profile.dtype
        reference = load_language_model(profile.summary_model, revision=profile.summary_model_revision, **where)
        # What reads the whole prompt needs little memory beside the model: as many summaries at once as are kept.
        sampler = TransformersSampler(reference, batch_size=max(sizes.batch_size, 128))
        return Setting(
            reference=reference,
            sampler=sampler,
            reward_model=self._judge(profile.proxy_model, profile.proxy_model_revision, reference),
            prompts=[
                summary_prompt(reference.tokenizer, document, sizes.prompt_tokens) for document in self._tests("in")
            ],
            source=profile.posts,
            sampling=SamplingSettings(sizes.max_new_tokens),
        )

    @cached_property
    def gold(self) -> CutPenalty:
        """The reward model that policies are judged by."""
        return self._judge(self.profile.gold_model, self.profile.gold_model_revision, self.setting.reference)

    def _judge(self, name: str, revision: str | None, reference: LoadedModel) -> CutPenalty:
        dtype = str(reference.model.dtype).removeprefix("torch.")
        loaded = load_classifier(name, revision=revision, device=reference.device.type, dtype=dtype)
        judge = ClassifierReward(loaded, batch_size=64, suffix=self.profile.judges_read)
        return CutPenalty(judge, reference.end_token_ids, penalty=self.sizes.cut_penalty)

    @cached_property
    def prompts(self) -> list[str]:
        """Requests for summaries of training documents; no two alike."""
        tokenizer, sizes, profile = self.setting.reference.tokenizer, self.sizes, self.profile
        documents = (
            [*load_abstracts("train"), *load_abstracts("validation")]
            if profile.posts == "aclsum"
            else load_reddit("train", relationships=True, source=profile.posts, revision=profile.posts_revision)
        )
        asked = (summary_prompt(tokenizer, document, sizes.prompt_tokens) for document in documents)
        return list(dict.fromkeys(asked))[: sizes.train_prompts]

    def _tests(self, distribution: str) -> list[Document]:
        profile, count = self.profile, self.sizes.test_prompts
        one_of("distribution", distribution, DISTRIBUTIONS)
        if profile.posts != "aclsum":
            inside, revision = distribution == "in", profile.posts_revision
            return list(load_reddit("test", relationships=inside, source=profile.posts, revision=revision)[:count])
        return list(load_abstracts("test") if distribution == "in" else review_documents())[:count]

    def exam(self, distribution: str) -> Exam:
        """Return the documents that policies are judged on: "in" or "out" of the training distribution."""
        documents, tokenizer = self._tests(distribution), self.setting.reference.tokenizer
        return Exam([summary_prompt(tokenizer, each, self.sizes.prompt_tokens) for each in documents], documents)

    def usual(self, method: str) -> dict[str, Any]:
        """Return the settings that a method has here: its learning rate, and how a step is made up."""
        # J-BOND has its anchor draw as many; a step of every method takes 32 responses. Where all answer different
        # prompts, as off policy, they are read in four parts, or a step would take 16 GB.
        moving = {name: value for name, value in METHODS[method].training.items() if name == "decay"}
        return moving | {
            "shards": 4 if METHODS[method].algorithm == "offline" else 1,
            "learning_rate": LEARNING_RATES.get(method, LEARNING_RATE),
            "prompts": 8,
            "group": 2 if method == "jbond" else 4,
            "measure_every": 20,
            "checkpoint_every": 10,
        }

    def sources(self) -> dict[str, Any]:
        """Return what draws and rewards depend on."""
        profile = self.profile
        models = ("summary_model", "proxy_model")
        return {
            "sizes": {name: value for name, value in known_sizes(self.sizes).items() if name in SOURCES},
            "models": [getattr(profile, name) for name in models],
            "revisions": [getattr(profile, f"{name}_revision") for name in models],
            "posts": [profile.posts, profile.posts_revision],
        }

    # -- judging ---------------------------------------------------------------------------------------------------

    def reference_draws_at(self, where: Condition) -> tuple[Draws, Judges]:
        """Return summaries by the reference, with their rewards, from the store as far as it has them."""
        if where not in self._drawn:  # to ask the store takes the hashes of three models
            prompts, count = self.exam(where.distribution).prompts, self.sizes.draws + self.sizes.opponents
            draws, proxy = self.draw(prompts, count, where.sampling_seed, where.temperature)
            self._drawn[where] = draws, Judges(proxy, self.store.score(self.gold, draws))
        return self._drawn[where]

    def of_reference(self, where: Condition) -> dict[str, Judgement]:
        """Judge the reference ("sft") and the best of its draws by the proxy ("bon")."""
        draws, rewards = self.reference_draws_at(where)
        choose_from = rewards.proxy[:, : self.sizes.draws]
        places = {
            "sft": np.tile(np.arange(self.sizes.responses), (len(choose_from), 1)),
            "bon": best_of_n(choose_from, self.sizes.n),
        }
        return {
            name: self._judgement(
                where,
                concatenate([row[chosen] for row, chosen in zip(draws.responses, table, strict=True)]),
                Judges(*(np.take_along_axis(each, table, axis=1) for each in rewards)),
            )
            for name, table in places.items()
        }

    def of_policies(self, policies: Mapping[str, LoadedModel], where: Condition) -> dict[str, Judgement]:
        """Judge policies; the judges read each document once for the summaries of all."""
        prompts, count = self.exam(where.distribution).prompts, self.sizes.responses
        sampling = SamplingSettings(self.sizes.max_new_tokens, where.temperature)
        asked = [prompt for prompt in prompts for _ in range(count)]
        drawn = {
            name: TransformersSampler(policy, batch_size=128).sample(asked, sampling, seed=where.sampling_seed)
            for name, policy in policies.items()
        }
        together, shape = concatenate(list(drawn.values())), (len(drawn), len(prompts), count)
        proxy, gold = (
            checked_score(judge, asked * len(drawn), together).reshape(shape)
            for judge in (self.setting.reward_model, self.gold)
        )
        return {
            name: self._judgement(where, responses, Judges(proxy[place], gold[place]))
            for place, (name, responses) in enumerate(drawn.items())
        }

    def best_of_each_n(self, where: Condition) -> list[dict[str, float]]:
        """Return what the judges say of best-of-n by the proxy, for n = 1, 2, 4 … up to all draws there are.

        Returns:
            For each n the mean rewards proxy and gold, and proxy_gain and gold_gain over n = 1 with the standard errors
            proxy_gain_se and gold_gain_se over documents. Besides, the same in each row, what holds among draws of one
            document: standard deviations proxy_sd and gold_sd, the correlation of the two rewards, and gold_per_token,
            the slope of gold in length.
        """
        draws, (proxy, gold) = self.reference_draws_at(where)
        tables = (proxy, gold, draws.lengths.astype(np.float64))
        proxy_part, gold_part, length_part = ((each - each.mean(axis=1, keepdims=True)).ravel() for each in tables)
        among_draws = {
            "proxy_sd": float(np.sqrt(proxy.var(axis=1, ddof=1).mean())),
            "gold_sd": float(np.sqrt(gold.var(axis=1, ddof=1).mean())),
            "correlation": float(np.corrcoef(proxy_part, gold_part)[0, 1]),
            "gold_per_token": float(length_part @ gold_part / (length_part @ length_part or 1.0)),  # or all are as long
        }
        rows = []
        for n in 2 ** np.arange(int(np.log2(proxy.shape[1])) + 1):
            weights = best_of_n_weights(proxy, int(n))
            row: dict[str, float] = {"n": int(n)}
            for name, rewards in (("proxy", proxy), ("gold", gold)):
                means = (weights * rewards).sum(axis=1)
                gained, error = mean_over_prompts(means - rewards.mean(axis=1))
                row |= {name: float(means.mean()), f"{name}_gain": float(gained), f"{name}_gain_se": float(error)}
            rows.append(row | among_draws)
        return rows

    def policies(self, methods: Sequence[str] = ()) -> dict[tuple[str, int], LoadedModel]:
        """Return trained policies, by method and training seed: the bundled ones if the profile names them.

        Args:
            methods: which; all if there are none.
        """
        reference, named = self.setting.reference, self.profile.summary_policies
        dtype = str(reference.model.dtype).removeprefix("torch.")
        found = {}
        for run in grid(self.profile, methods):
            if named is None:
                policy = self.train(run).policy
            else:
                name = named.format(method=run.method)
                policy = load_language_model(name, device=reference.device.type, dtype=dtype)
            found[run.method, run.seed] = policy
        return found

    def judge_all(
        self,
        *,
        results: Path = RESULTS,
        distributions: Sequence[str] = DISTRIBUTIONS,
        temperatures: Sequence[float] = (),
        methods: Sequence[str] = (),
    ) -> set[str]:
        """Judge reference, best-of-n and all policies at every temperature and sampling seed; goes on where it was.

        Several processes may do so at once: each takes the next condition that nobody works on.

        Args:
            results: folder of the file tldr_judged: a row a policy and condition, with documents, texts, and, where the
                policy is best-of-n, a curve against n.
            distributions: of the documents, "in" and "out" of that of training.
            temperatures: some of the profile's; all if there are none.
            methods: whose policies; all if there are none.

        Returns:
            What identifies the rows of these models and sizes in the file.
        """
        sizes, file = self.sizes, results / "tldr_judged.parquet"
        policies = {" ".join(map(str, key)): policy for key, policy in self.policies(methods).items()}
        prints = {"sft": self.setting.reference.fingerprint}
        prints |= {name: policy.fingerprint for name, policy in policies.items()}
        prints["bon"] = f"{prints['sft']} {sizes.n}"
        judges = [self.setting.reward_model.fingerprint, self.gold.fingerprint]
        about = [known_sizes(sizes), self.profile.posts, self.profile.posts_revision, self.profile.reviews, *judges]
        runs: set[str] = set()
        chosen = [one_of("temperature", each, sizes.temperatures) for each in temperatures] or sizes.temperatures
        for seed, distribution, temperature in product(sizes.sampling_seeds, distributions, chosen):
            where = Condition(distribution, temperature, seed)
            names = {name: _hash([about, fingerprint, asdict(where)]) for name, fingerprint in prints.items()}
            runs |= set(names.values())
            with claim(self.build / "judge" / f"{_hash(sorted(names.values()))}.lock") as ours:
                if ours:
                    self._judge_missing(where, names, policies, file, done_runs(file))
        return runs

    def _judge_missing(
        self,
        where: Condition,
        names: Mapping[str, str],
        policies: Mapping[str, LoadedModel],
        file: Path,
        done: Collection[str],
    ) -> None:
        """Judge what has no row yet of one condition; `names` tells policies to the rows' identities."""
        missing = {name for name, identity in names.items() if identity not in done}
        begun = time.perf_counter()
        found: dict[str, Judgement] = {}
        if missing & {"sft", "bon"}:
            found |= self.of_reference(where)
        if wanted := {name: policy for name, policy in policies.items() if name in missing}:
            found |= self.of_policies(wanted, where)
        about = provenance(self.setting.reference.device, self.commit)
        kept = TEXTS_KEPT if where.sampling_seed == self.sizes.sampling_seeds[0] else 0
        for name, judgement in found.items():
            method, _, trained = name.partition(" ")
            row = {"profile": self.profile.name, "method": method, "seed": int(trained or 0), **asdict(where)}
            parts = {"prompts": judgement.rows(), "texts": judgement.first_texts(kept)}
            parts["curves"] = self.best_of_each_n(where) if method == "bon" else []
            add_run(file, names[name], {**row, **judgement.summary(), **about}, **parts)
        if found:
            at = f"{where.distribution}, temperature {where.temperature:g}, seed {where.sampling_seed}"
            print(f"{at}: {len(found)} in {time.perf_counter() - begun:.0f} s", flush=True)

    def _judgement(self, where: Condition, responses: Responses, rewards: Judges) -> Judgement:
        exam, shape = self.exam(where.distribution), rewards.gold.shape
        _, of_reference = self.reference_draws_at(where)
        proxy_win, win = (
            win_probability(mine, theirs[:, self.sizes.draws :])
            for mine, theirs in zip(rewards, of_reference, strict=True)
        )
        texts = np.array([text.strip() for text in responses.texts.tolist()]).reshape(shape)
        close = [
            rouge(row.tolist(), [document.summaries] * shape[1]) if document.summaries else [np.nan] * shape[1]
            for row, document in zip(texts, exam.documents, strict=True)
        ]
        return Judgement(
            texts,
            rewards.gold,
            rewards.proxy,
            win,
            proxy_win,
            responses.lengths.astype(np.float64).reshape(shape),
            responses.are_cut(self.setting.reference.end_token_ids).astype(np.float64).reshape(shape),
            np.array([[copied(text, prompt) for text in row] for row, prompt in zip(texts, exam.prompts, strict=True)]),
            np.array(close),
        )


def _hash(about: Any) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:12]


def bundle(
    harness: SummaryHarness, methods: Sequence[str] = (), *, results: Path = RESULTS, folder: Path = BUNDLED
) -> None:
    """Write the adapters of the policies that were trained with the first seed, in half precision with model cards.

    Args:
        harness: trains those that are not there yet.
        methods: whose; those of notebook 12 if there are none.
        results: folder of the file that says what they were measured at.
        folder: gets a folder for each.

    Raises:
        ValueError: if one could not be trained.
    """
    base = harness.setting.reference.model.peft_config["default"].base_model_name_or_path
    runs = [run for run in grid(harness.profile, methods) if run.seed == harness.training.seeds[0]]
    harness.run_all(runs, results=results)
    rows = read_rows(results / f"{SWEEP}.parquet").set_index("run")
    if missing := [run.method for run in runs if harness.identity(run) not in rows.index]:
        raise ValueError(
            f"methods {', '.join(missing)} have no trained policy: what went wrong is above, or another process is at "
            "it; `python -m bonlib train --sweep tldr` shows them"
        )
    for run in runs:
        row: dict[str, Any] = dict(rows.loc[harness.identity(run)])
        setting = METHODS[run.method].setting
        value = int(run.value) if setting == "n" else round(run.value, 4)
        about = {setting: value, "steps": int(row["steps"]), "learning_rate": row["learning_rate"]}
        if isinstance(row["cdf"], str):
            about |= {"cdf": row["cdf"], "cdf_samples": int(row["m"])}
        about |= {"responses": int(row["responses"]), "seed": run.seed, "base": base, "machine": row["device"]}
        about |= {"minutes": round(float(row["seconds"]) / 60, 1), "commit": row["commit"]}
        where = folder / f"tldr-{run.method}"
        save_adapter(harness.train(run).policy.model, where, about)
        measured = {
            f"{name}, {len(harness.test.prompts)} test abstracts": row[name] for name in ("reward", "win_rate", "kl")
        }
        purpose = f"Sums up an abstract in a sentence, trained on {harness.profile.proxy_model} by {run.method}."
        data = (
            f"{len(harness.prompts)} abstracts on computational linguistics, package `aclsum` (Takeshita et al. 2024)"
        )
        write_card(
            where, purpose, "train --sweep tldr --profile laptop`, `python -m bonlib pretrain policies", measured, data
        )
