"""The decoding loop: one token a step for a whole batch, with the log-probabilities gathered on the way."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch


class Decoded(NamedTuple):
    """What the loop returns for a batch of B prompts and at most T new tokens.

    Attributes:
        tokens: (B, T) token ids; the padding token after the end token.
        lengths: (B,) tokens of each response, the end token included.
        log_probs: (B,) log-probability of each response under the model as it is, float64.
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
    takes_positions = "position_ids" in inspect.signature(model.forward).parameters

    def forward(tokens: torch.Tensor, mask: torch.Tensor, cache: Any) -> tuple[torch.Tensor, Any]:
        positions = (
            {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)[:, -tokens.shape[1] :]} if takes_positions else {}
        )
        out = model(tokens, attention_mask=mask, past_key_values=cache, use_cache=True, **positions)
        return out.logits[:, -1].float(), out.past_key_values

    logits, cache = forward(ids, mask, None)
    cache.batch_select_indices(row_of)
    logits, mask = logits[row_of], mask[row_of]

    rows = len(row_of)
    uniforms = torch.rand(rows, max_new_tokens, generator=generator).to(device)
    tokens = torch.full((rows, max_new_tokens), pad_id, device=device)
    lengths = torch.zeros(rows, dtype=torch.long, device=device)
    log_probs = torch.zeros(rows, dtype=torch.float64, device=device)
    sampling_log_probs = torch.zeros_like(log_probs)
    running = torch.ones(rows, dtype=torch.bool, device=device)
    ends = torch.tensor(list(end_ids), device=device)
    for step in range(max_new_tokens):
        probs = next_token_probs(logits, temperature, top_p)
        drawn = inverse_cdf(probs, uniforms[:, step])
        # Rounding can leave a certain token a little above probability one.
        log_prob = (logits.gather(1, drawn[:, None])[:, 0] - logits.logsumexp(1)).clamp(max=0.0)
        log_probs += torch.where(running, log_prob, 0.0)
        sampling_log_probs += torch.where(running, probs.gather(1, drawn[:, None])[:, 0].log(), 0.0)
        tokens[:, step] = torch.where(running, drawn, pad_id)
        lengths += running
        running = running & ~torch.isin(drawn, ends)
        if step + 1 == max_new_tokens or not running.any():
            break
        mask = torch.cat([mask, mask.new_ones(rows, 1)], dim=1)
        logits, cache = forward(tokens[:, step : step + 1], mask, cache)
    return Decoded(tokens, lengths, log_probs, sampling_log_probs)


def next_token_probs(logits: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
    """Return the next-token distribution that is sampled from, shape (B, V), from logits of that shape."""
    probs = (logits / temperature).softmax(1)
    if top_p < 1:
        ranked, order = probs.sort(dim=1, descending=True)
        beyond = ranked.cumsum(1) - ranked >= top_p
        probs = torch.zeros_like(probs).scatter(1, order, ranked.masked_fill(beyond, 0.0))
        probs = probs / probs.sum(1, keepdim=True)
    return probs


def inverse_cdf(probs: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Return one index a row, drawn by inverting the cumulative distribution at the row's uniform number.

    One random number a row instead of one a vocabulary entry, which on a CPU costs more than the model itself.
    Rounding of the float32 sums moves a token's probability by less than 1e-6.
    """
    cumulative = probs.cumsum(1)
    drawn = torch.searchsorted(cumulative, (uniforms * cumulative[:, -1])[:, None], right=True)[:, 0]
    # u · total can round up to the total itself; the last token with any mass is then the right one.
    last = probs.shape[1] - 1 - (probs.flip(1) > 0).to(torch.uint8).argmax(1)
    return torch.minimum(drawn, last)
