"""How good a policy is, on prompts it did not learn from: reward, win rate, KL to the reference, entropy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from bonlib.align.methods import Judged, SampledCdf, Vbon
from bonlib.lm.kernels import cpu_kernels
from bonlib.lm.models import LoadedModel
from bonlib.lm.reading import response_logits, token_batch
from bonlib.lm.rewards import RewardModel, checked_score
from bonlib.lm.samplers import Responses, SamplingSettings, TransformersSampler, best_of_n, concatenate, encode_prompts
from bonlib.lm.store import Draws
from bonlib.metrics import kl_k1, kl_k3, mean_over_prompts, next_token_entropy, next_token_kl, win_probability

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class TestSet:
    """What policies are measured on.

    Attributes:
        prompts: P that no policy was trained on.
        opponents: rewards of reference responses to each, shape (P, b), which a win rate is counted against.
        sampling: length of the responses, at temperature 1 from all tokens.
        responses: drawn for each prompt.
        seed: of these draws, the same for every policy.
        draws: of the reference to the prompts, others than the opponents, at least as many a prompt; for `divergences`.
        rewards: of these draws, shape (P, at least m).
    """

    __test__ = False  # not a test of pytest's

    prompts: Sequence[str]
    opponents: Array
    sampling: SamplingSettings
    responses: int = 4
    seed: int = 0
    draws: Draws | None = None
    rewards: Array | None = None

    def __post_init__(self) -> None:
        if len(self.prompts) < 2 or len(self.opponents) != len(self.prompts):
            raise ValueError(
                f"there are {len(self.prompts)} prompts and {len(self.opponents)} rows of opponents; a measurement "
                "needs at least two prompts, and as many rows"
            )
        if not self.sampling.plain:
            raise ValueError(
                f"sampling is {self.sampling}; KL and entropy are those of the policy itself: temperature 1 and top_p 1"
            )

    def first(self, prompts: int, responses: int) -> TestSet:
        """Return a smaller test set: the first prompts of this one."""
        few = slice(prompts)
        draws = self.draws and Draws(self.draws.prompts[few], self.draws.responses[few], self.draws.chunks[few])
        rewards = None if self.rewards is None else self.rewards[few]
        return TestSet(self.prompts[few], self.opponents[few], self.sampling, responses, self.seed, draws, rewards)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Figures of one policy, a row a prompt and a column a response, (P, k) each; and the responses themselves.

    Attributes:
        responses: P · k of them, those of one prompt together.
        rewards: of each.
        wins: probability of beating a response of the reference, ties one half.
        kl: the Rao–Blackwellised estimate of KL(πθ ‖ π), nats: the sum over positions of the exact KL between
            the next-token distributions.
        kl_k1: the estimate log πθ − log π.
        kl_k3: the estimate e^−k1 − 1 + k1.
        entropy: the sum over positions of the next-token entropy, nats.
        ref_log_probs: log π of each response.
    """

    responses: Responses
    rewards: Array
    wins: Array
    kl: Array
    kl_k1: Array
    kl_k3: Array
    entropy: Array
    ref_log_probs: Array

    def summary(self) -> dict[str, float]:
        """Return the mean over prompts of every figure, and its standard error as NAME_se."""
        row: dict[str, float] = {}
        for name in ("rewards", "wins", "kl", "kl_k1", "kl_k3", "entropy"):
            mean, error = mean_over_prompts(getattr(self, name).mean(axis=1))
            short = {"rewards": "reward", "wins": "win_rate"}.get(name, name)
            row |= {short: float(mean), f"{short}_se": float(error)}
        return row


def evaluate(
    policy: LoadedModel, reference: LoadedModel, reward_model: RewardModel, test: TestSet, *, batch_size: int = 128
) -> Evaluation:
    """Draw responses of a policy to the test prompts and measure them.

    Args:
        policy: a causal language model.
        reference: the one it started from, with the same tokenizer.
        reward_model: judges the responses.
        test: the prompts.
        batch_size: responses drawn and read at once.
    """
    prompts = [prompt for prompt in test.prompts for _ in range(test.responses)]
    sampler = TransformersSampler(policy, batch_size=batch_size)
    drawn = sampler.sample(prompts, test.sampling, seed=test.seed)
    rewards = checked_score(reward_model, prompts, drawn.texts.tolist())
    kl, entropy, ref_log_probs = _along_responses(policy, reference, prompts, drawn, batch_size)
    shape = (len(test.prompts), test.responses)
    table = rewards.reshape(shape)
    return Evaluation(
        drawn,
        table,
        win_probability(table, test.opponents),
        kl.reshape(shape),
        kl_k1(drawn.log_probs, ref_log_probs).reshape(shape),
        kl_k3(drawn.log_probs, ref_log_probs).reshape(shape),
        entropy.reshape(shape),
        ref_log_probs.reshape(shape),
    )


class Divergences(NamedTuple):
    """How far a policy is from best-of-n by a reward CDF estimated from the opponents; a number a prompt, (P,).

    Attributes:
        reverse_kl: estimate of KL(πθ ‖ π_n), from responses of the policy, nats.
        forward_kl: estimate of KL(π_n ‖ πθ), from a best-of-n response of the reference, nats.
        log_quantile: mean of log F≤ of the policy's responses, nats.
    """

    reverse_kl: Array
    forward_kl: Array
    log_quantile: Array

    def summary(self) -> dict[str, float]:
        """Return the mean over prompts of every figure, and its standard error as NAME_se."""
        row: dict[str, float] = {}
        for name, column in self._asdict().items():
            mean, error = mean_over_prompts(column)
            row |= {name: float(mean), f"{name}_se": float(error)}
        return row


def divergences(policy: LoadedModel, evaluation: Evaluation, test: TestSet, n: int) -> Divergences:
    """Estimate how far a policy is from best-of-n of its reference, in both directions.

    Args:
        policy: a causal language model.
        evaluation: of it, on the same prompts.
        test: the prompts, with draws.
        n: number of draws, at most as many as the test set has.

    Raises:
        ValueError: if the test set has too few draws.

    Source: Sessa et al. (BOND), Figure 2, with 32 samples for the CDF; here as many as there are opponents.
    """
    have = 0 if test.rewards is None else test.rewards.shape[1]
    if test.draws is None or test.rewards is None or have < n:
        raise ValueError(f"test has {have} draws a prompt; a best-of-{n} response needs {n}: give it more")
    method, cdf = Vbon(n), SampledCdf(test.prompts, test.opponents)
    prompts = [prompt for prompt in test.prompts for _ in range(evaluation.rewards.shape[1])]
    texts = evaluation.responses.texts.tolist()
    own = _judged(prompts, texts, evaluation.responses.log_probs, evaluation.ref_log_probs, evaluation.rewards)
    best = best_of_n(test.rewards, n)[:, 0]
    chosen = concatenate([row[[draw]] for row, draw in zip(test.draws.responses, best, strict=True)])
    _, _, log_probs = _along_responses(policy, policy, test.prompts, chosen, 128)
    rewards = test.rewards[np.arange(len(best)), best]
    target = _judged(test.prompts, chosen.texts.tolist(), log_probs, chosen.log_probs, rewards)
    shape = evaluation.rewards.shape
    return Divergences(
        -method.returns(own, cdf).numpy().reshape(shape).mean(axis=1),
        method.returns(target, cdf).numpy(),
        cdf.log_weak(prompts, texts, evaluation.rewards.ravel()).reshape(shape).mean(axis=1),
    )


def _judged(prompts: Sequence[str], texts: Sequence[str], log_probs: Array, ref: Array, rewards: Array) -> Judged:
    return Judged(prompts, texts, *(torch.as_tensor(table.ravel()) for table in (log_probs, ref, rewards)))


@torch.no_grad()
def _along_responses(
    policy: LoadedModel, reference: LoadedModel, prompts: Sequence[str], drawn: Responses, batch_size: int
) -> tuple[Array, Array, Array]:
    """KL to the reference and entropy summed over the positions of each response, and log π of it, (B,) each."""
    encoded = encode_prompts(policy.tokenizer, policy.context, prompts, drawn.token_ids.shape[1])
    tokens = [row[row >= 0].tolist() for row in drawn.token_ids]
    found = np.empty((3, len(prompts)))
    order = np.argsort([len(prompt) + len(response) for prompt, response in zip(encoded, tokens, strict=True)])
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        batch = token_batch(
            [encoded[i] for i in places],
            [tokens[i] for i in places],
            pad_id=policy.tokenizer.pad_token_id,
            device=policy.device,
        )
        with cpu_kernels(policy.model):
            logits = response_logits(policy.model, batch).logits
        with cpu_kernels(reference.model):
            ref_logits = response_logits(reference.model, batch).logits
        ref_log_probs = -torch.nn.functional.cross_entropy(ref_logits.mT, batch.responses, reduction="none")
        figures = torch.stack([next_token_kl(logits, ref_logits), next_token_entropy(logits), ref_log_probs])
        found[:, places] = (figures * batch.response_mask).cpu().double().sum(2).numpy()  # Apple's GPUs know no float64
    return found[0], found[1], found[2]
