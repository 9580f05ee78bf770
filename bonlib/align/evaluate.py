"""How good a policy is, on prompts it did not learn from: reward, win rate, KL to the reference, entropy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from bonlib.lm.kernels import cpu_kernels
from bonlib.lm.models import LoadedModel
from bonlib.lm.reading import response_logits, token_batch
from bonlib.lm.rewards import RewardModel, checked_score
from bonlib.lm.samplers import Responses, SamplingSettings, TransformersSampler, encode_prompts
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
    """

    __test__ = False  # not a test of pytest's

    prompts: Sequence[str]
    opponents: Array
    sampling: SamplingSettings
    responses: int = 4
    seed: int = 0

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
        return TestSet(self.prompts[:prompts], self.opponents[:prompts], self.sampling, responses, self.seed)


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
