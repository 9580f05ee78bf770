"""The decoding loop: one token a step for a whole batch, with the log-probabilities gathered on the way.

Three things make it faster than `generate`: a prompt is read once for all its draws, a token costs one random number,
and finished responses leave the batch; on a CPU also weights that are laid out once a call for its matrix products.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from bonlib.lm.kernels import cpu_kernels
from bonlib.lm.models import takes


class Decoded(NamedTuple):
    """What the loop returns for a batch of B prompts and at most T new tokens.

    Attributes:
        tokens: (B, T) token ids; the padding token after the end token.
        lengths: (B,) tokens of each response, the end token included.
        log_probs: (B,) log-probability of each response under the model as it is.
        sampling_log_probs: (B,) the same under the distribution that was sampled from (temperature, top-p).
    """

    tokens: torch.Tensor
    lengths: torch.Tensor
    log_probs: torch.Tensor
    sampling_log_probs: torch.Tensor


@torch.inference_mode()
def decode(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    end_ids: Sequence[int],
    pad_id: int,
    generator: torch.Generator,
) -> Decoded:
    """Sample one response for each prompt of a batch; equal prompts are read once and share what was read.

    Args:
        model: a `transformers` causal language model.
        prompts: B lists of token ids, none empty; they are padded on the left.
        max_new_tokens: length at which a response is cut.
        temperature: divides the logits, above 0.
        top_p: the smallest set of next tokens with at least this probability is kept, in (0, 1].
        end_ids: tokens that end a response.
        pad_id: token to fill up with.
        generator: a CPU generator; one number a row and step is drawn from it.
    """
    device = next(model.parameters()).device
    distinct = list(dict.fromkeys(map(tuple, prompts)))
    place = {prompt: i for i, prompt in enumerate(distinct)}
    row_of = torch.tensor([place[tuple(prompt)] for prompt in prompts], device=device)

    width = max(map(len, distinct))
    ids = torch.tensor([[pad_id] * (width - len(p)) + list(p) for p in distinct], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in distinct], device=device)
    padded = not bool(mask.all())
    takes_positions = takes(model, "position_ids")

    def forward(tokens: torch.Tensor, mask: torch.Tensor, cache: Any) -> tuple[torch.Tensor, Any]:
        options: dict[str, Any] = {}
        if padded:  # without padding the model works out both for itself, and attends without a mask
            options["attention_mask"] = mask
            if takes_positions:
                options["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
        out = model(tokens, past_key_values=cache, use_cache=True, **options)
        return out.logits[:, -1].float(), out.past_key_values

    rows = len(row_of)
    uniforms = torch.rand(rows, max_new_tokens, generator=generator).to(device)
    tokens = torch.full((rows, max_new_tokens), pad_id, device=device)
    lengths = torch.zeros(rows, dtype=torch.long, device=device)
    # Apple's GPUs have no float64.
    log_probs = torch.zeros(rows, dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)
    sampling_log_probs = torch.zeros_like(log_probs)
    running = torch.arange(rows, device=device)  # the rows of the batch, by their place in the results
    ends = torch.tensor(list(end_ids), device=device)
    with cpu_kernels(model):
        logits, cache = forward(ids, mask, None)
        share_cache(cache, row_of, room=max_new_tokens)
        logits, mask = logits[row_of], mask[row_of]
        for step in range(max_new_tokens):
            drawn, log_prob, sampling_log_prob = draw(logits, uniforms[running, step], temperature, top_p)
            tokens[running, step] = drawn
            log_probs[running] += log_prob
            sampling_log_probs[running] += sampling_log_prob
            lengths[running] += 1
            going_on = (~torch.isin(drawn, ends)).nonzero()[:, 0]
            if step + 1 == max_new_tokens or len(going_on) == 0:
                break
            if len(going_on) < len(running):
                running, drawn, mask = running[going_on], drawn[going_on], mask[going_on]
                cache.batch_select_indices(going_on)
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            logits, cache = forward(drawn[:, None], mask, cache)
    return Decoded(tokens, lengths, log_probs, sampling_log_probs)


def share_cache(cache: Any, rows: torch.Tensor, *, room: int) -> None:
    """Give each row of a batch the cache of its prompt, with room for more tokens where the layer's kind allows it."""
    from transformers.cache_utils import DynamicLayer

    for place, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer:
            cache.layers[place] = _roomy_layer()(layer, rows, room)
        else:
            layer.batch_select_indices(rows)


@functools.cache  # the base class comes with a heavy import, so this one is made when it is first needed
def _roomy_layer() -> Any:
    from transformers.cache_utils import DynamicLayer

    class RoomyLayer(DynamicLayer):  # type: ignore[misc]
        """Keys and values of one layer with room for the tokens to come; the usual cache copies all of it each time."""

        def __init__(self, layer: DynamicLayer, rows: torch.Tensor, room: int) -> None:
            super().__init__()
            self.lazy_initialization(layer.keys, layer.values)
            self._length = layer.keys.shape[2]
            self._kept = [_with_room(kept[rows], room) for kept in (layer.keys, layer.values)]
            self._show()

        def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            begin, self._length = self._length, self._length + key_states.shape[2]
            for kept, new in zip(self._kept, (key_states, value_states), strict=True):
                kept[:, :, begin : self._length] = new
            self._show()
            return self.keys, self.values

        def batch_select_indices(self, indices: torch.Tensor) -> None:
            self._kept = [kept[indices] for kept in self._kept]
            self._show()

        def _show(self) -> None:
            self.keys, self.values = (kept[:, :, : self._length] for kept in self._kept)

    return RoomyLayer


def _with_room(kept: torch.Tensor, room: int) -> torch.Tensor:
    return torch.cat([kept, kept.new_empty(*kept.shape[:2], room, kept.shape[3])], dim=2)


def draw(
    logits: torch.Tensor, uniforms: torch.Tensor, temperature: float, top_p: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return a token a row, its log-probability under the model, and that under what was sampled from, each (B,)."""
    if temperature == 1 and top_p == 1:
        highest = logits.amax(1, keepdim=True)
        weights = (logits - highest).exp_()
        drawn, total = inverse_cdf(weights, uniforms)
        log_prob = logits.gather(1, drawn[:, None])[:, 0] - highest[:, 0] - total.log()
        log_prob = log_prob.clamp(max=0.0)  # rounding can leave a certain token a little above probability one
        return drawn, log_prob, log_prob
    probs = next_token_probs(logits, temperature, top_p)
    drawn, total = inverse_cdf(probs, uniforms)
    chosen = drawn[:, None]
    log_prob = (logits.gather(1, chosen)[:, 0] - logits.logsumexp(1)).clamp(max=0.0)
    return drawn, log_prob, (probs.gather(1, chosen)[:, 0] / total).log().clamp(max=0.0)


def next_token_probs(logits: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
    """Return the next-token distribution that is sampled from, shape (B, V), from logits of that shape."""
    probs = (logits / temperature).softmax(1)
    if top_p < 1:
        ranked, order = probs.sort(dim=1, descending=True)
        beyond = ranked.cumsum(1) - ranked >= top_p
        probs = torch.zeros_like(probs).scatter(1, order, ranked.masked_fill(beyond, 0.0))
        probs = probs / probs.sum(1, keepdim=True)
    return probs


def inverse_cdf(weights: torch.Tensor, uniforms: torch.Tensor, block: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """Return one index a row, drawn by inverting the cumulative distribution at the row's uniform number.

    One random number a row instead of one a vocabulary entry, which on a CPU costs more than the model itself. The
    sums are taken by blocks, and only the block that the number falls into is looked at closely.

    Args:
        weights: not negative, with a positive sum, shape (B, V).
        uniforms: in [0, 1), shape (B,).
        block: entries summed together.

    Returns:
        The indices and the sums of the weights, each of shape (B,).
    """
    rows, size = weights.shape
    if size % block:
        weights = torch.nn.functional.pad(weights, (0, block - size % block))
    blocks = weights.view(rows, -1, block)
    sums = blocks.sum(2)
    upto = sums.cumsum(1)
    total = upto[:, -1]
    wanted = (uniforms * total)[:, None]
    # u · total can round up to the total itself; the last block and entry with any weight is then the right one.
    found = torch.minimum(torch.searchsorted(upto, wanted, right=True), _last_positive(sums))
    before = torch.where(found > 0, upto.gather(1, (found - 1).clamp(min=0)), 0.0)
    inside = blocks.gather(1, found[:, :, None].expand(-1, -1, block))[:, 0]
    entry = torch.searchsorted(inside.cumsum(1), wanted - before, right=True)
    return (found * block + torch.minimum(entry, _last_positive(inside)))[:, 0], total


def _last_positive(weights: torch.Tensor) -> torch.Tensor:
    """Place of the last entry above 0 in each row, shape (B, 1)."""
    places = torch.arange(weights.shape[1], device=weights.device)
    return torch.where(weights > 0, places, 0).amax(1, keepdim=True)
