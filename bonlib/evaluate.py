"""How good a policy is, on prompts it did not learn from: reward, win rate, KL to the reference, entropy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from bonlib.checks import settle, whole
from bonlib.draws.rewards import RewardModel, checked_score
from bonlib.draws.samplers import SamplingSettings, TransformersSampler
from bonlib.draws.store import Draws, check_draws
from bonlib.exact import Array
from bonlib.inference.best_of_n import best_of_n
from bonlib.methods.vbon import Vbon
from bonlib.metrics import kl_k1, kl_k3, mean_over_prompts, next_token_entropy, next_token_kl, win_probability
from bonlib.models.loaded import LoadedModel
from bonlib.models.reading import TokenBatch, response_batches, response_log_probs, response_logits, token_log_probs
from bonlib.models.responses import Responses, concatenate
from bonlib.training.on_policy import Judged
from bonlib.training.reward_cdf import SampledCdf

# With k of M draws at most as good it makes log F̂ = H_k − H_M, whose mean is log F but for the sum of (1 − F)^j / j
# over j > M. The default, meant for responses of the reference, would put what a good policy says 1 / (M + 1) too low.
UNBIASED = (1.0, 0.0)


@dataclass(frozen=True, eq=False)
class TestSet:
    """What policies are measured on.

    Attributes:
        prompts: P that no policy was trained on.
        opponents: rewards of reference responses to each, shape (P, b), which a win rate is counted against.
        sampling: length of the responses, at temperature 1 from all tokens.
        responses: drawn for each prompt.
        seed: of these draws, the same for every policy.
        draws: of the reference to the prompts, for `divergences`.
        rewards: of the first m of these draws, others than the opponents, shape (P, m).
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
        settle(self, responses=whole("responses", self.responses, 1), seed=whole("seed", self.seed))
        if not self.sampling.plain or self.sampling.stop:
            raise ValueError(
                f"sampling is {self.sampling}; KL and entropy are those of the policy itself: temperature 1, all "
                "tokens and no stop"
            )

    def first(self, prompts: int, responses: int) -> TestSet:
        """Return a smaller test set: the first prompts of this one."""
        few, drawn = slice(prompts), self.draws
        draws = drawn and replace(drawn, prompts=drawn.prompts[few], responses=drawn.responses[few])
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
        log_probs: log πθ of each response, read as log π is: what rounding makes of both is the same, and a policy that
            is the reference has a KL of 0 even in bfloat16.
        ref_log_probs: log π of each response.
    """

    responses: Responses
    rewards: Array
    wins: Array
    kl: Array
    kl_k1: Array
    kl_k3: Array
    entropy: Array
    log_probs: Array
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

    Raises:
        ValueError: if the test set has draws of another model than the reference.
    """
    for name, model in (("policy", policy), ("reference", reference)):
        if not isinstance(model, LoadedModel):
            raise ValueError(f"{name} is {model!r}; load it with bonlib.models.loaded.load_language_model")
    if test.draws is not None:
        check_draws(test.draws, reference)
    prompts = [prompt for prompt in test.prompts for _ in range(test.responses)]
    drawn = TransformersSampler(policy, batch_size=batch_size).sample(prompts, test.sampling, seed=test.seed)
    rewards = checked_score(reward_model, prompts, drawn).reshape(len(test.prompts), test.responses)
    read = _along_responses(policy, reference, prompts, drawn, batch_size)
    kl, entropy, log_probs, ref_log_probs = (row.reshape(rewards.shape) for row in read)
    return Evaluation(
        drawn,
        rewards,
        win_probability(rewards, test.opponents),
        kl,
        kl_k1(log_probs, ref_log_probs),
        kl_k3(log_probs, ref_log_probs),
        entropy,
        log_probs,
        ref_log_probs,
    )


def log_quantiles(evaluation: Evaluation, test: TestSet) -> Array:
    """Return log F≤ of the responses of a policy, (P, k), F counted on all draws of the reference there are."""
    cdf = SampledCdf(test.prompts, _others(test, 0), prior=UNBIASED)
    prompts = [prompt for prompt in test.prompts for _ in range(evaluation.rewards.shape[1])]
    found = cdf.log_weak(prompts, evaluation.responses.texts.tolist(), evaluation.rewards.ravel())
    return found.reshape(evaluation.rewards.shape)


def divergences(policy: LoadedModel, evaluation: Evaluation, test: TestSet, n: int) -> tuple[Array, Array]:
    """Estimate how far a policy is from best-of-n of its reference, KL(πθ ‖ π_n) and KL(π_n ‖ πθ), in nats.

    Args:
        policy: a causal language model.
        evaluation: of it, on the same prompts.
        test: the prompts, with draws. Some are chosen from, F is counted on the others.
        n: number of draws, at most half as many as the test set has.

    Returns:
        From responses of the policy, (P, k), and from best-of-n responses, (P, as many as there are draws for up to k).

    Raises:
        ValueError: if the test set has too few draws.

    Source: Sessa et al. (BOND), Figure 2, which counts F on 32 draws.
    """
    have = 0 if test.rewards is None else test.rewards.shape[1]
    if test.draws is None or test.rewards is None or have < 2 * n:
        raise ValueError(f"test has {have} draws a prompt; best-of-{n} and its F need {2 * n}: give it more")
    k, method = evaluation.rewards.shape[1], Vbon(n)
    groups = min(k, have // (2 * n))
    counted = _others(test, groups * n)
    tables = (evaluation.log_probs, evaluation.ref_log_probs, evaluation.rewards)
    own = _judged(test.prompts, evaluation.responses, *tables)
    reverse = -method.returns(own, SampledCdf(test.prompts, counted, prior=UNBIASED))

    best = best_of_n(test.rewards[:, : groups * n], n)
    chosen = concatenate([row[draws] for row, draws in zip(test.draws.responses, best, strict=True)])
    prompts = [prompt for prompt in test.prompts for _ in range(groups)]
    log_probs, rewards = response_log_probs(policy, prompts, chosen), np.take_along_axis(test.rewards, best, axis=1)
    target = _judged(test.prompts, chosen, log_probs, chosen.log_probs, rewards)
    # Of a response that best-of-n chose it is known beforehand that its F is like the best of n uniform numbers.
    cdf = SampledCdf(test.prompts, counted, prior=(n, 1.0))
    forward = method.returns(target, cdf)
    return reverse.numpy().reshape(-1, k), forward.numpy().reshape(-1, groups)


def _others(test: TestSet, used: int) -> Array:
    """Rewards of the reference on the test prompts, but those of the first `used` draws."""
    return test.opponents if test.rewards is None else np.hstack([test.opponents, test.rewards[:, used:]])


def _judged(prompts: Sequence[str], drawn: Responses, log_probs: Array, ref_log_probs: Array, rewards: Array) -> Judged:
    names = [prompt for prompt in prompts for _ in range(rewards.shape[1])]
    mine, reference, judged = (torch.as_tensor(table.ravel()) for table in (log_probs, ref_log_probs, rewards))
    return Judged(names, drawn.texts.tolist(), mine, reference, judged)


@torch.no_grad()
def _along_responses(
    policy: LoadedModel, reference: LoadedModel, prompts: Sequence[str], drawn: Responses, batch_size: int
) -> Array:
    """KL to the reference and entropy summed over the positions of each response, log πθ and log π of it, (4, B)."""
    found = np.empty((4, len(prompts)))
    for places, batch in response_batches(policy, prompts, drawn, batch_size):
        found[:, places] = _along_batch(policy, reference, batch)
    return found


def _along_batch(policy: LoadedModel, reference: LoadedModel, batch: TokenBatch) -> Array:
    """The same of one batch, (4, B); logits end with the call, before `response_batches` gives memory back."""
    said = batch.responses[batch.response_mask.bool()]
    own, ref = (response_logits(loaded.model, batch).logits for loaded in (policy, reference))
    figures = []
    for start in range(0, len(said), 256):  # not all at once: each takes several times the room of its logits
        at = slice(start, start + 256)
        log_probs = [token_log_probs(logits[at], said[at]) for logits in (own, ref)]
        figures.append(torch.stack([next_token_kl(own[at], ref[at]), next_token_entropy(own[at]), *log_probs]))
    tokens = torch.cat(figures, dim=1).cpu().double().numpy()  # Apple's GPUs know no float64
    return np.add.reduceat(tokens, np.cumsum([0, *batch.lengths[:-1]]), axis=1)
