"""The front door: `import bonlib as bon`, then draw, score, choose, train, compare, from what `ingredients` makes.

Each function does the usual thing with the parts behind it, which stay importable. Draws, rewards and trained policies
are kept on disk, in the store of `bonlib.draws.store`: asked for again, they are read. A comparison is measured anew.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bonlib.exact import Array
from bonlib.ingredients import Folder, load, reward
from bonlib.tables import Comparison, Curve, Kept, RuleTable, mean_and_error

if TYPE_CHECKING:
    import pandas as pd

    from bonlib.draws.rewards import RewardModel
    from bonlib.draws.samplers import Sampler, SamplingSettings
    from bonlib.draws.store import Draws, SampleStore
    from bonlib.inference.rules import Rule
    from bonlib.models.loaded import LoadedModel
    from bonlib.training.trainer import Trained


def draw(
    model: LoadedModel | Trained | Folder | Sampler,
    prompts: Sequence[str],
    count: int = 128,
    *,
    max_new_tokens: int = 24,
    seed: int = 0,
    store: SampleStore | Folder | None = None,
    **law: Any,
) -> ModelDraws:
    """Draw responses to prompts, those that the store does not have yet.

    Args:
        model: a language model, loaded, trained or by name; or any sampler, such as `served` returns, or one of vLLM.
        prompts: P different ones.
        count: draws a prompt; more later are added to these.
        max_new_tokens: longest response, in tokens.
        seed: another seed gives independent draws.
        store: where draws are kept, or its folder; BONLIB_STORE, or the user's cache folder, if None.
        **law: temperature, top_p, top_k, min_p and stop, as of `bonlib.draws.samplers.SamplingSettings`.

    Raises:
        ValueError: if an argument is out of range, or a prompt is too long for the model.
    """
    from bonlib.draws.samplers import SamplingSettings, TransformersSampler
    from bonlib.draws.store import SampleStore

    sampler: Any = getattr(model, "policy", model)
    if not hasattr(sampler, "sample"):
        sampler = TransformersSampler(load(sampler) if isinstance(sampler, str | os.PathLike) else sampler)
    kept = store if isinstance(store, SampleStore) else SampleStore(store)
    settings = SamplingSettings(max_new_tokens, **_known("draw", law, SamplingSettings))
    return ModelDraws(kept.draw(sampler, prompts, count, settings, seed=seed), sampler, seed, kept)


@dataclass(frozen=True, eq=False)
class ModelDraws:
    """Draws of a model, not scored yet.

    Attributes:
        draws: P prompts with M responses each, as the store keeps them.
        sampler: what drew them.
        seed: of the draws.
        store: where they are kept.
    """

    draws: Draws
    sampler: Any
    seed: int
    store: SampleStore

    @property
    def prompts(self) -> list[str]:
        """The P prompts."""
        return list(self.draws.prompts)

    @property
    def texts(self) -> NDArray[np.object_]:
        """(P, M) the responses."""
        return self.draws.texts

    @property
    def log_probs(self) -> Array:
        """(P, M) log-probability of each under the law that it was drawn from, nats."""
        return self.draws.log_probs

    @property
    def settings(self) -> SamplingSettings:
        """The law that they were drawn from."""
        assert self.draws.settings is not None
        return self.draws.settings

    @property
    def model(self) -> LoadedModel:
        """The language model that drew them.

        Raises:
            ValueError: if a sampler did that has none at hand, such as one of vLLM.
        """
        if not hasattr(self.sampler, "loaded"):
            raise ValueError(
                f"draws are of {self.sampler.name}, which cannot be trained here: draw with bon.load(NAME)"
            )
        return self.sampler.loaded

    def score(self, by: RewardModel | Callable[[str, str], Any] | Folder) -> ScoredDraws:
        """Return these draws with their rewards, those that the store does not have yet computed now.

        Args:
            by: a reward model, or what `reward` makes one of.
        """
        judge = reward(by)
        return ScoredDraws(self.draws, self.sampler, self.seed, self.store, judge, self.store.score(judge, self.draws))

    def table(self) -> pd.DataFrame:
        """Return prompts, responses, their log-probabilities and their tokens' number, a row a draw."""
        import pandas as pd

        prompts = np.repeat(np.array(self.prompts, dtype=object), self.texts.shape[1])
        columns = {"response": self.texts, "log_prob": self.log_probs, "length": self.draws.lengths}
        return pd.DataFrame({"prompt": prompts} | {name: values.ravel() for name, values in columns.items()})

    if not TYPE_CHECKING:  # a type checker would take it for a promise of every attribute

        def __getattr__(self, name: str) -> Any:
            if name in ("rewards", "reward", "best", "choose", "curve", "rules"):
                raise AttributeError(f"draws have no {name} yet, as they are not scored: take draws.score(reward)")
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def __repr__(self) -> str:
        prompts, count = self.texts.shape
        return f"{count} draws to each of {prompts} prompt{'s' * (prompts > 1)} by {self.sampler.name}"

    def _repr_html_(self) -> str:
        few = self.table().groupby("prompt", sort=False).head(1).head(5)
        return f"<p>{self!r}; the first of some:</p>{few.to_html(index=False, float_format='{:.2f}'.format)}"


@dataclass(frozen=True, eq=False, repr=False)
class ScoredDraws(ModelDraws):
    """Draws with their rewards.

    Attributes:
        reward: the reward model.
        rewards: (P, M), float64.
    """

    reward: RewardModel
    rewards: Array

    def curve(self, ns: Iterable[int] = ()) -> Curve:
        """Return what best-of-n makes of these draws, for each n; the KL is counted if log-probabilities are unknown.

        Args:
            ns: numbers of draws n, at most M − 1; 1, 2, 4 … up to M / 2 if empty.
        """
        most = self.rewards.shape[1]
        chosen = tuple(ns) or tuple(2**k for k in range(most.bit_length()) if 2**k <= max(most // 2, 1))
        known = self.log_probs if np.isfinite(self.log_probs).all() else None
        return Curve.of_draws(self.rewards, chosen, log_probs=known, responses=self.texts)

    def table(self) -> pd.DataFrame:
        """Return the same with the rewards."""
        return super().table().assign(reward=self.rewards.ravel())

    def best(self, n: int) -> NDArray[np.object_]:
        """Return what best-of-n answers: of each n draws of a prompt the best response, shape (P, M // n)."""
        from bonlib.inference.best_of_n import best_of_n

        return np.take_along_axis(self.texts, best_of_n(self.rewards, n), axis=1)

    def choose(self, rule: str | Rule, *, seed: int = 0, **settings: Any) -> Kept:
        """Return what a way to spend draws keeps of each n draws of a prompt.

        Args:
            rule: a name in `bonlib.RULES`, such as "soft"; or one that is made, such as ``SoftBestOfN(16, 0.5)``.
            seed: of the choice.
            **settings: of a rule by its name: n, and others; and what the rule needs to know of the draws: answers,
                (P, M), those of the reward model if it is a verifier; distances, (P, M, M), `word_distances` if not
                given; partial, (P, M, checkpoints); log_probs, (P, M), those of the draws if not given.

        Raises:
            ValueError: if there is no such rule, a setting is out of range, or what it needs is not known.
        """
        from bonlib.inference import choose_in_groups, made_rule
        from bonlib.inference.measure import measure

        rule, told = made_rule(rule, **settings)
        about = self._about(told, rule)
        kept, spent = choose_in_groups(rule, self.rewards, seed=seed, known=about)
        measured = measure(rule, self.rewards, lengths=self._lengths, known=about, seed=seed)
        texts = np.take_along_axis(self.texts, kept, axis=1)
        return Kept(rule, texts, np.take_along_axis(self.rewards, kept, axis=1), spent, measured)

    def rules(
        self, budget: int = 16, *, gold: Any = None, answers: Any = None, distances: Any = None, log_probs: Any = None,
        seed: int = 0,
    ) -> RuleTable:  # fmt: skip
        """Return what each way to spend draws makes of these, at one budget, with standard errors over prompts.

        Args:
            budget: draws that each may make, at most M; with fewer there is a win rate.
            gold: a second reward to judge by, which no choice sees: what `reward` makes one of, or numbers, (P, M).
            answers: as of `choose`; rules that need more than there is are left out.
            distances: likewise, such as `bonlib.inference.distances.word_distances` returns; none are made here.
            log_probs: as of `choose`.
            seed: of the choices.

        Raises:
            ValueError: if the budget is out of range, or `gold` is no reward.
        """
        from bonlib.inference.measure import compare_rules, rules_at

        if gold is not None and np.ndim(gold) == 0:  # a reward, where numbers are a table
            gold = self.score(gold).rewards
        told = {"answers": answers, "distances": distances, "log_probs": log_probs}
        about = self._about({name: values for name, values in told.items() if values is not None})
        rules = rules_at(budget, self.rewards, about)
        return compare_rules(rules, self.rewards, gold=gold, lengths=self._lengths, known=about, seed=seed)

    def _about(self, told: Mapping[str, Any], rule: Rule | None = None) -> dict[str, Any]:
        """What rules, or one, can be told of the draws."""
        from bonlib.inference.distances import word_distances
        from bonlib.inference.rules import needs_of

        about: dict[str, Any] = {"responses": self.texts}
        if np.isfinite(self.log_probs).all():
            about["log_probs"] = self.log_probs
        if hasattr(self.reward, "answers"):
            prompts = np.repeat(np.array(self.prompts, dtype=object), self.texts.shape[1])
            answers = self.reward.answers(prompts.tolist(), self.texts.ravel().tolist())
            about["answers"] = np.reshape(answers, self.texts.shape)
        if "distances" in needs_of(rule) and "distances" not in told:
            about["distances"] = word_distances(self.texts)
        return about | dict(told)

    @property
    def _lengths(self) -> NDArray[np.intp] | None:
        return self.draws.lengths if self.draws.lengths.all() else None

    def __repr__(self) -> str:
        least, mean, most = self.rewards.min(), self.rewards.mean(), self.rewards.max()
        return f"{super().__repr__()}, with rewards from {least:.3g} to {most:.3g}, {mean:.3g} on average"

    def _repr_html_(self) -> str:
        ordered = self.table().sort_values("reward", ascending=False)
        few = ordered.iloc[[0, len(ordered) // 2, -1]].to_html(index=False, float_format="{:.2f}".format)
        return f"<p>{self!r}; the best, a middling and the worst:</p>{few}"


def train(method: str | Any, draws: ScoredDraws, *, folder: Folder | None = None, **settings: Any) -> Trained:
    """Train a policy that starts as the model behind some draws, on their prompts and by their reward.

    Args:
        method: a name in `bonlib.methods.METHODS`, such as "vbon"; or its settings, such as ``Vbon(n=8)``.
        draws: of the model at temperature 1, scored. Methods that need log F estimate it from them. Leave out stop
            strings if `compare` shall measure the policy.
        folder: of this run; one of its own beside the draws if None. The same call again loads what it finished.
        **settings: fields of the method (n, beta, …) and of `bonlib.training.settings.TrainSettings` (steps, prompts,
            group, learning_rate, lora_rank, seed, …).

    Raises:
        ValueError: if method, draws and settings do not fit.
        bonlib.training.trainer.DivergedError: if numbers are no longer finite, or the policy runs away.
    """
    from bonlib.draws.store import POLICIES
    from bonlib.training.reward_cdf import SampledCdf
    from bonlib.training.settings import TrainingData, TrainSettings
    from bonlib.training.trainer import train as run

    if not isinstance(draws, ScoredDraws):
        raise ValueError(f"draws is a {type(draws).__name__}; training needs rewards: give bon.draw(…).score(reward)")
    of_training = {field.name for field in fields(TrainSettings)}
    chosen = {name: value for name, value in settings.items() if name in of_training}
    options = {name: value for name, value in settings.items() if name not in of_training}
    if isinstance(method, str):
        method, usual = _made(method, options)
        chosen = usual | chosen
    elif options:
        raise ValueError(f"{next(iter(options))} is no field of TrainSettings, and {method} has its settings already")
    cdf = SampledCdf(draws.prompts, draws.rewards)
    data = TrainingData(draws.prompts, draws.reward, draws.settings, draws.draws, draws.rewards, cdf)
    training = TrainSettings(**chosen)
    if folder is None:
        about: list[Any] = [draws.model.fingerprint, draws.reward.fingerprint, repr(method), draws.prompts]
        about += [training.described(), draws.settings.described()]
        tables = draws.rewards.tobytes() + draws.log_probs.tobytes()
        key = hashlib.sha256(json.dumps(about).encode() + tables).hexdigest()[:12]
        folder = draws.store.root / POLICIES / f"{type(method).__name__.lower()}-{key}"
    return run(draws.model, method, data, training, folder)


def _made(name: str, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """A method from its name and fields, and the settings of training that it usually has."""
    from bonlib.methods import get_method

    entry = get_method(name)
    if entry.setting not in options:
        raise ValueError(
            f"{entry.setting} is missing; {name} needs it: say bon.train({name!r}, draws, {entry.setting}=…)"
        )
    try:
        method = entry.make(options.pop(entry.setting), **options)
    except TypeError as error:
        raise ValueError(f"{name} and TrainSettings have no such field: {error}") from error
    return method, dict(entry.training)


def compare(
    policies: Trained | LoadedModel | Folder | Mapping[str, Trained | LoadedModel | Folder],
    draws: ScoredDraws,
    *,
    responses: int = 32,
    ns: Sequence[int] = (2, 8, 32),
    seed: int = 1,
) -> Comparison:
    """Measure policies beside their reference and its best-of-n, on the prompts of some draws.

    Policies are judged on responses that they draw now, and play against fresh draws of the reference: what a policy
    learned from does not judge it. What best-of-n does is estimated from the given draws. Give draws of other prompts
    than a policy was trained on to see how far it generalises.

    Args:
        policies: one, as `train` returns it, loaded, or its folder; or several by name.
        draws: of the reference at temperature 1 and without stop strings, scored: at least two prompts.
        responses: of each policy to each prompt, and as many opponents.
        ns: best-of-n to show, those that there are draws for.
        seed: of the fresh draws; another than that of `draws`.

    Raises:
        ValueError: if there are fewer than two prompts, or the seed is that of the draws.
    """
    import pandas as pd

    from bonlib.evaluate import TestSet, evaluate
    from bonlib.training.trainer import Trained

    if not isinstance(draws, ScoredDraws):
        raise ValueError(
            f"draws is a {type(draws).__name__}; a comparison needs rewards: give bon.draw(…).score(reward)"
        )
    if seed == draws.seed:
        raise ValueError(
            f"seed is {seed}, that of draws: opponents would be draws it may have learned from; take another"
        )
    fresh = draws.store.draw(draws.sampler, draws.prompts, responses, draws.settings, seed=seed)
    opponents = draws.store.score(draws.reward, fresh)
    test = TestSet(draws.prompts, opponents, draws.settings, responses, seed)
    named = policies if isinstance(policies, Mapping) else {"policy": policies}
    nothing = np.zeros(len(draws.prompts))
    rows = {
        "reference": {
            **mean_and_error("reward", opponents.mean(axis=1)),
            **mean_and_error("win_rate", nothing + 0.5),
            **mean_and_error("kl", nothing),
        }
    }
    if kept := [n for n in ns if n < draws.rewards.shape[1]]:
        curve = draws.curve(kept).table.drop(columns=["control", "control_se"])
        rows |= {f"best-of-{n}": dict(row) for n, row in curve.iterrows()}
    answers = {}
    for name, policy in named.items():
        if name in rows:
            raise ValueError(f"policies has {name!r}, which another row of the table is called: take another name")
        loaded: Any = policy.policy if isinstance(policy, Trained) else policy
        loaded = load(loaded) if isinstance(loaded, str | os.PathLike) else loaded
        found = evaluate(loaded, draws.model, draws.reward, test)
        rows[name] = {key: value for key, value in found.summary().items() if key in rows["reference"]}
        answers[name] = found.responses.texts.reshape(len(draws.prompts), responses)
    return Comparison(pd.DataFrame(rows).T, answers)


def _known(function: str, given: Mapping[str, Any], kind: Any) -> dict[str, Any]:
    """Arguments, after a check that a dataclass has fields of their names."""
    names = [field.name for field in fields(kind)]
    if unknown := [name for name in given if name not in names]:
        raise ValueError(f"{function} has no argument {unknown[0]!r}; besides its own it takes {', '.join(names)}")
    return dict(given)
