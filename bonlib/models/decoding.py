"""The decoding loop: one token a step for a whole batch, with the log-probabilities gathered on the way.

Three things make it faster than `generate`: a prompt is read once for all its draws, a token costs one random number,
and finished responses leave the batch; on a CPU also weights that are laid out once a call for its matrix products.
Each is used for a model only where `bonlib.models.ways` has proved it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bonlib.models.caches import plain_layers, select_rows, share_cache
from bonlib.models.kernels import cpu_kernels
from bonlib.models.next_token import Law, draw
from bonlib.models.steps import ENOUGH, WORTH_SHARING, WrittenStep, can_be_written
from bonlib.models.ways import TASKS, Probe, Task, Ways, proven, takes

# Given the next-token logits of some rows (B, V), which rows these are, and the step: a token a row, and which go on.
Choose = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]
# Given which rows go on after a step: places among these, ascending, one twice for two copies, and what the rows that
# go on with them are called from now on; None if all stays as it is.
Branch = Callable[[Tensor, int], tuple[Tensor, Tensor] | None]


class Decoded(NamedTuple):
    """What the loop returns for a batch of B prompts and at most T new tokens."""

    tokens: Tensor  # (B, T) token ids; the padding token after the end token
    lengths: Tensor  # (B,) tokens of each response, the end token included
    log_probs: Tensor  # (B, T) of each token under the model as it is, 0 after the end
    sampling_log_probs: Tensor  # (B, T) the same under the distribution that was sampled from


def decode(
    model: Any,
    prompts: Sequence[Sequence[int]],
    law: Law,
    *,
    end_ids: Sequence[int],
    pad_id: int,
    uniforms: Tensor,
) -> Decoded:
    """Sample one response for each prompt of a batch; equal prompts are read once and share what was read.

    Args:
        model: a `transformers` causal language model.
        prompts: B lists of token ids, none empty.
        law: what the next token is drawn from.
        end_ids: tokens that end a response.
        pad_id: token to fill up with.
        uniforms: (B, T) random numbers in [0, 1), one for each token that may be drawn; a response is cut at T.
    """
    drawing = Drawing(law, uniforms.to(next(model.parameters()).device), end_ids=end_ids, pad_id=pad_id)
    steps, sizes = uniforms.shape[1], list(map(len, prompts))
    ways = proven(model, "drawing", begin=min(sizes), length=max(sizes) + steps)
    follow(model, prompts, drawing.choose, steps=steps, pad_id=pad_id, ways=ways)
    return drawing.decoded


class Drawing:
    """What is drawn for B prompts, token by token; arguments as of `decode`, `uniforms` on the model's device."""

    def __init__(self, law: Law, uniforms: Tensor, *, end_ids: Sequence[int], pad_id: int) -> None:
        self.law, self.uniforms, (rows, steps) = law, uniforms, uniforms.shape
        device = uniforms.device
        self.ends = torch.tensor(list(end_ids), device=device)
        # Apple's GPUs have no float64.
        precision = torch.float32 if device.type == "mps" else torch.float64
        log_probs = torch.zeros(rows, steps, dtype=precision, device=device)
        self.decoded = Decoded(
            torch.full((rows, steps), pad_id, device=device),
            torch.zeros(rows, dtype=torch.long, device=device),
            log_probs,
            torch.zeros_like(log_probs),
        )

    def choose(self, logits: Tensor, rows: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Draw a token for each of some rows, and note it: see `Choose`."""
        drawn, *log_probs = draw(logits, self.uniforms[rows, step], self.law)
        tokens, lengths, *tables = self.decoded
        tokens[rows, step] = drawn
        lengths[rows] += 1
        for table, log_prob in zip(tables, log_probs, strict=True):
            table[rows, step] = log_prob.to(table.dtype)
        return drawn, ~torch.isin(drawn, self.ends)


def follow(
    model: Any,
    prompts: Sequence[Sequence[int]],
    choose: Choose,
    *,
    steps: int,
    pad_id: int,
    ways: Ways,
    sharing: float = WORTH_SHARING,
    branch: Branch | None = None,
) -> None:
    """Read prompts, B lists of token ids, and then token by token, at most `steps` of them, what is chosen to come.

    `sharing` is that of `WrittenStep`; `branch` wants the ways "batch" and "shared".
    """
    device = next(model.parameters()).device
    with torch.inference_mode("inference" in ways), torch.no_grad(), cpu_kernels(model, ways) as packed:
        for places in alike(list(map(len, prompts)), "left", ways):
            rows = torch.tensor(places, device=device)
            texts = [tuple(prompts[place]) for place in places]
            _follow(model, texts, rows, choose, steps, pad_id, ways, packed, sharing, branch)


def alike(lengths: Sequence[int], side: str, ways: Ways) -> Iterator[list[int]]:
    """Yield places of texts that may be read together: all of them, or those of one length, or each alone."""
    if "batch" not in ways:
        yield from ([place] for place in range(len(lengths)))
    elif side in ways:
        yield list(range(len(lengths)))
    else:
        for length in sorted(set(lengths)):
            yield [place for place, each in enumerate(lengths) if each == length]


def _follow(
    model: Any,
    prompts: Sequence[tuple[int, ...]],
    rows: Tensor,
    choose: Choose,
    steps: int,
    pad_id: int,
    ways: Ways,
    packed: Mapping[Any, Tensor],
    sharing: float,
    branch: Branch | None,
) -> None:
    cached, shared = "cache" in ways, "shared" in ways
    to_read = list(dict.fromkeys(prompts)) if shared else prompts
    ids, mask = padded(to_read, pad_id, rows.device, left=True)
    forward = _forward(model, cached=cached, padded=not bool(mask.all()))
    logits, cache = forward(ids, mask, None)
    if shared:
        place = {prompt: i for i, prompt in enumerate(to_read)}
        row_of, order = torch.tensor([place[prompt] for prompt in prompts], device=rows.device).sort(stable=True)
        rows, logits = rows[order], logits[row_of]
    onward: _Onward | WrittenStep
    if "written" in ways and can_be_written(model) and plain_layers(cache):
        onward = WrittenStep(model, packed, cache, mask, row_of, steps, sharing)
    else:
        if shared:
            share_cache(cache, row_of, room=steps)
            mask = mask[row_of]
        onward = _Onward(forward, ids, mask, cache, cached, shared or not cached)
    count = len(rows)
    running = torch.arange(count, device=rows.device)  # those rows whose response goes on
    for step in range(steps):
        chosen, going_on = choose(logits if len(running) == count else logits[running], rows[running], step)
        left = int(going_on.sum())
        if step + 1 == steps or left == 0:
            return
        if left < len(running):
            chosen, running = chosen[going_on], running[going_on]
        if branch is not None and (branches := _branches(branch, rows[running], step)) is not None:
            places, rows = branches
            if len(rows) == 0:
                return
            once, copies = torch.unique_consecutive(
                places, return_inverse=True
            )  # copies differ from their next token on
            onward.keep(running[once])
            logits = onward(chosen[once])
            if len(once) < len(places):
                onward.keep(copies)
                logits = logits[copies]
            count, running = len(rows), torch.arange(len(rows), device=rows.device)
            continue
        if left < count and onward.cuts(left):
            onward.keep(running)
            rows, count, running = rows[running], left, torch.arange(left, device=rows.device)
        if left < count:  # finished rows that stay read padding, and nobody asks what they say
            chosen = torch.full((count,), pad_id, device=rows.device).index_copy_(0, running, chosen)
        logits = onward(chosen)


@torch.inference_mode(False)  # what is asked there, such as a reward model, may keep what it computes
def _branches(branch: Branch, rows: Tensor, step: int) -> tuple[Tensor, Tensor] | None:
    return branch(rows, step)


@dataclass
class _Onward:
    """Rows that the model's own pass goes on with, a token each time."""

    forward: Callable[[Tensor, Tensor, Any], tuple[Tensor, Any]]
    ids: Tensor  # (B, L) all tokens so far, where there is no cache
    mask: Tensor  # (B, L) 1 for a token, 0 for the padding before it
    cache: Any
    cached: bool
    can_be_cut: bool

    def __call__(self, tokens: Tensor) -> Tensor:
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], dim=1)
        self.ids = tokens[:, None] if self.cached else torch.cat([self.ids, tokens[:, None]], dim=1)
        logits, self.cache = self.forward(self.ids, self.mask, self.cache)
        return logits

    def cuts(self, left: int) -> bool:
        return self.can_be_cut

    def keep(self, rows: Tensor) -> None:
        self.mask = self.mask[rows]
        if self.cached:
            select_rows(self.cache, rows)
        else:
            self.ids = self.ids[rows]


def _forward(model: Any, *, cached: bool, padded: bool) -> Callable[[Tensor, Tensor, Any], tuple[Tensor, Any]]:
    """A pass over some tokens behind a cache, or over whole texts without one: logits of the next token, and cache."""
    name = "past_key_values" if takes(model, "past_key_values") else "cache_params"
    told: dict[str, Any] = {"use_cache": cached} if cached or takes(model, "use_cache") else {}
    if takes(model, "logits_to_keep"):
        told["logits_to_keep"] = 1

    def forward(tokens: Tensor, mask: Tensor, cache: Any) -> tuple[Tensor, Any]:
        # Without padding the model works out mask and positions for itself, and attends without a mask.
        options = told | (mask_and_positions(model, mask, tokens.shape[1]) if padded else {})
        out = model(tokens, **options, **({name: cache} if cached else {}))
        return out.logits[:, -1], out[name] if cached else None

    return forward


def mask_and_positions(model: Any, mask: Tensor, width: int) -> dict[str, Tensor]:
    """Return a mask, and the positions of the last `width` tokens for models that take them, as options."""
    options = {"attention_mask": mask}
    if takes(model, "position_ids"):
        options["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)[:, -width:]
    return options


def padded(
    texts: Sequence[Sequence[int]], pad_id: int, device: torch.device, *, left: bool = False
) -> tuple[Tensor, Tensor]:
    """Return texts as one table of token ids, and 1 where there is one, (B, L) each."""
    width = max(map(len, texts))

    def filled(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
        pads = [[fill] * (width - len(row)) for row in rows]
        both = zip(pads, rows, strict=True)
        return torch.tensor([[*pad, *row] if left else [*row, *pad] for pad, row in both], device=device)

    return filled(texts, pad_id), filled([[1] * len(text) for text in texts], 0)


def said_plainly(model: Any, probe: Probe) -> list[Tensor]:
    """Return the next-token logits along each response of a probe, (T, V) each, from a pass over its text alone."""
    return [plain_logits(model, text)[-len(r) - 1 : -1] for text, r in zip(probe.texts, probe.responses, strict=True)]


def plain_logits(model: Any, text: Sequence[int]) -> Tensor:
    """Return what a causal model says after each token of a text, (L, V), in the plainest way; gradients flow."""
    ids = torch.tensor([list(text)], device=next(model.parameters()).device)
    options = {"use_cache": False} if takes(model, "use_cache") else {}
    logits: Tensor = model(ids, **options).logits[0].float()
    return logits[-len(text) :]  # in front of them an adapter may have said something about virtual tokens


def _followed_both_ways(model: Any, probe: Probe, ways: Ways, branching: bool = False) -> list[Tensor]:
    """The same twice by the loop: with each prompt's keys shared by its draws, and with copies for each."""
    shared = _followed(model, probe, ways, 0, branching)
    return shared + (_followed(model, probe, ways, float("inf"), branching) if "written" in ways else shared)


def _followed(model: Any, probe: Probe, ways: Ways, sharing: float, branching: bool) -> list[Tensor]:
    """The same by the loop, made to say these responses; the second half of each by two copies, if it branches."""
    count, branches = len(probe.responses), branching and can_branch(ways)
    said: list[list[Tensor]] = [[] for _ in range(2 * count)]

    def choose(logits: Tensor, rows: Tensor, step: int) -> tuple[Tensor, Tensor]:
        for name, row in zip(rows.tolist(), logits, strict=True):
            said[name].append(row.float())
        responses = [probe.responses[name % count] for name in rows.tolist()]
        tokens = torch.tensor([response[step] for response in responses], device=rows.device)
        return tokens, torch.tensor([step + 1 < len(response) for response in responses], device=rows.device)

    def branch(rows: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """At every step each response's copy is made anew."""
        places = (rows < count).nonzero()[:, 0].repeat_interleave(2)
        names = rows[places]
        names[1::2] += count
        for name in names[1::2].tolist():
            said[name] = said[name - count].copy()
        return places, names

    follow(
        model,
        probe.prompts,
        choose,
        steps=max(ENOUGH, *map(len, probe.responses)),  # so that a recorded graph is proved with the rest
        pad_id=probe.pad_id,
        ways=ways,
        sharing=sharing,
        branch=branch if branches else None,
    )
    if _left_behind(model):
        raise ValueError("tensors that the model keeps from now on would have no gradients")
    return [torch.stack(rows).clone() for rows in (said if branches else (1 + branching) * said[:count])]


def _left_behind(model: Any) -> bool:
    """Whether a model keeps tensors of inference mode, with which it cannot learn; they are made ordinary ones."""
    found = False
    for module in model.modules():
        for kept in (vars(module), module._buffers):
            for name, value in list(kept.items()):
                if isinstance(value, Tensor) and value.is_inference():
                    kept[name], found = value.clone(), True
    return found


def can_branch(ways: Ways) -> bool:
    """Return whether rows can go on in copies, by the ways of the task "branching"."""
    return {"batch", "shared"} <= ways


TASKS["drawing"] = Task(
    ("batch", "cache", "shared", "written", "left", "products", "attention", "inference"),
    torch.no_grad()(lambda model, probe: 2 * said_plainly(model, probe)),
    _followed_both_ways,
    lambda model, way: way != "written" or can_be_written(model),
)
TASKS["branching"] = TASKS["drawing"]._replace(
    plain=torch.no_grad()(lambda model, probe: 4 * said_plainly(model, probe)),
    fast=functools.partial(_followed_both_ways, branching=True),
)
