"""A learned reward CDF: a classifier that reads prompt and response and says how many others are no better."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.special import log_expit
from scipy.stats import rankdata
from torch.utils.data import Dataset

from bonlib.cdf import snapped
from bonlib.draws.rewards import ClassifierReward
from bonlib.exact import Array
from bonlib.models.loaded import LoadedModel
from bonlib.models.places import locate, locate_base
from bonlib.models.texts import token_ids
from bonlib.training.fit import Recipe, fit


@dataclass(frozen=True)
class QuantileRecipe(Recipe):
    """How the model is trained. Texts are read whole, so `context` plays no part."""

    steps: int = 1000
    batch_size: int = 64
    learning_rate: float = 3e-4
    warmup_steps: int = 50
    weight_decay: float = 0.05


class QuantileModel:
    """The reward CDF of every prompt at once, seen or not: F≤ as a function of prompt and response.

    Where `bonlib.cdf` counts samples of one prompt, this model carries over what it learned from other prompts, and
    needs no sample of a new one. It sees the response, not its reward. It is a `bonlib.training.reward_cdf.LogCdf`.

    Args:
        loaded: a sequence classifier with one output, such as `fit_quantile_model` trains.
        batch_size: texts it reads at once.

    Source: Sessa et al., appendix B.1.
    """

    def __init__(self, loaded: LoadedModel, *, batch_size: int = 256) -> None:
        self._logits = ClassifierReward(loaded, batch_size=batch_size)
        self.loaded = loaded

    @property
    def fingerprint(self) -> str:
        """A hash of weights and tokenizer."""
        return self._logits.fingerprint

    def log_weak(self, prompts: Sequence[str], responses: Sequence[str], rewards: ArrayLike | None = None) -> Array:
        """Return the estimate of log F≤ of each response to its prompt, shape (B,), nats, always finite.

        Raises:
            ValueError: if the lists differ in length, or a text is longer than the model's context.
        """
        return np.asarray(log_expit(self._logits.score(prompts, responses)))

    log_strict = log_weak  # it knows no ties


def fit_quantile_model(
    language_model: str,
    prompts: Sequence[str],
    responses: ArrayLike,
    rewards: ArrayLike,
    *,
    scratch: Path,
    recipe: QuantileRecipe | None = None,
) -> QuantileModel:
    """Train a quantile model on reference samples, from the weights of the reference.

    The target of a response y is 1[r(y') <= r(y)], averaged over the other samples y' of its prompt: the same
    expectation as with a single y', with less noise.

    Args:
        language_model: bundled name, folder or hub name of the causal model to start from; of an adapter, the model
            below it.
        prompts: P of them.
        responses: texts of the reference samples, shape (P, M), M at least 2.
        rewards: of the samples, finite, same shape.
        scratch: where checkpoints go while it trains; after an interruption the same call resumes from the newest.
        recipe: settings of the training.

    Raises:
        ValueError: if shapes do not fit or a reward is not finite.

    Source: Sessa et al., Eq. 25.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding, set_seed

    recipe = recipe or QuantileRecipe()
    texts, targets = np.asarray(responses, dtype=object), leave_one_out_cdf(rewards)
    if isinstance(prompts, str) or texts.shape != targets.shape or len(texts) != len(prompts):
        raise ValueError(
            f"responses has shape {texts.shape} and rewards {targets.shape}, for {len(prompts)} prompts; both must be "
            "(prompts, samples), and prompts a list"
        )
    set_seed(recipe.seed)
    where = locate(language_model)
    if (adapter := Path(where, "adapter_config.json")).is_file():  # one of a causal model fits no classifier
        where = locate_base(adapter.parent, json.loads(adapter.read_text())["base_model_name_or_path"])
    tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=False)
    if tokenizer.pad_token is None and tokenizer.eos_token is None:
        raise ValueError(
            f"the tokenizer of {language_model} has neither a padding token nor an end token, and texts of unlike "
            "length are read together: set its pad_token to any of its tokens and save it again"
        )
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = AutoModelForSequenceClassification.from_pretrained(
        where,
        num_labels=1,
        problem_type="multi_label_classification",  # binary cross-entropy, with targets between 0 and 1
        pad_token_id=tokenizer.pad_token_id,
        dtype=torch.float32,
        trust_remote_code=False,
    )
    torch.nn.init.zeros_(model.score.weight)  # it starts from "half of the others are better"
    whole = [prompt + str(text) for prompt, row in zip(prompts, texts, strict=True) for text in row]
    fitted = LoadedModel(model, tokenizer, f"quantiles of {language_model}")
    encoded = token_ids(tokenizer, whole)
    longest = max(range(len(whole)), key=lambda place: len(encoded[place]))
    if len(encoded[longest]) > fitted.context:
        raise ValueError(
            f"prompt and response {whole[longest][:40]!r}… have {len(encoded[longest])} tokens; {language_model} reads "
            f"{fitted.context}: shorten them, or start from a model with a longer context"
        )
    # Other data have other checkpoints.
    data = hashlib.sha256(json.dumps([encoded, targets.tolist()]).encode()).hexdigest()[:12]
    pairs = _Ranked(encoded, targets.ravel(), recipe)
    fit(model, pairs, recipe, scratch / data, DataCollatorWithPadding(tokenizer))
    model.eval()
    return QuantileModel(fitted)


def leave_one_out_cdf(rewards: ArrayLike) -> Array:
    """Return, for each sample, the share of its prompt's other samples whose reward is no better, but for rounding.

    Args:
        rewards: finite, shape (P, M), M at least 2.
    """
    table = np.asarray(rewards, dtype=np.float64)
    if table.ndim != 2 or table.shape[1] < 2 or not np.isfinite(table).all():
        raise ValueError(
            f"rewards has shape {table.shape} or one that is not finite; it must be finite, (prompts, samples), with "
            "at least two samples to compare"
        )
    return (rankdata(snapped(table), method="max", axis=1) - 1) / (table.shape[1] - 1)


class _Ranked(Dataset[dict[str, Any]]):
    """Responses with their targets; item i depends on (seed, i) only, so an interrupted training resumes the same."""

    def __init__(self, encoded: Sequence[list[int]], targets: Array, recipe: QuantileRecipe) -> None:
        self.encoded, self.targets, self.recipe = encoded, targets, recipe

    def __len__(self) -> int:
        return self.recipe.steps * self.recipe.batch_size

    def __getitem__(self, index: int) -> dict[str, Any]:
        place = int(np.random.default_rng([self.recipe.seed, index]).integers(len(self.encoded)))
        return {"input_ids": self.encoded[place], "labels": [float(self.targets[place])]}
