"""Writing by a method that chooses on the way, on the decoding loop with its cache: what is given up costs no more."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bonlib.checks import shown, whole
from bonlib.exact import Array
from bonlib.inference.steering import Steering, checked_checkpoints

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from bonlib.draws.rewards import RewardModel
    from bonlib.draws.samplers import SamplingSettings, TransformersSampler
    from bonlib.models.decoding import Decoded
    from bonlib.models.responses import Responses
    from bonlib.models.ways import Ways


class Steered(NamedTuple):
    """One response to each of P prompts, and what it took.

    Attributes:
        responses: P of them, with their log-probabilities under the reference, which is not what they come from.
        rewards: (P,) of them.
        tokens: (P,) that were drawn, those of responses that were given up included.
        read_again: (P,) tokens that the model read once more at checkpoints; 0 where its cache can branch.
        calls: (P,) of the reward model: one for each response, finished or not, that it had not judged before.
        seconds: for all of them.
    """

    responses: Responses
    rewards: Array
    tokens: NDArray[np.intp]
    read_again: NDArray[np.intp]
    calls: NDArray[np.intp]
    seconds: float


class Judged(NamedTuple):
    """Responses at a checkpoint or at the end, B to each of some prompts.

    Attributes:
        prompts: which prompts they are, P' places.
        responses: so far, P' · B of them.
        begun: the tokens that each may have had at the checkpoint before.
        scores: (P', B).
        kept: places among the B of those that go on, (P', B'); in the end of the one that is kept, (P', 1).
    """

    prompts: Sequence[int]
    responses: Decoded
    begun: int
    scores: Array
    kept: NDArray[np.intp]


def steer(
    sampler: TransformersSampler,
    reward_model: RewardModel,
    prompts: Sequence[str],
    rule: Steering,
    settings: SamplingSettings,
    *,
    seed: int,
    watch: Callable[[Judged], None] = lambda judged: None,
) -> Steered:
    """Write a response to each prompt by a method that chooses on the way.

    Its n responses begin as those that the sampler draws for n listings of the prompt with the same seed. Each that
    goes on does so as it would have, but for rounding; further copies of it go on in ways of their own.

    Args:
        sampler: draws tokens; as many prompts go together as fill its batch with n responses each, at least one.
        reward_model: judges prompt and response, also unfinished ones.
        prompts: P of them; list one several times for several responses.
        rule: the method, with checkpoints below the length at which a response is cut.
        settings: the law to draw from. A stop string ends a text when it is judged; its tokens go on, and count.
        seed: of all that is random.
        watch: is told of each choice.

    Raises:
        ValueError: if an argument is out of range, a reward is not finite, or a choice is none.
    """
    import torch

    from bonlib.draws.samplers import SamplingSettings, TransformersSampler
    from bonlib.models.decoding import alike
    from bonlib.models.responses import concatenate
    from bonlib.models.ways import proven

    begun = time.perf_counter()
    if not isinstance(sampler, TransformersSampler):
        raise ValueError(f"sampler is {shown(sampler)}; only a TransformersSampler writes token by token: give one")
    if isinstance(rule, type) or not hasattr(rule, "go_on"):
        raise ValueError(
            f"rule is {shown(rule)}; it must choose while responses are written, such as TreeBestOfN(16, 4, 4, (8,)): "
            "others choose among draws, by draws.choose"
        )
    if not isinstance(settings, SamplingSettings):
        raise ValueError(f"settings is {shown(settings)}; it must be SamplingSettings, such as SamplingSettings(24)")
    checkpoints, loaded, steps = checked_checkpoints(rule.checkpoints), sampler.loaded, settings.max_new_tokens
    if checkpoints and checkpoints[-1] >= steps:
        raise ValueError(
            f"checkpoints is {checkpoints}; those at or behind max_new_tokens, {steps}, are the end: leave them out"
        )
    encoded = loaded.encode(prompts, steps)
    uniforms = sampler.uniforms(whole("seed", seed), len(encoded) * rule.n, steps).view(len(encoded), rule.n, steps)
    choices, copies = np.random.SeedSequence(seed).spawn(2)  # apart from what the responses begin with
    lots = np.random.default_rng(choices), torch.Generator().manual_seed(int(copies.generate_state(1)[0]))
    sizes, size = list(map(len, encoded)), max(1, sampler.batch_size // rule.n)
    ways = proven(loaded.model, "branching", begin=min(sizes), length=max(sizes) + steps)
    batches = [
        places[start : start + size] for places in alike(sizes, "left", ways) for start in range(0, len(places), size)
    ]
    parts = []
    for places in batches:
        judge = _Judge(loaded.tokenizer, reward_model, prompts, encoded, places, settings.stop)
        parts.append(_steer(sampler, judge, rule, settings, uniforms[places], lots, ways, watch))
    back = np.argsort(np.concatenate(batches))

    def joined(name: str) -> Any:
        return np.concatenate([getattr(part, name) for part in parts])[back]

    return Steered(
        concatenate([part.responses for part in parts])[back],
        joined("rewards"),
        joined("tokens"),
        joined("read_again"),
        joined("calls"),
        time.perf_counter() - begun,
    )


def _steer(
    sampler: TransformersSampler,
    judge: _Judge,
    rule: Steering,
    settings: SamplingSettings,
    uniforms: Tensor,
    lots: tuple[np.random.Generator, Generator],
    ways: Ways,
    watch: Callable[[Judged], None],
) -> Steered:
    """Do it for prompts that go together, seconds left aside."""
    from bonlib.models.branching import decode_branching

    loaded, checkpoints = sampler.loaded, list(rule.checkpoints)
    before, begins = np.zeros(uniforms.shape[:2]), iter([0, *checkpoints])

    def go_on(decoded: Decoded) -> NDArray[np.intp]:
        nonlocal before
        _, scores = judge(decoded)
        kept = _checked_places("go_on", rule.go_on(scores, before, lots[0]), scores)
        watch(Judged(judge.places, decoded, next(begins), scores, kept))
        before = np.take_along_axis(scores, kept, axis=1)
        return kept

    branched = decode_branching(
        loaded.model,
        judge.encoded,
        settings.law,
        end_ids=loaded.end_token_ids,
        pad_id=loaded.pad_token_id,
        uniforms=uniforms.to(loaded.device),
        generator=lots[1],
        checkpoints=checkpoints,
        decide=go_on,
        ways=ways,
    )
    responses, rewards = judge(branched.decoded)
    picked = _checked_places("pick", np.asarray(rule.pick(rewards, before, lots[0]))[..., None], rewards)
    watch(Judged(judge.places, branched.decoded, next(begins), rewards, picked))
    rows = picked[:, 0] + rewards.shape[1] * np.arange(len(picked))
    return Steered(responses[rows], rewards.ravel()[rows], branched.drawn, branched.read_again, judge.calls, 0.0)


class _Judge:
    """Scores responses to some of the prompts, and counts; none is asked for twice."""

    def __init__(
        self,
        tokenizer: Any,
        reward_model: RewardModel,
        prompts: Sequence[str],
        encoded: Sequence[list[int]],
        places: Sequence[int],
        stop: Sequence[str],
    ) -> None:
        self.tokenizer, self.reward_model, self.places, self.stop = tokenizer, reward_model, places, stop
        self.prompts, self.encoded = [prompts[place] for place in places], [encoded[place] for place in places]
        self.known: dict[tuple[int, Any], float] = {}
        self.calls = np.zeros(len(places), dtype=np.intp)

    def __call__(self, decoded: Decoded) -> tuple[Responses, Array]:
        """Return B responses to each prompt, and their scores, (P, B)."""
        from bonlib.draws.rewards import checked_score
        from bonlib.draws.samplers import as_responses

        rows = np.repeat(np.arange(len(self.prompts)), len(decoded.lengths) // len(self.prompts)).tolist()
        responses = as_responses(self.tokenizer, [self.encoded[row] for row in rows], decoded, self.stop)
        by_tokens = hasattr(self.reward_model, "score_responses")
        told_by = map(bytes, responses.token_ids) if by_tokens else responses.texts
        keys = list(zip(rows, told_by, strict=True))
        new = {key: place for place, key in enumerate(keys) if key not in self.known}
        if new:
            places = list(new.values())
            rewards = checked_score(self.reward_model, [self.prompts[row] for row, _ in new], responses[places])
            self.known |= dict(zip(new, rewards.tolist(), strict=True))
            np.add.at(self.calls, [row for row, _ in new], 1)
        return responses, np.array([self.known[key] for key in keys]).reshape(len(self.prompts), -1)


def _checked_places(name: str, places: object, scores: Array) -> NDArray[np.intp]:
    """Return places among B scores of each of P prompts, (P, B'), after a check that they are such, ascending."""
    table = np.asarray(places)
    whole_numbers = table.ndim == 2 and table.shape[1] > 0 and np.issubdtype(table.dtype, np.integer)
    if not (
        whole_numbers
        and len(table) == len(scores)
        and table.min() >= 0
        and table.max() < scores.shape[1]
        and (np.diff(table, axis=1) >= 0).all()
    ):
        wanted = f"({len(scores)}, …) of places from 0 to {scores.shape[1] - 1}, ascending"
        raise ValueError(f"{name} returned {shown(table)}; it must be a table {wanted}")
    return table.astype(np.intp)
